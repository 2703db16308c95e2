"""Scale: a checkpoint in the shape of Llama-2-70B, 138 GB in fp16, generates two tokens on a CPU in 16 GiB.

The weights in its files are holes: they take no disk space and read as zeros, but are read and multiplied as
usual.
"""

from __future__ import annotations

from dataclasses import replace

from common import (
    GIB,
    Outcome,
    arguments,
    environment,
    publish,
    verdict,
    work_directory,
)
from measured_run import measure
from random_llama import LLAMA_70B, write_llama

LIMIT_BYTES = 16 * GIB
NOTES = [
    "The limit is on the whole process (a control group where we may create one, page cache counted). The "
    "budget given to layerstream is the limit minus the process's resident memory after its imports. Holes "
    "are read through the same O_DIRECT path as data, but the disk moves nothing: the time is that of the "
    "arithmetic and of clearing pages, and says nothing about a disk. The first token takes the prefill's "
    "sweep, every further one a decode sweep.",
]


def main() -> int:
    options = arguments(__doc__)
    shape = replace(LLAMA_70B, num_blocks=2) if options.quick else LLAMA_70B
    limit_bytes = 4 * GIB if options.quick else LIMIT_BYTES
    outcome = Outcome(
        theme="scale",
        title=f"{shape.weight_bytes / 1e9:.1f} GB of weights inside {limit_bytes / GIB:.0f} GiB",
        columns=("", ""),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", shape, sparse=True)
        spec = {"model": str(directory), "budget": "rest", "prompt_tokens": 4, "new_tokens": 2, "repeats": 1}
        found = measure(spec, limit_bytes)
    outcome.figures = found
    outcome.rows = [
        ("ended", found["ended"]),
        ("limit", f"{limit_bytes / GIB:.2f} GiB ({found['limit_kind']})"),
    ]
    if "phases" in found:
        _add(outcome, limit_bytes)
    return publish(outcome, options, facts)


def _add(outcome: Outcome, limit_bytes: int) -> None:
    found = outcome.figures
    peak_bytes = max(phase["VmHWM"] for phase in found["phases"].values())
    group_bytes = found["group_peak_bytes"]
    report = found["report"]
    outcome.rows += [
        ("two tokens", f"{found['seconds'][0]:.1f} s"),
        ("read", f"{report['bytes_read'] / 1e9:.1f} GB in {report['sweeps']} sweeps"),
        ("computing / waiting", f"{report['compute_s']:.1f} s / {report['wait_s']:.1f} s"),
        ("peak of the process", f"{peak_bytes / GIB:.3f} GiB"),
        ("peak of the group", "-" if group_bytes is None else f"{group_bytes / GIB:.3f} GiB"),
        (
            "ledger and baseline",
            f"{(found['ledger_bytes'] + found['phases']['imports']['VmRSS']) / GIB:.3f} GiB",
        ),
    ]
    outcome.verdicts = [verdict("peak / limit", (group_bytes or peak_bytes) / limit_bytes, 1.0)]
    outcome.notes = [*outcome.notes, "The plan:\n\n```\n" + found["plan"] + "\n```"]


if __name__ == "__main__":
    raise SystemExit(main())
