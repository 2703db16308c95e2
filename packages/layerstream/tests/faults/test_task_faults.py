"""Faults of one task: the others that share its sweeps stay exact, nothing hangs, the model stays usable."""

from __future__ import annotations

import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from kit.tasks import Call, generation, many_kinds, together
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

import layerstream as ls
from layerstream.streaming.scheduler import Task, TaskResult

IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture(scope="module")
def plain(tiny_llama_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()


@pytest.fixture
def streamed(tiny_llama_dir: Path) -> Iterator[ls.StreamedModel]:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        yield streamed


class ActsAfter(StoppingCriteria):
    """Calls `action` at a given number of new tokens, and at each one after it."""

    def __init__(self, steps: int, action: Callable[[], object]) -> None:
        self.steps, self.action = steps, action

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.steps -= 1
        if self.steps <= 0:
            self.action()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def fail() -> None:
    raise BrokenPipeError("the reader is gone")


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def breaking(length: int, steps: int, action: Callable[[], object]) -> Call:
    return generation(
        length, 12, do_sample=False, stopping_criteria=StoppingCriteriaList([ActsAfter(steps, action)])
    )


def assert_usable(streamed: ls.StreamedModel, plain: PreTrainedModel) -> None:
    """Alone and sharing sweeps, the model gives the plain model's results."""
    with torch.no_grad():
        assert torch.equal(streamed.model(IDS).logits, plain(IDS).logits)
    calls = many_kinds()[:2]
    assert all(
        torch.equal(a, b)
        for a, b in zip(together(streamed, calls), [call(plain) for call in calls], strict=True)
    )


def test_a_call_that_raises_does_not_affect_the_others(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    calls = many_kinds()
    expected = [call(plain) for call in calls]
    mixed = [breaking(5, 2, fail), *calls, breaking(6, 3, fail)]
    results = streamed.group.run([partial(call, streamed.model) for call in mixed])
    assert [type(results[place].error) for place in (0, -1)] == [BrokenPipeError] * 2
    assert all(torch.equal(a, b.value) for a, b in zip(expected, results[1:-1], strict=True))
    assert_usable(streamed, plain)


def test_a_call_that_fails_inside_a_block_does_not_affect_the_others(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    """A hook recognizes the failing call by the length of its prompt."""

    def refuse_seven(_: object, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] == 7:
            raise ZeroDivisionError("in the middle of a block")

    handle = streamed.model.model.layers[2].mlp.register_forward_pre_hook(refuse_seven)
    calls = [generation(n, 4, do_sample=False) for n in (4, 7, 5)]
    results = streamed.group.run([partial(call, streamed.model) for call in calls])
    handle.remove()
    assert isinstance(results[1].error, ZeroDivisionError)
    for place in (0, 2):
        assert torch.equal(results[place].value, calls[place](plain))
    assert_usable(streamed, plain)


def test_ctrl_c_ends_every_call_and_leaves_a_model_that_works(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    calls = [breaking(5, 3, interrupt), *many_kinds()]
    with pytest.raises(KeyboardInterrupt):
        streamed.group.run([partial(call, streamed.model) for call in calls])
    assert torch.equal(torch.get_rng_state(), before)
    assert_usable(streamed, plain)


def test_an_error_in_the_result_callback_ends_every_call(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    def refuse(_: TaskResult) -> None:
        raise ArithmeticError("the disk of the results is full")

    with pytest.raises(ArithmeticError, match="is full"):
        together(streamed, many_kinds(), on_result=refuse)
    assert_usable(streamed, plain)


@pytest.mark.parametrize("who", ["a task", "the callback", "another thread"])
def test_close_while_calls_share_sweeps_ends_them_with_a_clear_error(tiny_llama_dir: Path, who: str) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min")
    threads: list[threading.Thread] = []

    def close_elsewhere() -> None:
        if not threads:
            threads.append(threading.Thread(target=streamed.close))
            threads[0].start()

    action = {"a task": streamed.close, "another thread": close_elsewhere}.get(who, lambda: None)
    calls = [generation(4, 40, do_sample=False), breaking(6, 2, action), generation(3, 1, do_sample=False)]
    with pytest.raises(ls.StreamClosedError, match="closed"):
        together(streamed, calls, on_result=lambda _: streamed.close() if who == "the callback" else None)
    for thread in threads:
        thread.join(20)
    assert streamed.is_closed
    with pytest.raises(ls.StreamClosedError, match="load it again"):
        together(streamed, calls)


def test_a_forward_of_another_thread_waits_for_the_run_and_is_exact(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    logits: list[torch.Tensor] = []
    other = threading.Thread(target=lambda: logits.append(streamed.model(IDS).logits))
    calls = [breaking(5, 2, lambda: other.ident or other.start()), *many_kinds()]
    results = streamed.group.run([partial(call, streamed.model) for call in calls])
    other.join(60)
    assert all(result.error is None for result in results)
    with torch.no_grad():
        assert torch.equal(logits[0], plain(IDS).logits)


def test_a_forward_in_the_callback_is_refused_and_says_why(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    with pytest.raises(ls.StreamError, match="callback"):
        together(streamed, many_kinds(), on_result=lambda _: streamed.model(IDS))
    assert_usable(streamed, plain)


def test_a_forward_inside_a_forward_is_refused_and_says_why(
    streamed: ls.StreamedModel, plain: PreTrainedModel
) -> None:
    """It would wait for itself."""
    handle = streamed.model.model.layers[1].register_forward_pre_hook(lambda *_: streamed.model(IDS))
    with pytest.raises(ls.StreamError, match="inside another"):
        streamed.model(IDS)
    (result,) = streamed.group.run([lambda: streamed.model(IDS)])
    assert isinstance(result.error, ls.StreamError)
    handle.remove()
    assert_usable(streamed, plain)


def test_a_disk_failure_fails_every_task_and_the_model_recovers(
    tiny_llama_dir: Path, plain: PreTrainedModel, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    whole = shard.read_bytes()
    with ls.load(checkpoint, budget="min") as streamed:
        with shard.open("r+b") as file:
            file.truncate(len(whole) // 2)
        calls = [generation(n, 4, do_sample=False) for n in (4, 5, 6)]
        results = streamed.group.run([partial(call, streamed.model) for call in calls])
        assert [type(result.error) for result in results] == [ls.ReadFailedError] * 3
        shard.write_bytes(whole)
        assert_usable(streamed, plain)


@pytest.mark.slow
def test_soak_of_admissions_and_faults(streamed: ls.StreamedModel, plain: PreTrainedModel) -> None:
    """Hundreds of random calls with random faults and capacities: each is exact or fails as expected.

    No thread and no open file is left. Once caches are filled, the process does not grow.
    """
    rng, process = random.Random(11), psutil.Process()
    expected: dict[tuple[int, int], torch.Tensor] = {}
    for _ in range(20):
        _soak_once(rng, streamed, plain, expected)
    before = (threading.active_count(), process.num_fds())
    size = process.memory_info().rss
    for _ in range(60):
        _soak_once(rng, streamed, plain, expected)
    assert (threading.active_count(), process.num_fds()) == before
    # the timeline's ring of 20,000 spans fills up meanwhile; a leaked task would hold its cache and logits
    assert process.memory_info().rss - size < 16 * 1024**2
    assert_usable(streamed, plain)


def _soak_once(
    rng: random.Random,
    streamed: ls.StreamedModel,
    plain: PreTrainedModel,
    expected: dict[tuple[int, int], torch.Tensor],
) -> None:
    """Run up to eight random calls; sometimes the callback raises, as Ctrl-C does or with another error."""
    plans = [
        (rng.randrange(2, 12), rng.randrange(1, 7), rng.random() < 0.25) for _ in range(rng.randrange(1, 9))
    ]
    tasks = []
    for length, new_tokens, fails in plans:
        call = (
            breaking(length, 1, fail)
            if fails
            else generation(length, new_tokens, do_sample=True, seed=length)
        )
        tasks.append(Task(call=partial(call, streamed.model), weight=rng.choice((0.5, 1.0, 2.5))))
    fault = rng.choice((None, None, None, KeyboardInterrupt, ArithmeticError))
    results: list[TaskResult] = []

    def on_result(result: TaskResult) -> None:
        results.append(result)
        if fault is not None:
            raise fault

    with pytest.raises(fault) if fault is not None else nullcontext():
        streamed.group.run(tasks, capacity=rng.choice((None, 1.0, 3.0)), on_result=on_result)
    assert len(results) == (len(plans) if fault is None else 1)
    for result in results:
        length, new_tokens, fails = plans[result.number]
        if fails:
            assert isinstance(result.error, BrokenPipeError)
            continue
        key = (length, new_tokens)
        if key not in expected:
            expected[key] = generation(length, new_tokens, do_sample=True, seed=length)(plain)
        assert torch.equal(result.value, expected[key])
