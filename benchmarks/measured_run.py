"""Run one streamed generation in a process of its own, under a memory limit, and count its memory by phase.

Other scripts run it: `python measured_run.py '<json>'` prints one line of JSON. The process enters its limit
before it imports anything large. The baseline is what the interpreter and its libraries take before the model
is opened.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from memory_limit import Limit, limited

PHASES = ("imports", "load", "first sweeps", "later sweeps")


def measure(spec: dict[str, Any], limit_bytes: int | None) -> dict[str, Any]:
    """Run `spec` in a child under `limit_bytes` and return its figures; `ended` says how it ended.

    Args:
        spec: `model` (a directory), `budget` (bytes, "min", or "rest": the limit minus the baseline),
            `prompt_tokens`, `new_tokens` and `repeats`.
        limit_bytes: the limit on the whole child; None for no limit.
    """
    with limited(limit_bytes) as limit:
        request = json.dumps({**spec, "limit": asdict(limit)})
        command = [sys.executable, __file__, request]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        figures = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        ended = "to the end" if done.returncode == 0 else f"exit status {done.returncode}"
        return {
            **figures,
            "ended": ended,
            "limit_kind": limit.kind,
            "limit_bytes": limit_bytes,
            "group_peak_bytes": limit.peak_bytes(),
        }


def memory_status() -> dict[str, int]:
    """Return this process's high-water mark and its resident, anonymous and file-backed memory in bytes."""
    names = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0][:-1] in names}


def reset_high_water() -> None:
    """Reset the high-water mark to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    # the limit must hold from the start, so large libraries are imported here
    import torch  # noqa: PLC0415

    import layerstream as ls  # noqa: PLC0415

    # a name is imported when it is first used, and `load` brings transformers
    load = ls.load
    reset_high_water()
    phases = {"imports": memory_status()}
    budget = spec["budget"]
    if budget == "rest":
        budget = spec["limit"]["num_bytes"] - phases["imports"]["VmRSS"]
    workload = ls.Workload(prompt_tokens=spec["prompt_tokens"], new_tokens=spec["new_tokens"])
    seconds = []
    with load(spec["model"], device="cpu", budget=budget, workload=workload) as streamed:
        phases["load"] = memory_status()
        ids = torch.arange(3, 3 + spec["prompt_tokens"]).reshape(1, -1) % streamed.profile.vocab_size
        for number in range(spec["repeats"]):
            start_s = perf_counter()
            streamed.generate(
                input_ids=ids,
                max_new_tokens=spec["new_tokens"],
                min_new_tokens=spec["new_tokens"],
                do_sample=False,
            )
            seconds.append(perf_counter() - start_s)
            phases["later sweeps" if number else "first sweeps"] = memory_status()
        plan, report = streamed.plan, streamed.report()
    return {
        "phases": phases,
        "seconds": seconds,
        "ledger": {line.kind.value: line.num_bytes for line in plan.ledger.lines},
        "ledger_bytes": plan.ledger.device_bytes,
        "budget_bytes": plan.ledger.device_budget_bytes,
        "plan": plan.explain(),
        "report": report.to_dict(),
    }


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    Limit(**request["limit"]).enter()
    print(json.dumps(_run(request)))
