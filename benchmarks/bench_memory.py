"""Memory: the peak against the ledger, and a run that finishes inside 40 % of the weights.

Each case is a process of its own. The peak is the kernel's high-water mark minus the baseline: what the
interpreter and its imported libraries take before the model is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import (
    MIB,
    Outcome,
    arguments,
    environment,
    publish,
    verdict,
    work_directory,
)
from measured_run import measure
from random_llama import HALF_GB, ONE_AND_A_HALF_GB, SMALL, LlamaShape, write_llama

SHARE = 0.4
NOTES = [
    "Limit: on the whole child process, interpreter included, and page cache included where it is a control "
    "group. The budget given to layerstream is the limit minus the child's resident memory after its "
    "imports. Where 40 % of the weights would not even hold the interpreter, no limit is set, and the "
    "budget itself is 40 % of the weights.",
    "Peak: VmHWM, reset after the imports, minus the resident memory at that time. 'Code' is the "
    "file-backed part of the growth: pages of torch's libraries that are touched for the first time. 'Load' "
    "is the anonymous growth after loading, minus the ledger's lines for what is allocated by then.",
]


def main() -> int:
    options = arguments(__doc__)
    outcome = Outcome(
        theme="memory",
        title="Peak memory against the ledger, MiB",
        columns=(
            "case",
            "weights",
            "limit",
            "budget",
            "ledger",
            "peak",
            "peak / ledger",
            "code",
            "load",
            "group's peak",
            "ended",
        ),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        shapes = {"0.2 GB": SMALL} if options.quick else {"0.6 GB": HALF_GB, "1.8 GB": ONE_AND_A_HALF_GB}
        for name, shape in shapes.items():
            directory = write_llama(work / name.replace(" ", ""), shape)
            for prompt_tokens in (16, 512):
                _add(outcome, f"{name}, prompt {prompt_tokens}", _case(directory, shape, prompt_tokens))
        outcome.figures["cases"] = {
            row[0]: case for row, case in zip(outcome.rows, outcome.figures.pop("list"), strict=True)
        }
    return publish(outcome, options, facts)


def _case(directory: Path, shape: LlamaShape, prompt_tokens: int) -> dict[str, Any]:
    share_bytes = int(SHARE * shape.weight_bytes)
    fits = share_bytes > 600 * MIB
    spec = {
        "model": str(directory),
        "budget": "rest" if fits else share_bytes,
        "prompt_tokens": prompt_tokens,
        "new_tokens": 16,
        "repeats": 3,
    }
    return {"weight_bytes": shape.weight_bytes, **measure(spec, share_bytes if fits else None)}


def _add(outcome: Outcome, name: str, found: dict[str, Any]) -> None:
    outcome.figures.setdefault("list", []).append(found)
    if "phases" not in found:
        outcome.rows.append((name, *["-"] * (len(outcome.columns) - 2), found["ended"]))
        outcome.verdicts.append(f"MISSED: {name}: {found['ended']}")
        return
    phases = found["phases"]
    base, last = phases["imports"], phases["later sweeps"]
    peak_bytes = max(phase["VmHWM"] for phase in phases.values()) - base["VmRSS"]
    ledger_bytes = sum(found["ledger"].get(kind, 0) for kind in LOADED_KINDS)
    load_bytes = phases["load"]["RssAnon"] - base["RssAnon"] - ledger_bytes
    sizes = (
        found["weight_bytes"],
        found["limit_bytes"],
        found["budget_bytes"],
        found["ledger_bytes"],
        peak_bytes,
    )
    ratio = peak_bytes / found["ledger_bytes"]
    rest = (last["RssFile"] - base["RssFile"], load_bytes, found["group_peak_bytes"])
    outcome.rows.append((name, *map(_mib, sizes), f"{ratio:.3f}", *map(_mib, rest), found["ended"]))
    outcome.verdicts.append(verdict(f"{name}: peak / ledger, upwards", ratio, 1.05))
    outcome.verdicts.append(verdict(f"{name}: peak / ledger, downwards", ratio, 0.95, at_most=False))
    outcome.verdicts.append(verdict(f"{name}: peak / budget", peak_bytes / found["budget_bytes"], 1.0))


LOADED_KINDS = ("edges", "embedding", "head", "resident_blocks", "slots", "read_buffers")
"""Kinds of ledger lines that are in memory before the first forward."""


def _mib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / MIB:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
