"""Invented measurements, events and plans for tests of the views: complete, but nothing was measured."""

from __future__ import annotations

from typing import Any

from layerstream_compare import Agreement, Case, Event, Measurement, Memory, PhaseMemory, Timing

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


def plan(places: str = "D.H.") -> dict[str, Any]:
    kinds = {"D": "device", "H": "host", ".": "disk"}
    units = [
        {
            "name": f"layers.{index}",
            "block": index,
            "residency": kinds[letter],
            "weight_bytes": 8 * MIB,
            "read_bytes": 8 * MIB,
        }
        for index, letter in enumerate(places)
    ]
    lines = [
        {"purpose": "resident blocks", "where": "device", "num_bytes": 8 * MIB * places.count("D")},
        {"purpose": "slots", "where": "device", "num_bytes": 16 * MIB},
        {"purpose": "KV cache", "where": "device", "num_bytes": 4 * MIB},
        {"purpose": "blocks in host memory", "where": "host", "num_bytes": 8 * MIB * places.count("H")},
    ]
    return {
        "model_name": "/home/me/models/tiny",
        "dtype": "float16",
        "device": "cuda:0",
        "granularity": "block",
        "units": units,
        "num_slots": 2,
        "slot_bytes": 8 * MIB,
        "num_staging": 2,
        "embedding": "device",
        "head_slices": 1,
        "ledger": {"lines": lines, "device_budget_bytes": 64 * MIB, "host_budget_bytes": 64 * MIB},
        "cost": {
            "read_bytes": 16 * MIB,
            "copy_bytes": 24 * MIB,
            "read_s": 0.01,
            "copy_s": 0.01,
            "compute_s": 0.01,
            "sweep_s": 0.02,
            "prefill_s": 0.5,
            "limited_by": "disk",
        },
    }


def answer(
    plan_record: dict[str, Any] | None, *, device_bytes: int = 64 * MIB, why_not: str = ""
) -> dict[str, Any]:
    parameters = 16 * MIB
    sizes = {"float32": 4.0, "float16": 2.0, "8-bit": 1.0, "4-bit": 0.5, "3-bit": 0.375, "2-bit": 0.25}
    return {
        "plan": plan_record,
        "why_not": why_not,
        "least_bytes": 20 * MIB,
        "model": {
            "name": "/home/me/models/tiny",
            "type": "llama",
            "dtype": "float16",
            "parameters": parameters,
            "weight_bytes": 2 * parameters,
            "quantized_parameters": parameters - 2 * MIB,
            "kept_bytes": 4 * MIB,
            "bytes_by_precision": {name: int(size * parameters) for name, size in sizes.items()},
            "blocks": 4,
        },
        "machine": {"device_memory_bytes": device_bytes},
    }
