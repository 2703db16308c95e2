"""A streamed model equals the plain one bit for bit when used again, next to others, and after a failure.

Every test runs at the least budget, where weights are loaded and dropped all the time.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.attachments import Broken
from kit.budgets import load
from kit.compare import (
    Tensors,
    assert_same,
    generate,
    greedy,
    left_padded_batch,
    logits,
    reference,
    sampled,
)
from kit.families import save_tiny
from transformers import (
    PreTrainedModel,
    StoppingCriteriaList,
)

import layerstream as ls


class TestRepeatedUse:
    """One model used many times, and several models at once."""

    def test_ten_calls_of_changing_shape_all_agree(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Calls end during the prefetcher's read-ahead; the next call must not get the wrong block."""
        for turn in range(10):
            settings: dict[str, Any] = {
                "do_sample": False,
                **left_padded_batch(plain, (4 + turn, 3, 5)[: 1 + turn % 3]),
            }
            assert_same(generate(plain, **settings), generate(streamed.model, **settings), f"call {turn}")
            assert_same(logits(plain), logits(streamed.model), f"forward {turn}")

    def test_the_random_state_is_left_as_the_plain_model_leaves_it(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Streaming draws no random numbers of its own."""
        states = []
        for model in (plain, streamed.model):
            sampled(model)
            states.append({"state": torch.get_rng_state()})
        assert_same(*states, "random state")

    def test_two_models_used_in_turns_do_not_disturb_each_other(
        self, bf16_llama_dir: Path, plain: PreTrainedModel, tmp_path: Path
    ) -> None:
        """Neither model touches the other's weights."""
        other_path = save_tiny("mixtral", tmp_path)
        other_plain = reference(other_path)
        with load(bf16_llama_dir, "auto", "min") as first, load(other_path, "auto", "min") as second:
            for _ in range(2):
                assert_same(greedy(plain), greedy(first.model), "first")
                assert_same(greedy(other_plain), greedy(second.model), "second")

    def test_one_checkpoint_can_be_loaded_twice_at_once_and_again_afterwards(
        self, bf16_llama_dir: Path, plain: PreTrainedModel
    ) -> None:
        """Each loaded model has its own slots."""
        expected = greedy(plain)
        with load(bf16_llama_dir, "auto", "min") as first, load(bf16_llama_dir, "auto", "min") as second:
            assert_same(expected, greedy(second.model), "second")
            assert_same(expected, greedy(first.model), "first")
        with load(bf16_llama_dir, "auto", "min") as third:
            assert_same(expected, greedy(third.model), "third")

    def test_two_models_run_in_two_threads_at_once(
        self, bf16_llama_dir: Path, plain: PreTrainedModel
    ) -> None:
        """Both run at the same time."""
        expected, results = greedy(plain), {}
        with load(bf16_llama_dir, "auto", "min") as first, load(bf16_llama_dir, "auto", "min") as second:
            models = {"first": first.model, "second": second.model}
            threads = [
                threading.Thread(target=_store, args=(results, name, model)) for name, model in models.items()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for name in models:
            assert_same(expected, results[name], name)


class TestInterruptions:
    """A forward that fails, and what comes after it."""

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    @pytest.mark.parametrize("block", [0, 2, 4])
    def test_an_error_in_a_block_leaves_a_model_that_works(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, error: type[BaseException], block: int
    ) -> None:
        """The error propagates unchanged; the next call starts at the first block again."""
        target = streamed.model.get_decoder().layers[block].mlp

        def fail(*_: object) -> None:
            raise error("in the middle")

        for _ in range(3):
            handle = target.register_forward_pre_hook(fail)
            with pytest.raises(error, match="in the middle"):
                streamed.model(**left_padded_batch(plain))
            handle.remove()
            assert_same(logits(plain), logits(streamed.model), f"after {error.__name__} in block {block}")
        assert_same(greedy(plain), greedy(streamed.model), "generate afterwards")

    def test_an_error_between_two_tokens_leaves_a_model_that_works(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """A streamer or criterion may raise, for instance when a browser tab is closed."""
        with pytest.raises(BrokenPipeError):
            generate(streamed.model, do_sample=False, stopping_criteria=StoppingCriteriaList([Broken()]))
        assert_same(greedy(plain), greedy(streamed.model), "generate afterwards")

    def test_bad_input_leaves_a_model_that_works(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """The embedding refuses a token id outside of the vocabulary, as usual."""
        with pytest.raises(IndexError):
            streamed.model(input_ids=torch.tensor([[5, 10_000]]))
        assert_same(logits(plain), logits(streamed.model), "logits afterwards")

    def test_use_after_close_is_refused(self, bf16_llama_dir: Path) -> None:
        """Through `streamed.generate` and through the model."""
        streamed = load(bf16_llama_dir, "auto", "min")
        streamed.close()
        streamed.close()
        with pytest.raises(ls.StreamClosedError):
            streamed.generate(torch.tensor([[5, 6]]), max_new_tokens=1)
        with pytest.raises(ls.StreamClosedError):
            streamed.model(input_ids=torch.tensor([[5, 6]]))

    @pytest.mark.parametrize(
        "operation",
        [
            lambda model, _: model.half(),
            lambda model, _: model.to(torch.float16),
            lambda model, directory: model.save_pretrained(directory / "copy"),
        ],
        ids=["half", "to", "save_pretrained"],
    )
    def test_an_operation_that_needs_all_weights_at_once_is_refused(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, operation: Any, tmp_path: Path
    ) -> None:
        """The model still works afterwards."""
        with pytest.raises(ls.UnsupportedModelError):
            operation(streamed.model, tmp_path)
        assert not (tmp_path / "copy").exists()
        assert_same(logits(plain), logits(streamed.model), "logits afterwards")


def _store(results: dict[str, Tensors], name: str, model: PreTrainedModel) -> None:
    results[name] = greedy(model)
