from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerstream_compare.variants.loaded import Loaded
from layerstream_compare.worker.chunk_reader import ChunkReader
from layerstream_compare.worker.operator_trace import kernel_facts


class Recording(torch.nn.Module):
    """A model whose cache is the list of the chunks that it has read, and that takes no other name for it."""

    device = torch.device("cpu")

    def run(self, input_ids: torch.Tensor, name: str, cache: Any) -> SimpleNamespace:
        cache = [*(cache or []), input_ids.tolist()]
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 3), **{name: cache})


class Through523(Recording):
    def forward(self, input_ids, past_key_values=None, use_cache=None):
        return self.run(input_ids, "past_key_values", past_key_values)


class Since524(Recording):
    def forward(self, input_ids, cache=None, use_cache=None):
        return self.run(input_ids, "cache", cache)


@pytest.mark.parametrize("model", [Through523(), Since524()], ids=["5.23", "5.24"])
def test_the_cache_is_passed_on_under_the_name_that_the_model_uses(model):
    reader = ChunkReader(model)
    assert reader.read(torch.tensor([[1, 2]])).shape == (2, 3)
    assert reader.read(torch.tensor([[3]]), last_only=True).shape == (1, 3)
    assert reader._cache == [[[1, 2]], [[3]]]


def test_a_trace_of_a_real_model_uses_no_deprecated_name(tiny_model, caplog):
    # pytest turns warnings into errors; transformers also logs some of its own
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = Loaded(case=SimpleNamespace(attention="default"), model=model, tokenizer=None)
    assert kernel_facts(loaded, torch.tensor([[5, 6, 7]]))["decode_operators"]
    assert "deprecated" not in caplog.text
