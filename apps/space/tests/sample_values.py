"""Invented measurements, events and plans for tests of the views: complete, but nothing was measured."""

from __future__ import annotations

from typing import Any

from layerstream import (
    ActivationProfile,
    Granularity,
    LedgerKind,
    LedgerLine,
    Machine,
    MemoryLedger,
    MemoryTier,
    ModelProfile,
    PlacementPlan,
    Residency,
    SweepCost,
    UnitPlacement,
    UnitProfile,
    Workload,
)
from layerstream_compare import Agreement, Case, Event, Measurement, Memory, PhaseMemory, Timing
from layerstream_space.planner import PlanAnswer

MIB = 1024**2


def case(variant: str = "streamed", **changes: Any) -> Case:
    return Case(model="tiny", variant=variant, prompt="Hello", max_new_tokens=8).with_changes(**changes)


def measurement(
    of: Case,
    *,
    ids: tuple[int, ...] = (1, 2, 3),
    texts: tuple[str, ...] = ("The", " sky", " is"),
    **changes: Any,
) -> Measurement:
    held = {"streamed": 50, "resident": 250}.get(of.variant, 120) * MIB
    phases = (
        PhaseMemory(phase="load", anonymous_bytes=held, file_bytes=0, peak_bytes=held + 330 * MIB),
        PhaseMemory(phase="first-token", anonymous_bytes=held, file_bytes=0, peak_bytes=held + 400 * MIB),
    )
    fields: dict[str, Any] = {
        "status": "ok",
        "prompt_tokens": of.prompt_tokens or 12,
        "token_ids": ids,
        "token_texts": texts,
        "text": "".join(texts),
        "memory": Memory(
            baseline_bytes=300 * MIB,
            held_bytes=held,
            peak_over_baseline_bytes=held + 60 * MIB,
            load_spike_bytes=20 * MIB,
            phases=phases,
        ),
        "timing": timing(),
        "agreements": (agreement(),),
        "facts": {"margins": [0.9, 0.02, 0.6], "budget_bytes": 100 * MIB}
        if of.variant == "streamed"
        else {"margins": [0.5, 0.5, 0.5]},
    }
    return Measurement(case=of, **(fields | changes))


def on_device(of: Case, **changes: Any) -> Measurement:
    """Return a measurement of an accelerator: its own memory, and host memory."""
    device_held, host_held = {
        "streamed": (60, 84),
        "resident": (258, 0),
        "bnb-int8": (158, 0),
    }.get(of.variant, (112, 2))
    at_rest = {"anonymous_bytes": 900 * MIB, "file_bytes": 400 * MIB}
    device = {
        "device_allocated_bytes": (device_held + 26) * MIB,
        "device_reserved_bytes": (device_held + 46) * MIB,
    }
    loaded = {**at_rest, "shared_bytes": host_held * MIB, **device}
    phases = (
        PhaseMemory(phase="import", peak_bytes=1300 * MIB, **at_rest),
        PhaseMemory(phase="load", peak_bytes=(1600 + host_held) * MIB, **loaded),
        PhaseMemory(phase="warm-up", peak_bytes=(1311 + host_held) * MIB, **loaded),
        PhaseMemory(phase="decode", peak_bytes=(1312 + host_held) * MIB, **loaded),
    )
    memory = Memory(
        baseline_bytes=1300 * MIB,
        held_bytes=(device_held + host_held) * MIB,
        device_held_bytes=device_held * MIB,
        peak_over_baseline_bytes=(300 + host_held) * MIB,
        load_spike_bytes=300 * MIB,
        phases=phases,
    )
    return measurement(of, **({"memory": memory, "facts": device_facts(of)} | changes))


def device_facts(of: Case) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": "cuda:0", "margins": [0.9, 0.02, 0.6]}
    if of.variant != "streamed":
        return facts
    lines = (
        ("device", "slots", "slots", 40),
        ("device", "edges", "edges (norms, buffers)", 20),
        ("device", "activations", "activations", 18),
        ("host", "staging", "staging", 57),
        ("host", "embedding", "input embedding", 27),
    )
    return facts | {
        "ledger": [
            {"memory": where, "kind": kind, "purpose": purpose, "bytes": size * MIB}
            for where, kind, purpose, size in lines
        ],
        "budget_bytes": 100 * MIB,
        "host_budget_bytes": 84 * MIB,
        "sweep_read_bytes": 210 * MIB,
        "sweep_copy_bytes": 210 * MIB,
        "unquantized_weight_bytes": 257 * MIB,
    }


def timing(**changes: Any) -> Timing:
    fields: dict[str, Any] = {
        "load_s": 1.5,
        "first_forward_s": 0.4,
        "first_token_s": 0.35,
        "inter_token_median_s": 0.08,
        "inter_token_p95_s": 0.1,
        "tokens_per_s": 12.5,
        "cpu_s": 4.0,
        "bytes_read": 3 * 1024**3,
        "load_average": 0.3,
        "is_noisy": False,
    }
    return Timing(**(fields | changes))


def agreement(**changes: Any) -> Agreement:
    fields: dict[str, Any] = {
        "text": "answer",
        "positions": 8,
        "kl_mean": 0.0,
        "kl_p99": 0.0,
        "kl_max": 0.0,
        "reverse_kl_mean": 0.0,
        "reverse_kl_p99": 0.0,
        "reverse_kl_max": 0.0,
        "top1": 1.0,
        "top1_standard_error": 0.0,
        "max_logit_difference": 0.0,
        "perplexity_ratio": 1.0,
        "is_bit_exact": True,
    }
    return Agreement(**(fields | changes))


def event(of: Case, kind: str, **data: Any) -> Event:
    return Event(case=of, kind=kind, data=data)


def token(of: Case, number: int, text: str) -> Event:
    return event(of, "token", index=0, id=number, text=text)


def finished(result: Measurement) -> Event:
    return Event(case=result.case, kind="finished", data={}, measurement=result)


def plan(places: str = "D.H.") -> PlacementPlan:
    """Return a plan with one block per letter: D on the device, H in host memory, . on disk."""
    residencies = {"D": Residency.DEVICE, "H": Residency.HOST, ".": Residency.DISK}
    lines = (
        ledger_line(LedgerKind.RESIDENT_BLOCKS, MemoryTier.DEVICE, 8 * places.count("D")),
        ledger_line(LedgerKind.SLOTS, MemoryTier.DEVICE, 16),
        ledger_line(LedgerKind.KV_CACHE, MemoryTier.DEVICE, 4),
        ledger_line(LedgerKind.HOST_BLOCKS, MemoryTier.HOST, 8 * places.count("H")),
    )
    return PlacementPlan(
        model_name="/home/me/models/tiny",
        dtype="float16",
        device="cuda:0",
        devices=("cuda:0",),
        granularity=Granularity.BLOCK,
        units=tuple(
            UnitPlacement(
                name=f"layers.{index}",
                block=index,
                residency=residencies[letter],
                weight_bytes=8 * MIB,
                read_bytes=8 * MIB,
            )
            for index, letter in enumerate(places)
        ),
        num_slots=2,
        slot_bytes=8 * MIB,
        num_staging=2,
        embedding=Residency.DEVICE,
        head_slices=1,
        ledger=MemoryLedger(lines=lines, device_budget_bytes=64 * MIB, host_budget_bytes=64 * MIB),
        cost=SweepCost(
            read_bytes=16 * MIB,
            copy_bytes=24 * MIB,
            read_s=0.01,
            copy_s=0.01,
            compute_s=0.01,
            sweep_s=0.02,
            prefill_s=0.5,
            limited_by="disk",
        ),
    )


def ledger_line(kind: LedgerKind, where: MemoryTier, mebibytes: int) -> LedgerLine:
    return LedgerLine(kind=kind, where=where, num_bytes=mebibytes * MIB)


def profile() -> ModelProfile:
    """Return a profile of 16 Mi parameters in float16, 2 Mi of them outside the blocks."""
    block = UnitProfile(
        name="layers.0",
        block=0,
        weight_bytes=28 * MIB,
        slot_bytes=28 * MIB,
        host_bytes=28 * MIB,
        read_bytes=28 * MIB,
        num_parameters=14 * MIB,
    )
    return ModelProfile(
        name="/home/me/models/tiny",
        model_type="llama",
        dtype="float16",
        num_parameters=16 * MIB,
        blocks=(block,),
        edge_bytes=4 * MIB,
        activation=ActivationProfile(fixed_bytes=0, bytes_per_token=0.0),
    )


def answer(placement: PlacementPlan | None, *, device_bytes: int = 64 * MIB, reason: str = "") -> PlanAnswer:
    return PlanAnswer(
        plan=placement,
        reason=reason,
        profile=profile(),
        machine=Machine(device="cuda:0", device_memory_bytes=device_bytes, host_memory_bytes=64 * MIB),
        workload=Workload(),
    )
