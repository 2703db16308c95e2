"""Write what was found: JSON with every round, Markdown with a table for each stage, and a plot for each."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

from peers.figures import Found, columns, disk_limit, overlapped_s, rows, targets

NOTES = (
    "**How.** Every peer runs in its own process, and in its own environment if it needs one. All use the "
    "same checkpoint, in its dtype (bf16 unless another is named), on the CPU, with greedy decoding. The "
    "peers take turns: each runs once per round, odd rounds in reverse order. Before every pass the page "
    "cache of the peer's files is dropped, which is not timed; llama.cpp gives its mapped pages up first. "
    "Under a memory limit, this is done before the first pass only. Seconds per token are the median of the "
    "passes after the first in a round, then the median of the rounds (least to most in brackets). Ratios "
    "are taken within each round, and their median is shown, so they can differ from the ratio of the "
    "medians in the table. AirLLM takes part in one round, with three tokens. GOMP_SPINCOUNT=10000 is set "
    "for all peers, so that torch's idle threads soon go to sleep while weights are read. The command "
    "`layerstream` sets it too; a Python program of your own does not unless you set it.",
    "**What is read.** The disk's speed is that of plain direct reads of the same files, cold, measured in "
    'every round by a reader that shares no code with layerstream. In the rows without "half resident", '
    "the peers read about all decoder blocks in every pass. oLLM and accelerate keep the embedding and the "
    "head in memory. layerstream gets the least budget with which it reads no more bytes than all blocks "
    "have; it may keep some layers and stream the head in their place, and can read less: see GB read. Half "
    "resident is the least budget with which it reads at most half as many; here, too, it can read less.",
    '**Memory.** "Own memory" is the peak of the process\'s anonymous memory, including the interpreter and '
    'libraries. "With mapped files" is the kernel\'s high-water mark: mapped weights and libraries count '
    "too, though the system may take their pages back. A second copy is what a peer writes to disk before "
    "it can run. GB read is what the kernel read from the disk for the process.",
    "**Tokens equal** counts the first tokens that equal those of plain transformers with everything in "
    "memory, each prompt alone. The weights are random, so two tokens are often almost equally likely: "
    "other kernels, or another shape of the batch, can then choose the other one.",
)


def write_files(
    stages: dict[str, Found], facts: dict[str, str], stem: Path, drawings: dict[str, str]
) -> None:
    """Write `stem`.json, .md and one .svg for each drawing."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": facts, "targets": targets(stages), "stages": stages}
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    for name, drawing in drawings.items():
        stem.with_name(f"{stem.name}_{name}.svg").write_text(drawing)
    stem.with_name(f"{stem.name}.md").write_text(as_markdown(stages, facts, stem.name, set(drawings)))


def read_stages(stem: Path) -> dict[str, Found]:
    """Return the stages of an earlier run with the same name; none without one."""
    path = stem.with_name(f"{stem.name}.json")
    stages: dict[str, Found] = json.loads(path.read_text())["stages"] if path.exists() else {}
    return stages


def as_markdown(stages: dict[str, Found], facts: dict[str, str], name: str, drawn: set[str]) -> str:
    """Return the report."""
    lines = ["# layerstream beside its peers", "", "## Targets", ""]
    lines += [f"- {line}" for line in targets(stages)] or ["- none of their stages was run"]
    for key, stage in stages.items():
        lines += ["", f"## {stage['title']}", ""]
        if key in drawn:
            lines += [f"![{stage['title']}]({name}_{key}.svg)", ""]
        heads = list(columns(stage))
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(row) + " |" for row in rows(stage)] + [""]
        lines += [_wrapped(line) for line in remarks(stage)]
    lines += ["", "## How this was measured", ""]
    lines += [line for note in NOTES for line in (_wrapped(note), "")]
    lines += ["| | |", "|---|---|", *(f"| {fact} | {value} |" for fact, value in facts.items())]
    plans = [
        (entry["load"]["plan"], stage["title"], case)
        for stage in stages.values()
        for case, entry in stage["cases"].items()
        if "plan" in entry.get("load", {})
    ]
    for plan, title, case in plans:
        lines += ["", f"Plan of {case} ({title}):", "", "```", plan, "```"]
    return "\n".join(lines) + "\n"


def remarks(stage: Found) -> list[str]:
    """Return what else belongs under a table: the disk's speed, plain transformers, the limit."""
    found = []
    if stage["bytes_per_s"]:
        rate = median(stage["bytes_per_s"])
        limit_s = median(disk_limit(stage, stage["block_bytes"]).values())
        found.append(
            f"The disk gave {rate / 1e9:.2f} GB/s: all decoder blocks ({stage['block_bytes'] / 1e9:.2f} GB) "
            f"take {limit_s:.3f} s."
        )
        if stage["routed_bytes"] < stage["block_bytes"]:
            share = stage["routed_bytes"] / stage["block_bytes"]
            found.append(
                f"The experts that one token is sent to, and what all tokens need, are {share:.0%} of that."
            )
    if "in_memory_seconds" in stage:
        seconds = median(stage["in_memory_seconds"][1:])
        found.append(f"Plain transformers with everything in memory took {seconds:.3f} s per token.")
    if stage.get("contention"):
        found.append(_contention_remark(stage))
    if stage["limit_bytes"]:
        found.append(
            f"Every process ran under a limit of {stage['limit_bytes'] / 1024**3:.2f} GiB, "
            "page cache included where the limit is a control group."
        )
    found.append(f"Load average before, the stage before it included: {stage['load_average_before']:.2f}.")
    return found


def _contention_remark(stage: Found) -> str:
    both = stage["contention"]
    return (
        "Reading and computing slow each other down here. While the disk was read, a pass with everything "
        f"in memory took {both['compute_while_reading_s']:.3f} s ({both['compute_s']:.3f} s alone); while it "
        f"computed, the disk gave {both['bytes_per_s_while_computing'] / 1e9:.2f} GB/s "
        f"({both['bytes_per_s'] / 1e9:.2f} GB/s alone). With these slowdowns, a pass that reads all blocks "
        f"while it computes would take about {overlapped_s(stage, stage['block_bytes']):.3f} s."
    )


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)


def print_stage(stage: Found, console: Any, table: Any) -> None:
    """Print one stage as a table."""
    for number, head in enumerate(columns(stage)):
        table.add_column(head, justify="right" if number else "left")
    for row in rows(stage):
        table.add_row(*row)
    console.print(table)
    for line in remarks(stage):
        console.print(line, highlight=False)
