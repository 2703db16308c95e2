"""On a real accelerator a streamed model equals the resident one, within its ledger; skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.spec.plans import LedgerKind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]

WORKLOAD = ls.Workload(batch_size=2, prompt_tokens=12, new_tokens=8)
IDS = torch.arange(4, 28).reshape(2, 12)
PLENTY = "2 GiB"
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture
def device() -> Iterator[str]:
    found = torch.accelerator.current_accelerator()
    assert found is not None
    yield str(found)
    torch.get_device_module(found).empty_cache()


def budget_called(name: str, path: Path, device: str, dtype: str) -> ls.MemoryBudget:
    """Return the device budget `min` or halfway to resident; with `from host`, host memory holds the rest."""
    least, most = (
        ls.plan(path, budget=size, device=device, dtype=dtype, workload=WORKLOAD).ledger.device_bytes
        for size in ("min", PLENTY)
    )
    return ls.MemoryBudget(
        device=(least + most) // 2 if name == "mixed" else least,
        host=PLENTY if name == "min from host" else "min",
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["min", "min from host", "mixed"])
def test_streamed_equals_resident_on_the_device(
    tiny_llama_dir: Path, device: str, name: str, dtype: str
) -> None:
    ids = IDS.to(device)
    resident = (
        AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=getattr(torch, dtype)).to(device).eval()
    )
    with torch.no_grad():
        logits = resident(ids).logits
        rows = resident.generate(ids, max_new_tokens=8, do_sample=False)
    budget = budget_called(name, tiny_llama_dir, device, dtype)
    with ls.load(tiny_llama_dir, budget=budget, device=device, dtype=dtype, workload=WORKLOAD) as streamed:
        assert not streamed.plan.is_resident
        for _ in range(3):
            assert torch.equal(streamed(ids).logits, logits)
        assert torch.equal(streamed.generate(ids, max_new_tokens=8, do_sample=False), rows)


@pytest.mark.parametrize("name", ["min", "mixed"])
def test_the_device_peak_stays_below_the_ledger(tiny_llama_dir: Path, device: str, name: str) -> None:
    module = torch.get_device_module(device)
    if not hasattr(module, "max_memory_allocated"):
        pytest.skip(f"torch counts no memory on {device}")
    before_bytes = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    budget = budget_called(name, tiny_llama_dir, device, "float16")
    with ls.load(
        tiny_llama_dir, budget=budget, device=device, dtype="float16", workload=WORKLOAD
    ) as streamed:
        ledger = streamed.plan.ledger
        runtime_bytes = sum(line.num_bytes for line in ledger.lines if line.kind is LedgerKind.RUNTIME)
        # no library has allocated its workspace yet: only weights and slots are allocated now
        assert module.memory_allocated(device) - before_bytes <= ledger.device_bytes - runtime_bytes
        streamed.generate(IDS.to(device), max_new_tokens=8, do_sample=False)
        assert module.max_memory_allocated(device) - before_bytes <= ledger.device_bytes


def devices_for_replicas(device: str) -> list[str]:
    """Return every device of this kind; a single one twice, so that it has two replicas."""
    kind = torch.device(device).type
    module = torch.get_device_module(kind)
    count = module.device_count() if hasattr(module, "device_count") else 1
    return [f"{kind}:{number}" for number in range(count)] if count > 1 else [device, device]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("host", ["min", PLENTY])
def test_every_device_equals_the_resident_model_with_shared_reads(
    tiny_llama_dir: Path, device: str, host: str, dtype: str
) -> None:
    devices = devices_for_replicas(device)
    resident = (
        AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=getattr(torch, dtype))
        .to(devices[0])
        .eval()
    )
    rows = resident.generate(IDS.to(devices[0]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    budget = ls.MemoryBudget(device="min", host=host)

    def generate(replica: ls.Replica) -> torch.Tensor:
        ids = IDS.to(replica.device)
        return replica.model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)

    with ls.load(tiny_llama_dir, devices=devices, budget=budget, dtype=dtype, workload=WORKLOAD) as streamed:
        assert not streamed.plan.is_resident
        for found in streamed.run_on_devices(generate):
            assert torch.equal(found.cpu(), rows.cpu())
        report = streamed.report()
    if host == "min":
        most = 8 * sum(unit.read_bytes for unit in streamed.plan.units)
        ahead = 2 * streamed.plan.num_slots * max(unit.read_bytes for unit in streamed.plan.units)
        rows_bytes = len(devices) * 2 * (12 + 8) * 64 * 4
        assert report.bytes_read <= most + ahead + rows_bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["min", "min from host", "mixed"])
def test_streamed_units_equal_resident_copies_within_the_ledger(
    tiny_llama_dir: Path, device: str, name: str, dtype: str
) -> None:
    module = torch.get_device_module(device)
    before_bytes = module.memory_allocated(device) if hasattr(module, "memory_allocated") else 0
    budget = budget_called(name, tiny_llama_dir, device, dtype)
    with ls.load(tiny_llama_dir, budget=budget, device=device, dtype=dtype, workload=WORKLOAD) as streamed:
        assert streamed.plan.is_bit_exact
        streamed.verify()
        if hasattr(module, "reset_peak_memory_stats"):
            module.reset_peak_memory_stats(device)
        report = streamed.verify()
        assert report.is_equal, report.explain()
        assert len(report.units) > 3
        if hasattr(module, "max_memory_allocated"):
            peak_bytes = module.max_memory_allocated(device) - before_bytes
            assert peak_bytes <= streamed.plan.ledger.device_bytes
