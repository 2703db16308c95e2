"""Several devices share the reads: each gives the plain model's results bit for bit; units are read once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.budgets import BUDGETS, load
from kit.compare import ReferenceResults, assert_equals_reference, compute_reference, reference
from kit.families import save_tiny

import layerstream as ls

FAMILIES = (
    "llama",
    "gpt2",
    "bloom",
    "mixtral",
    "gemma2",
    "qwen3_moe",
    "deepseek_v3",
    "zamba2",
    "mamba2",
    "llama_tied",
)
PROGRAMS = (("logits", "greedy", "beam"), ("static_cache", "hidden_states", "greedy", "logits"))
"""What each replica computes: different things, in different orders and numbers of sweeps."""
NEEDED = sorted({name for program in PROGRAMS for name in program})


def computing(results: ReferenceResults, what: str) -> Callable[[ls.Replica], None]:
    def work(replica: ls.Replica) -> None:
        program = PROGRAMS[replica.index % 2]
        assert_equals_reference(replica.model, results, program, f"{what}, replica {replica.index}")

    return work


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, "float32") for family in FAMILIES), *((family, "bfloat16") for family in FAMILIES[:5])],
)
def test_each_replica_equals_the_plain_model_in_every_bit(family: str, dtype: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, getattr(torch, dtype))
    results = compute_reference(reference(path, getattr(torch, dtype)), NEEDED)
    for budget in BUDGETS:
        with load(path, dtype, budget, replicas=2) as streamed:
            assert len({id(replica.model) for replica in streamed.replicas}) == 2
            streamed.run_on_devices(computing(results, f"{family} {dtype} at {budget}"))
            if budget == "min":
                # once more, after works of unequal length; and one replica after the other
                streamed.run_on_devices(computing(results, f"{family} {dtype} at {budget}, again"))
                for replica in streamed.replicas:
                    assert_equals_reference(
                        replica.model,
                        results,
                        ("logits",),
                        f"{family} {dtype} at {budget}, replica {replica.index} alone",
                    )


def test_replicas_used_from_user_threads_are_exact(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    results = compute_reference(reference(path), NEEDED)
    with load(path, "float32", "min", replicas=3) as streamed:
        failed: list[BaseException] = []

        def run(index: int) -> None:
            try:
                computing(results, "user threads")(streamed.replicas[index])
            except BaseException as error:  # noqa: BLE001 - the test checks it
                failed.append(error)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert not any(thread.is_alive() for thread in threads)
        assert not failed


def test_chunked_prefill_works_on_every_replica(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    workload = ls.Workload(batch_size=2, prompt_tokens=12, new_tokens=4, prefill_chunk_tokens=4)
    ids = torch.arange(5, 29).reshape(2, 12)
    with ls.load(path, devices=["cpu", "cpu"], budget="min", workload=workload) as streamed:
        one, other = streamed.run_on_devices(lambda replica: replica.model(ids).logits)
        assert torch.equal(one, other)
    with ls.load(path, device="cpu", budget="min", workload=workload) as streamed:
        assert torch.equal(streamed(ids).logits, one)


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_several_replicas_read_the_disk_once(family: str, replicas: int, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path)
    ids = torch.arange(5, 29).reshape(2, 12)

    def bytes_read(count: int) -> tuple[int, int]:
        """Return the bytes read for units, and the bytes that may be prefetched for a seventh sweep."""
        with load(path, "float32", "min", replicas=count) as streamed:
            streamed.run_on_devices(
                lambda replica: replica.model.generate(
                    ids, max_new_tokens=6, min_new_tokens=6, do_sample=False
                )
            )
            report, reader_bytes = streamed.report(), streamed._reader.bytes_read
            # each replica looks up the embedding rows of its own tokens
            rows_bytes = sum(control.bytes_looked_up for control in streamed._controls)
            assert (report.sweeps, rows_bytes > 0) == (6, family == "llama")
            prefetched = max(unit.read_bytes for unit in streamed.plan.units) * 2 * streamed.plan.num_slots
            assert rows_bytes < report.bytes_read <= reader_bytes
            return reader_bytes - rows_bytes, prefetched

    alone, prefetched = bytes_read(1)
    shared, _ = bytes_read(replicas)
    assert alone > 3 * prefetched
    assert abs(shared - alone) <= prefetched


def test_replicas_on_the_cpu_share_resident_weights(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    with load(path, "float32", "resident", replicas=2) as streamed:
        first, second = (dict(replica.model.named_parameters()) for replica in streamed.replicas)
        assert first.keys() == second.keys()
        assert all(first[name].data_ptr() == second[name].data_ptr() for name in first)
        assert not any(first[name] is second[name] for name in first)
