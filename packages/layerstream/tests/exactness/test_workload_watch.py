"""A run beyond the planned workload warns once and stays exact; beyond the budget, nothing is computed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.compare import assert_same, cache_argument, reference
from transformers import DynamicCache, PreTrainedModel, StaticCache

import layerstream as ls

WORKLOAD = ls.Workload(batch_size=2, prompt_tokens=8, new_tokens=4)
NO_END = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False}


def ids(rows: int = 1, tokens: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(5, 120, (rows, tokens), generator=generator)


def load(path: Path, budget: str | int = "min", workload: ls.Workload = WORKLOAD) -> ls.StreamedModel:
    return ls.load(path, budget=budget, device="cpu", workload=workload)


def load_exactly(path: Path, workload: ls.Workload = WORKLOAD) -> ls.StreamedModel:
    """Load in exactly the bytes that the workload needs."""
    needed_bytes = ls.plan(path, budget="min", device="cpu", workload=workload).ledger.device_bytes
    return load(path, needed_bytes, workload)


Use = Callable[[PreTrainedModel], torch.Tensor]


def generate(rows: int = 1, tokens: int = 8, new_tokens: int | None = 4, **settings: Any) -> Use:
    def use(model: PreTrainedModel) -> torch.Tensor:
        output: torch.Tensor = model.generate(
            ids(rows, tokens), max_new_tokens=new_tokens, **{**NO_END, **settings}
        )
        return output

    return use


def logits(rows: int = 1, tokens: int = 8) -> Use:
    def use(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model(ids(rows, tokens)).logits
        return output

    return use


def hidden(rows: int = 1, tokens: int = 8) -> Use:
    def use(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model.model(inputs_embeds=model.get_input_embeddings()(ids(rows, tokens)))[
                0
            ]
        return output

    return use


def decode_by_hand(tokens: int, make: Callable[[PreTrainedModel], Any] | None = None) -> Use:
    def use(model: PreTrainedModel) -> torch.Tensor:
        cache = DynamicCache(config=model.config) if make is None else make(model)
        steps = []
        with torch.no_grad():
            for token in ids(1, tokens)[0]:
                arguments = cache_argument(model, cache)
                steps.append(model(token[None, None], use_cache=True, **arguments).logits)
        return torch.cat(steps)

    return use


WITHIN = {
    "generate": generate(),
    "beams": generate(num_beams=2),
    "two answers": generate(num_return_sequences=2, do_sample=True),
    "a long prompt in few rows": generate(tokens=10, new_tokens=2),
    "logits": logits(rows=2),
    "backbone": hidden(rows=2),
    "steps": decode_by_hand(12),
    "static cache": generate(rows=2, cache_implementation="static"),
    "prompt look-up": generate(prompt_lookup_num_tokens=3),
    "transformers' chunked prefill": generate(tokens=8, prefill_chunk_size=3),
    "no cache": generate(use_cache=False, new_tokens=1),
}

BEYOND = {
    "prompt": generate(tokens=40),
    "answer": generate(rows=2, new_tokens=100),
    "batch": generate(rows=5),
    "beams": generate(num_beams=5),
    "answers": generate(num_return_sequences=5, do_sample=True),
    "logits": logits(rows=2, tokens=40),
    "rows": logits(rows=5),
    "backbone": hidden(rows=2, tokens=40),
    "steps": decode_by_hand(100),
    "static cache": generate(rows=2, new_tokens=40, cache_implementation="static"),
    "a static cache that is too long": decode_by_hand(
        3, lambda model: StaticCache(config=model.config, max_cache_len=200)
    ),
    "no cache": generate(use_cache=False, new_tokens=100),
    "max_length": generate(rows=2, new_tokens=None, max_length=100),
}


@pytest.mark.parametrize("name", WITHIN)
def test_a_use_within_the_workload_gives_no_warning(tiny_llama_dir: Path, name: str) -> None:
    # a warning is an error here
    with load_exactly(tiny_llama_dir) as streamed:
        WITHIN[name](streamed.model)


@pytest.mark.parametrize("name", BEYOND)
def test_a_use_beyond_the_workload_warns_once_and_equals_the_plain_model(
    tiny_llama_dir: Path, name: str
) -> None:
    use = BEYOND[name]
    torch.manual_seed(3)
    expected = use(reference(tiny_llama_dir))
    with load(tiny_llama_dir) as streamed:
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match=r"larger than planned.*Workload\(batch_size=") as caught:
            actual = use(streamed.model)
        assert len(caught) == 1
        assert str(streamed.plan.ledger.device_bytes) in str(caught[0].message)
        use(streamed.model)
    assert_same({"output": expected}, {"output": actual}, name)


@pytest.mark.parametrize("name", sorted(BEYOND.keys() - {"steps"}))
def test_a_use_beyond_the_budget_raises_before_anything_is_read_and_the_model_stays_usable(
    tiny_llama_dir: Path, name: str
) -> None:
    small = logits(rows=1, tokens=4)
    expected = small(reference(tiny_llama_dir))
    with load_exactly(tiny_llama_dir) as streamed:
        with pytest.raises(ls.WorkloadExceededError) as caught:
            BEYOND[name](streamed.model)
        report, plan = streamed.report(), streamed.plan
        # the prefetcher fills the slots before the first forward, and goes on when one begins
        assert report.bytes_read <= plan.num_slots * plan.slot_bytes
        assert report.sweeps == 0
        assert_same({"output": expected}, {"output": small(streamed.model)}, name)
    error = caught.value
    assert error.needed_bytes > error.budget_bytes == streamed.plan.ledger.device_budget_bytes
    assert error.planned == {"batch_size": 2, "prompt_tokens": 8, "context_tokens": 12}
    assert any(error.asked[key] > error.planned[key] for key in error.planned)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_steps_warn_when_the_context_outgrows_the_plan_and_raise_when_it_no_longer_fits(
    tiny_llama_dir: Path,
) -> None:
    with (
        load_exactly(tiny_llama_dir) as streamed,
        pytest.warns(UserWarning, match="larger than planned"),
        pytest.raises(ls.WorkloadExceededError) as caught,
    ):
        decode_by_hand(200)(streamed.model)
    assert caught.value.asked["prompt_tokens"] == 1
    # every step before was computed
    assert streamed.report().sweeps == caught.value.asked["context_tokens"] - 1


def test_the_workload_that_the_error_names_is_enough(tiny_llama_dir: Path) -> None:
    use = generate(rows=3, tokens=40, new_tokens=30)
    with load_exactly(tiny_llama_dir) as streamed, pytest.raises(ls.WorkloadExceededError) as caught:
        use(streamed.model)
    named = str(caught.value).partition("Load the model with workload=")[2].partition(")")[0]
    sizes = dict(part.split("=") for part in named.removeprefix("Workload(").split(", "))
    workload = ls.Workload(**{name: int(size) for name, size in sizes.items()})
    assert workload == ls.Workload(batch_size=3, prompt_tokens=40, new_tokens=30)
    with load_exactly(tiny_llama_dir, workload) as streamed:
        use(streamed.model)


def test_replicas_warn_once_together(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min", devices=["cpu", "cpu"], workload=WORKLOAD) as streamed:
        with pytest.warns(UserWarning, match="larger than planned") as caught:
            streamed.run_on_devices(lambda replica: logits(tokens=40)(replica.model))
        assert len(caught) == 1


def test_tasks_that_share_sweeps_plan_their_own_memory_and_give_no_warning(tiny_llama_dir: Path) -> None:
    requests = [ls.GenerationRequest(prompt=ids(1, 20)[0].tolist(), max_new_tokens=10)] * 6
    with load(tiny_llama_dir) as streamed:
        assert all(result.error is None for result in ls.generate_many(streamed, requests))
        prefix = ids(1, 30)[0].tolist()
        (result,) = ls.score(streamed, [(prefix, [[6, 7, 8], [9]])])
        assert result.error is None


def test_a_task_that_cannot_fit_the_budget_has_the_error_and_the_others_finish(tiny_llama_dir: Path) -> None:
    requests = [
        ls.GenerationRequest(prompt=ids(1, tokens)[0].tolist(), max_new_tokens=2) for tokens in (6, 400)
    ]
    with load_exactly(tiny_llama_dir) as streamed:
        fits, too_long = ls.generate_many(streamed, requests, packed=False)
        (regardless,) = ls.generate_many(streamed, requests[1:], max_rows=1)
    assert fits.error is None
    assert isinstance(too_long.error, ls.WorkloadExceededError)
    assert regardless.error is None


def test_a_use_may_exceed_plan_and_budget_knowingly(tiny_llama_dir: Path) -> None:
    use = generate(rows=2, tokens=40)
    expected = use(reference(tiny_llama_dir))
    with load_exactly(tiny_llama_dir) as streamed:
        with streamed.beyond_plan():
            assert_same({"output": expected}, {"output": use(streamed.model)}, "beyond the plan")
        with pytest.raises(ls.WorkloadExceededError):
            use(streamed.model)


def test_close_takes_the_watch_off_the_model(tiny_llama_dir: Path) -> None:
    with load(tiny_llama_dir) as streamed:
        model = streamed.model
        assert model.model._forward_pre_hooks
    assert not model.model._forward_pre_hooks
    assert "_prepare_cache_for_generation" not in vars(model)
