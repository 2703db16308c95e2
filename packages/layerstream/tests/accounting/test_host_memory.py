"""The ledger's host lines, checked against what the driver pins and against the kernel's own figures."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import layerstream as ls
from layerstream import opening
from layerstream.engine import build as engine_build
from layerstream.engine.inspect import ModelSpec
from layerstream.spec.plans import LedgerKind
from layerstream.streaming.host_arena import HostArena
from layerstream.testing import FakeAsyncRuntime

IDS = torch.arange(1, 13).reshape(2, 6)
WORKLOAD = ls.Workload(batch_size=2, prompt_tokens=6, new_tokens=2)
PINNED_KINDS = (LedgerKind.HOST_BLOCKS, LedgerKind.STAGING, LedgerKind.EMBEDDING)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 10 blocks of 31 MB, with sizes that are no powers of two."""
    config = LlamaConfig(
        hidden_size=1280,
        intermediate_size=3000,
        num_hidden_layers=10,
        num_attention_heads=10,
        num_key_value_heads=5,
        vocab_size=3000,
    )
    directory = tmp_path_factory.mktemp("host")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def host_bytes(plan: ls.PlacementPlan, *kinds: LedgerKind) -> int:
    return sum(
        line.num_bytes
        for line in plan.ledger.lines
        if line.where is ls.MemoryTier.HOST and (not kinds or line.kind in kinds)
    )


@pytest.mark.parametrize("host", ["min", "100 MiB", "1 GiB"])
def test_the_driver_pins_what_the_ledger_says(checkpoint: Path, host: str) -> None:
    runtime = FakeAsyncRuntime(lag_s=0.0)
    budget = ls.MemoryBudget(device="min", host=host)
    with ls.load(checkpoint, budget=budget, runtime=runtime, workload=WORKLOAD) as streamed:
        streamed.model(IDS)
        predicted_bytes = host_bytes(streamed.plan, *PINNED_KINDS)
        assert runtime.most_registered_bytes <= predicted_bytes <= streamed.plan.ledger.host_budget_bytes
        assert runtime.most_registered_bytes == pytest.approx(predicted_bytes, rel=0.02)
    assert not runtime.registered


def test_where_the_driver_refuses_units_pass_through_pinned_staging_buffers(checkpoint: Path) -> None:
    budget = ls.MemoryBudget(device="min", host="1 GiB")
    with ls.load(checkpoint, budget=budget, runtime=FakeAsyncRuntime(), workload=WORKLOAD) as streamed:
        expected = streamed.model(IDS).logits
        staging_bytes = 2 * streamed.plan.slot_bytes + 16384
    runtime = FakeAsyncRuntime(pin_limit_bytes=staging_bytes)
    with pytest.warns(UserWarning, match="only the staging buffers are pinned"):
        streamed = ls.load(checkpoint, budget=budget, runtime=runtime, workload=WORKLOAD)
    with streamed:
        assert "not pinned" in streamed.plan.explain()
        assert streamed.plan.count(ls.Residency.DISK) == 0
        for _ in range(3):
            assert torch.equal(streamed.model(IDS).logits, expected)
        assert streamed.report().bytes_read == 0
        predicted_bytes = host_bytes(streamed.plan, LedgerKind.STAGING)
        assert runtime.most_registered_bytes == pytest.approx(predicted_bytes, rel=0.02)
    assert not runtime.registered


def test_before_the_second_try_nothing_of_the_first_is_left(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas: list[weakref.ref[HostArena]] = []
    models: list[weakref.ref[torch.nn.Module]] = []
    load_on = opening._load_on

    def remember(spec: ModelSpec, *args: object, **kwargs: object) -> ls.StreamedModel:
        assert all(each() is None for each in (*arenas, *models))
        models.append(weakref.ref(spec.model))
        return load_on(spec, *args, **kwargs)

    class RememberedArena(HostArena):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            arenas.append(weakref.ref(self))

    monkeypatch.setattr(opening, "_load_on", remember)
    monkeypatch.setattr(engine_build, "HostArena", RememberedArena)
    budget = ls.MemoryBudget(device="min", host="1 GiB")
    runtime = FakeAsyncRuntime(pin_limit_bytes=100_000_000)
    with pytest.warns(UserWarning, match="only the staging buffers are pinned"):
        ls.load(checkpoint, budget=budget, runtime=runtime, workload=WORKLOAD).close()
    assert len(models) == 2


@pytest.mark.parametrize("device", ["min", "150 MiB", "1 GiB"])
def test_the_least_host_budget_is_what_the_ledger_says(checkpoint: Path, device: str) -> None:
    machine = ls.Machine(device="cuda:0", device_memory_bytes=2**34, host_memory_bytes=2**34)
    plan = ls.plan(checkpoint, budget=ls.MemoryBudget(device=device, host="min"), machine=machine)
    least_bytes = plan.ledger.host_budget_bytes
    assert plan.ledger.host_bytes == least_bytes
    with pytest.raises(ls.BudgetTooSmallError):
        ls.plan(checkpoint, budget=ls.MemoryBudget(device=device, host=least_bytes - 1), machine=machine)


@pytest.mark.filterwarnings("ignore:the fake driver pins")
def test_where_not_even_staging_buffers_can_be_pinned_loading_says_so(checkpoint: Path) -> None:
    runtime = FakeAsyncRuntime(pin_limit_bytes=4096)
    with pytest.raises(ls.StreamError, match="pins at most 4096"):
        ls.load(checkpoint, budget="min", runtime=runtime, workload=WORKLOAD)
    assert not runtime.registered


GROW = """
import gc, sys, torch
import layerstream as ls
from layerstream.engine.peak_memory import held_host_bytes
from layerstream.machine import trim_malloc
from layerstream.testing import FakeAsyncRuntime
path, host = sys.argv[1:]
workload = ls.Workload(prompt_tokens=6, new_tokens=2)
def load():
    budget = ls.MemoryBudget(device="min", host=host)
    return ls.load(path, budget=budget, runtime=FakeAsyncRuntime(lag_s=0.0), workload=workload)
with load() as streamed:  # what libraries keep after their first use of these shapes: kernels, mostly
    streamed.model(torch.arange(6)[None])
gc.collect()
trim_malloc()
before_bytes = held_host_bytes(FakeAsyncRuntime())
with load() as streamed:
    streamed.model(torch.arange(6)[None])
    lines = streamed.plan.ledger.lines
    # the fake device's memory is host memory too; its runtime and the forward take next to nothing here
    held = [line for line in lines if line.kind.value not in ("runtime", "activations", "conversion")]
    print(held_host_bytes(FakeAsyncRuntime()) - before_bytes, sum(line.num_bytes for line in held))
    print(streamed.report().peak_host_bytes)
"""


@pytest.mark.parametrize("host", ["100 MiB", "1 GiB"])
def test_the_process_grows_by_what_the_ledger_says(checkpoint: Path, host: str) -> None:
    command = [sys.executable, "-c", GROW, str(checkpoint), host]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    grown_bytes, predicted_bytes, reported_bytes = map(int, done.stdout.split())
    assert grown_bytes == pytest.approx(predicted_bytes, rel=0.02)
    assert reported_bytes == pytest.approx(grown_bytes, rel=0.02)


LOAD = """
import sys, torch
import layerstream as ls
from layerstream.testing import FakeAsyncRuntime
tiny, path = sys.argv[1:]
workload = ls.Workload(prompt_tokens=6, new_tokens=2)
def load(path):
    return ls.load(path, budget="4 GiB", runtime=FakeAsyncRuntime(lag_s=0.0), workload=workload)
def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
with load(tiny) as streamed:  # what libraries keep after their first use
    streamed.model(torch.arange(6)[None])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark starts again
before_bytes = peak_bytes()
with load(path) as streamed:
    assert streamed.plan.is_resident
    lines = streamed.plan.ledger.lines
    held = [line for line in lines if line.kind.value not in ("runtime", "activations", "conversion")]
    print(peak_bytes() - before_bytes, sum(line.num_bytes for line in held))
"""


def test_loading_weights_that_stay_on_the_device_takes_no_host_memory_of_its_own(
    checkpoint: Path, tiny_llama_dir: Path
) -> None:
    command = [sys.executable, "-c", LOAD, str(tiny_llama_dir), str(checkpoint)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    peak_bytes, predicted_bytes = map(int, done.stdout.split())
    assert peak_bytes == pytest.approx(predicted_bytes, rel=0.02)
