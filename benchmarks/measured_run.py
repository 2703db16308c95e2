"""One streamed generation in a process of its own, under a memory bound, with its memory counted phase by phase.

Run by the other files here: `python measured_run.py '<json>'`; prints one line of JSON. The bound is entered before anything large
is imported; the baseline is what the interpreter and its libraries take before the model is opened.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from memory_limit import Limit, limited

PHASES = ("imports", "load", "first sweeps", "later sweeps")


def measure(spec: dict[str, Any], limit_bytes: int | None) -> dict[str, Any]:
    """Run `spec` in a child under `limit_bytes` and return what it found; `ended` says how it ended.

    Args:
        spec: `model` (a directory), `budget` (bytes, "min", or "rest": the bound less the baseline), `prompt_tokens`,
            `new_tokens` and `repeats`.
        limit_bytes: the bound on the whole child; None for none.
    """
    with limited(limit_bytes) as limit:
        given = json.dumps(
            {**spec, "limit": {"kind": limit.kind, "num_bytes": limit.num_bytes, "group": limit.group}}
        )
        done = subprocess.run(
            [sys.executable, __file__, given], stdout=subprocess.PIPE, text=True, check=False
        )
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        ended = "to the end" if done.returncode == 0 else f"exit status {done.returncode}"
        return {
            **found,
            "ended": ended,
            "limit_kind": limit.kind,
            "limit_bytes": limit_bytes,
            "group_peak_bytes": limit.peak_bytes(),
        }


def memory_status() -> dict[str, int]:
    """Return this process' high-water mark and its resident, anonymous and file-backed memory in bytes."""
    names = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0][:-1] in names}


def reset_high_water() -> None:
    """Let the high-water mark start from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    # the bound must hold from the start, so what is large is imported here
    import torch  # noqa: PLC0415

    import layerstream as ls  # noqa: PLC0415

    reset_high_water()
    phases = {"imports": memory_status()}
    budget = spec["budget"]
    if budget == "rest":
        budget = spec["limit"]["num_bytes"] - phases["imports"]["VmRSS"]
    workload = ls.Workload(prompt_tokens=spec["prompt_tokens"], new_tokens=spec["new_tokens"])
    seconds = []
    with ls.load(spec["model"], device="cpu", budget=budget, workload=workload) as streamed:
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
    asked = json.loads(sys.argv[1])
    Limit(**asked["limit"]).enter()
    print(json.dumps(_run(asked)))
