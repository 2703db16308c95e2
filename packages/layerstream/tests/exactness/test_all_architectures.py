"""Every causal language model type that transformers knows: tiny, all streamed, equal to the plain model.

A type that cannot be built, or whose plain model cannot compute logits or generate greedily, is in `OUT_OF_REACH` with the reason,
and in no other way out of the comparison. `python -m kit.architectures` prints the whole table.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.architectures import MODEL_TYPES, Outcome, compare, prepare

OUT_OF_REACH: dict[str, str] = {
    "blt": "generate() asks its config for a number of layers that it does not have",
    "dots3_note": "the vision part does not shrink by names",
    "emu3": "saves the config of its text part, which AutoModelForCausalLM does not know",
    "gemma3n": "needs timm",
    "gemma4_assistant": "works only on another model's cache",
    "gemma4_unified_assistant": "works only on another model's cache",
    "mllama": "saves the config of its text part, which AutoModelForCausalLM does not know",
    "musicgen": "wants the config of its decoder",
    "musicgen_melody": "wants the config of its decoder",
}
"""Types that transformers itself cannot run alone at a tiny size."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in OUT_OF_REACH])
def test_streamed_equals_plain_for(model_type: str, tmp_path: Path) -> None:
    """Logits of a left-padded batch and greedy generation, in fp32."""
    trial = prepare(model_type, tmp_path / model_type)
    if isinstance(trial, Outcome):
        pytest.fail(f"the plain model cannot serve as a reference ({trial.status.value}): {trial.reason}")
    compare(trial)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name in OUT_OF_REACH])
def test_a_type_out_of_reach_is_still_out_of_reach(model_type: str, tmp_path: Path) -> None:
    """When one of them can be run after all, it belongs into the comparison."""
    outcome = prepare(model_type, tmp_path / model_type)
    assert isinstance(outcome, Outcome), f"{model_type} runs: take it out of OUT_OF_REACH"
