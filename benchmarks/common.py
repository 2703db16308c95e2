"""Share what all benchmarks need: a cold page cache, interleaved rounds, the environment, result files.

It does not know layerstream: each benchmark's own file says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from cold_files import drop_page_cache as drop_page_cache
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "layerstream",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "bitsandbytes",
    "torchao",
    "auto-round",
)
MIB, GIB = 1024**2, 1024**3


# -- measuring -------------------------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start_s = perf_counter()
    work()
    return perf_counter() - start_s


def interleave(
    cases: dict[str, Callable[[], float]], *, rounds: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Return each case's figures, one per round.

    Every round runs every case once, odd rounds in reverse order, so that a drift of the machine affects all
    cases alike.
    """
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-warmups, rounds):
        order = list(cases.items())
        for name, case in order if number % 2 == 0 else reversed(order):
            figure = case()
            if number >= 0:
                figures[name].append(figure)
    return figures


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the rounds' ratios; both parts of a ratio come from the same minute."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


# -- results ---------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one benchmark found.

    Attributes:
        theme: the first word of the file names.
        title: the heading.
        columns: of the table.
        rows: of the table, as text.
        verdicts: one line per target, with the figure that was measured.
        notes: how it was measured, one paragraph each.
        figures: everything as numbers, for the JSON file.
        svg: a plot, or None.
        drawings: further plots, by a word for the file name.
    """

    theme: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    svg: str | None = None
    drawings: dict[str, str] = field(default_factory=dict)


def verdict(what: str, found: float, target: float, *, at_most: bool = True) -> str:
    """Return one line that says whether `found` meets the target."""
    met = found <= target if at_most else found >= target
    bound = "at most" if at_most else "at least"
    shown = f"{found:,}" if isinstance(found, int) else f"{found:.3f}"
    return f"{'met' if met else 'MISSED'}: {what} {shown} (target: {bound} {target:g})"


def arguments(description: str) -> argparse.Namespace:
    """Return the options that every benchmark has on the command line."""
    return option_parser(description).parse_args()


def option_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with those options, for a benchmark with more of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small run that shows that the script works; its figures mean little",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds")
    parser.add_argument(
        "--work",
        type=Path,
        help="where checkpoints are written and removed again; a real disk, not tmpfs (default: temp dir)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where result files go (default: benchmarks/results; with --quick, none are written)",
    )
    parser.add_argument(
        "--hardware", help="the machine's name in file names (default: from processor, cores and memory)"
    )
    parser.add_argument("--date", default=date.today().isoformat(), help="the date in file names")
    return parser


@contextmanager
def work_directory(options: argparse.Namespace) -> Iterator[Path]:
    """Yield a fresh directory for checkpoints; it is removed afterwards with everything in it."""
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="layerstream-bench-", dir=options.work))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def environment(directory: Path | None = None) -> dict[str, str]:
    """Return the hardware and the versions that a figure depends on."""
    facts = {
        "processor": processor_name(),
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} torch threads)",
        "bf16 instructions": "yes" if has_bf16_instructions() else "no",
        "memory": f"{psutil.virtual_memory().total / GIB:.1f} GiB",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if directory is not None:
        facts["disk"] = _disk_facts(directory)
    return facts | {name: _version(name) for name in PACKAGES}


def processor_name() -> str:
    """Return the processor's name with family and model: virtual machines often hide more."""
    fields = dict(line.split(":", 1) for line in _cpuinfo() if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {known['cpu family']}, model {known['model']})" if "cpu family" in known else name


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return []


def has_bf16_instructions() -> bool:
    """Return whether the processor multiplies bf16 numbers itself; otherwise such products are slow."""
    return "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    return {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.split()}


def _disk_facts(directory: Path) -> str:
    """Return the type of the file system and, on Linux, the kind of device behind it."""
    matches = [
        part
        for part in psutil.disk_partitions(all=True)
        if directory.resolve().is_relative_to(part.mountpoint)
    ]
    if not matches:
        return "unknown"
    part = max(matches, key=lambda each: len(each.mountpoint))
    device = Path(part.device).name
    rotational = Path(f"/sys/block/{device}/queue/rotational")
    kind = (
        {"0": "no seek", "1": "rotational"}.get(rotational.read_text().strip(), "?")
        if rotational.exists()
        else "?"
    )
    return f"{part.fstype} on {device} ({kind})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def hardware_slug() -> str:
    """Return a short name of this machine for file names."""
    words = [word.lower() for word in processor_name().split("(")[0].split() if word.isalnum()][:3]
    return "-".join([*words, f"{os.cpu_count()}core", f"{round(psutil.virtual_memory().total / GIB)}gib"])


def publish(outcome: Outcome, options: argparse.Namespace, facts: dict[str, str]) -> int:
    """Print the outcome and write its files; return the exit status, which is 0 for missed targets too."""
    table = Table(title=outcome.title)
    for number, column in enumerate(outcome.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in outcome.rows:
        table.add_row(*row)
    console = Console(width=160)
    console.print(table)
    for line in outcome.verdicts:
        console.print(line, highlight=False)
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{outcome.theme}_{options.hardware or hardware_slug()}_{options.date}"
    (out / f"{stem}.md").write_text(_as_markdown(outcome, facts, stem))
    # paths of this machine do not belong in a result file
    shown_options = [
        option
        for option in sys.argv[1:]
        if not Path(option).is_absolute() and option not in ("--work", "--out")
    ]
    content = {
        "environment": facts,
        "command": " ".join([Path(sys.argv[0]).name, *shown_options]),
        **asdict(outcome),
    }
    (out / f"{stem}.json").write_text(
        json.dumps({key: value for key, value in content.items() if key not in ("svg", "drawings")}, indent=1)
        + "\n"
    )
    if outcome.svg is not None:
        (out / f"{stem}.svg").write_text(outcome.svg)
    for name, drawing in outcome.drawings.items():
        (out / f"{stem}_{name}.svg").write_text(drawing)
    console.print(f"written: {out / stem}.md")
    return 0


def _as_markdown(outcome: Outcome, facts: dict[str, str], stem: str) -> str:
    lines = [f"# {outcome.title}", ""]
    lines += [f"- {line}" for line in outcome.verdicts] + [""]
    lines += ["| " + " | ".join(outcome.columns) + " |", "|" + "---|" * len(outcome.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in outcome.rows] + [""]
    if outcome.svg is not None:
        lines += [f"![{outcome.title}]({stem}.svg)", ""]
    lines += [line for name in outcome.drawings for line in (f"![{name}]({stem}_{name}.svg)", "")]
    lines += [_wrapped(paragraph) + "\n" for paragraph in outcome.notes]
    lines += ["| | |", "|---|---|"] + [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def _wrapped(paragraph: str) -> str:
    """Return a note at most 100 columns wide; a code block in it stays as it is."""
    words, fence, code = paragraph.partition("\n\n```")
    return textwrap.fill(words, 100, break_long_words=False, break_on_hyphens=False) + fence + code
