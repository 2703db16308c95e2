"""In any event threads end, buffers are freed, the model stays usable or closed, and the error says why."""

from __future__ import annotations

import _thread
import gc
import operator
import pickle
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.testing import FakeAsyncRuntime

IDS = torch.arange(1, 13).reshape(2, 6)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("layerstream")]


@pytest.fixture
def checkpoint(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


@pytest.fixture(scope="module")
def reference(tiny_llama_dir: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()(IDS).logits


def last_shard(directory: Path) -> Path:
    return sorted(directory.glob("*.safetensors"))[-1]


@pytest.mark.parametrize("budget", ["min", "auto"])
def test_leaving_the_with_block_ends_every_thread_and_frees_every_buffer(
    tiny_llama_dir: Path, budget: str
) -> None:
    with ls.load(tiny_llama_dir, budget=budget) as streamed:
        streamed.model(IDS)
        assert our_threads()
        weights = [
            weakref.ref(parameter) for parameter in streamed.model.parameters() if not parameter.is_meta
        ]
    assert not our_threads()
    gc.collect()
    assert all(parameter() is None for parameter in weights)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


def test_close_can_be_called_twice_and_later_use_is_refused(tiny_llama_dir: Path) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min")
    streamed.close()
    streamed.close()
    with pytest.raises(ls.StreamClosedError, match="load it again"):
        streamed.generate(IDS)
    with pytest.raises(ls.StreamClosedError, match="load it again"):
        streamed.model(IDS)


def test_close_in_any_state_leaves_no_thread(tiny_llama_dir: Path) -> None:
    for num_forwards in range(3):
        streamed = ls.load(tiny_llama_dir, budget="min")
        for _ in range(num_forwards):
            streamed.model(IDS)
        streamed.close()
        assert not our_threads()


def test_close_in_the_middle_of_a_forward_ends_it_with_a_clear_error(tiny_llama_dir: Path) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min")
    streamed.model.model.layers[2].register_forward_pre_hook(lambda *_: streamed.close())
    with pytest.raises((ls.StreamClosedError, NotImplementedError, RuntimeError)):
        streamed.model(IDS)
    assert not our_threads()


def test_an_exception_inside_a_block_reaches_the_caller_and_the_next_forward_is_exact(
    tiny_llama_dir: Path, reference: torch.Tensor
) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        mlp = streamed.model.model.layers[2].mlp

        def fail(*_: object) -> None:
            raise ValueError("deep inside")

        handle = mlp.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="deep inside"):
            streamed.model(IDS)
        handle.remove()
        assert torch.is_grad_enabled()
        assert torch.equal(streamed.model(IDS).logits, reference)


def test_ctrl_c_in_the_middle_of_a_forward_leaves_a_usable_model(
    tiny_llama_dir: Path, reference: torch.Tensor
) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        handle = streamed.model.model.layers[3].register_forward_pre_hook(lambda *_: _thread.interrupt_main())
        with pytest.raises(KeyboardInterrupt):
            streamed.model(IDS)
            for _ in range(1000):  # the interrupt is delivered at the next bytecode boundary
                pass
        handle.remove()
        assert torch.equal(streamed.model(IDS).logits, reference)
        streamed.model(IDS)
    assert not our_threads()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["embed_tokens", "layers.2"])
def test_ctrl_c_with_weights_in_place_leaves_an_exact_model(
    tiny_llama_dir: Path, reference: torch.Tensor, name: str
) -> None:
    """The hooks after a module do not run then, and no gate is around a call of the backbone alone."""
    with ls.load(tiny_llama_dir, budget="min") as streamed, torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        handle = streamed.model.model.get_submodule(name).register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            streamed.model.model(IDS)
        handle.remove()
        other = IDS.flip(-1) + 20
        assert torch.equal(
            streamed.model.model(other).last_hidden_state, plain.model(other).last_hidden_state
        )
        assert torch.equal(streamed.model(IDS).logits, reference)


def test_ctrl_c_inside_generate_leaves_the_grad_mode_as_it_was(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        handle = streamed.model.model.layers[3].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            streamed.generate(IDS, max_new_tokens=2)
        handle.remove()
        assert torch.is_grad_enabled()
        streamed.model(IDS)
        assert torch.is_grad_enabled()


def test_a_second_threads_forward_waits_and_is_exact(tiny_llama_dir: Path, reference: torch.Tensor) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        results: list[torch.Tensor] = []
        threads = [
            threading.Thread(target=lambda: results.append(streamed.model(IDS).logits)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(results) == 3
    assert all(torch.equal(logits, reference) for logits in results)


def test_a_shard_that_shrinks_while_running_is_reported_and_recovered_from(
    checkpoint: Path, reference: torch.Tensor
) -> None:
    shard = last_shard(checkpoint)
    whole = shard.read_bytes()
    with ls.load(checkpoint, budget="min") as streamed:
        assert torch.equal(streamed.model(IDS).logits, reference)
        with shard.open("r+b") as file:
            file.truncate(len(whole) // 2)
        with pytest.raises(ls.ReadFailedError) as caught:
            for _ in range(2):  # units that were prefetched before are still valid
                streamed.model(IDS)
        assert caught.value.path == str(shard)
        assert caught.value.offset > 0
        assert pickle.loads(pickle.dumps(caught.value)).path == str(shard)
        shard.write_bytes(whole)
        assert torch.equal(streamed.model(IDS).logits, reference)
    assert not our_threads()


def test_a_checkpoint_removed_while_running_does_not_hang(checkpoint: Path, reference: torch.Tensor) -> None:
    with ls.load(checkpoint, budget="min") as streamed:
        streamed.model(IDS)
        shutil.rmtree(checkpoint)
        # The files are open, so they can still be read.
        assert torch.equal(streamed.model(IDS).logits, reference)


def test_budget_too_small_reports_needed_bytes_and_they_are_enough(
    tiny_llama_dir: Path, reference: torch.Tensor
) -> None:
    with pytest.raises(ls.BudgetTooSmallError) as caught:
        ls.load(tiny_llama_dir, budget="10 KiB")
    assert caught.value.needed_bytes > caught.value.budget_bytes == 10240
    with ls.load(tiny_llama_dir, budget=caught.value.needed_bytes) as streamed:
        assert torch.equal(streamed.model(IDS).logits, reference)


def test_operations_that_would_break_a_streamed_model_are_refused(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        with pytest.raises(ls.UnsupportedModelError, match=r"stay torch\.float32 on cpu"):
            streamed.model.half()
        with pytest.raises(ls.UnsupportedModelError, match=r"save_pretrained\(\) does not work"):
            streamed.model.save_pretrained(tmp_path)
        with pytest.raises(ls.UnsupportedModelError, match="choose device and dtype"):
            streamed.model.to(torch.float16)
        assert streamed.model.to("cpu") is streamed.model


def test_an_unknown_device_or_dtype_is_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(ls.PlanError, match="not a torch device"):
        ls.load(tiny_llama_dir, device="gpu7x")
    with pytest.raises(ls.PlanError, match="cannot run in dtype"):
        ls.load(tiny_llama_dir, dtype="int3")


def test_token_ids_outside_the_vocabulary_raise_the_error_that_torch_raises(tiny_llama_dir: Path) -> None:
    with (
        ls.load(tiny_llama_dir, budget="min") as streamed,
        pytest.raises(IndexError, match="outside the vocabulary"),
    ):
        streamed.model(torch.tensor([[1, 100_000]]))


def wait_for_no_thread() -> None:
    deadline_s = time.monotonic() + 10
    while our_threads() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not our_threads()


@pytest.mark.parametrize("host", ["min", "1 GiB"])
def test_a_model_that_is_dropped_without_close_is_closed(tiny_llama_dir: Path, host: str) -> None:
    runtime = FakeAsyncRuntime()
    budget = ls.MemoryBudget(device="min", host=host)
    streamed = ls.load(tiny_llama_dir, budget=budget, runtime=runtime)
    streamed.model(IDS)
    assert our_threads()
    assert runtime.registered
    del streamed
    gc.collect()
    wait_for_no_thread()
    gc.collect()
    assert not runtime.registered


@pytest.mark.parametrize("part", ["model", "model.model", "model.model.layers"])
def test_as_long_as_a_part_of_a_dropped_model_is_kept_it_streams(
    tiny_llama_dir: Path, reference: torch.Tensor, part: str
) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min")
    expected = streamed.model.model(IDS)[0]
    kept = operator.attrgetter(part)(streamed)
    backbone = kept if part == "model.model" else None
    del streamed
    gc.collect()
    if part == "model":
        assert torch.equal(kept(IDS).logits, reference)
    elif backbone is not None:
        assert torch.equal(backbone(IDS)[0], expected)
    assert our_threads()
    del kept, backbone
    gc.collect()
    wait_for_no_thread()


def test_after_close_nothing_is_kept_of_a_model(tiny_llama_dir: Path) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min")
    streamed.model(IDS)
    gone = [weakref.ref(streamed), weakref.ref(streamed.model), weakref.ref(streamed._prefetcher)]
    streamed.close()
    del streamed
    gc.collect()
    assert all(each() is None for each in gone)


@pytest.mark.parametrize("kind", [ls.Activity.READ, ls.Activity.COMPUTE])
def test_a_listener_that_raises_does_not_stop_the_reads(
    tiny_llama_dir: Path,
    reference: torch.Tensor,
    kind: ls.Activity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def listen(span: ls.Span) -> None:
        if span.activity is kind:
            raise ValueError("a listener of the test")

    with ls.load(tiny_llama_dir, budget="min") as streamed:
        unsubscribe = streamed.timeline.subscribe(listen)
        if kind is ls.Activity.READ:
            assert torch.equal(streamed.model(IDS).logits, reference)
            assert raised
        else:
            with pytest.raises(ValueError, match="a listener of the test"):
                streamed.model(IDS)
        unsubscribe()
        assert torch.equal(streamed.model(IDS).logits, reference)
