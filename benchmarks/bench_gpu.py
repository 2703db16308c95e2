"""One command that proves layerstream on any machine: tests, exactness, copy limits, memory, peers.

    python benchmarks/bench_gpu.py [--minutes 5] [--out DIR] [--device auto|cpu|fake|cuda:0]

It needs a plain checkout, torch, transformers, accelerate and what the SDK imports; no network and no model.
Every step is a process of its own with a limit. Results are appended to `gpu_<card>_<date>.jsonl` as they
come, so that a run that is cut off loses nothing. The table of ratios and targets is written after every step
as `.md` and `.json`; `--table-only` makes it again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from gpu_steps import lines, table
from gpu_steps.children import ROOT, Spec, Stage, Worker

RESULTS = Path(__file__).resolve().parent / "results"
PREFIX = "layerstream-gpu-"
HARDWARE = "hardware"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEAST_SHARE_S = 20.0
"""A step's least: importing torch and transformers alone takes half of it on a slow machine."""
KEPT_BACK_S = 3.0
"""For the last table and for removing the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step: its module in `gpu_steps`, and its share of the time.

    Attributes:
        name: the module.
        weight: its share of the time that is left, against the weights of the steps after it.
        is_timed: it measures time or memory, so nothing may run beside it.
        shards: processes that share its cases where the machine has cores for them.
    """

    name: str
    weight: float
    is_timed: bool = True
    shards: int = 1


STEPS = (
    Step(name="tests", weight=80, is_timed=False),
    Step(name="families", weight=80, is_timed=False, shards=8),
    Step(name="models", weight=80, is_timed=False),
    Step(name="rates", weight=25),
    Step(name="llama7b", weight=120),
    Step(name="llama70b", weight=60),
    Step(name="batches", weight=25),
    Step(name="python_cost", weight=25),
    Step(name="peers", weight=30),
    Step(name="variants", weight=35),
)
"""Every step, the most telling first."""


class StoppedError(BaseException):
    """A signal asks this program to end."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number for the exit status."""
        super().__init__(signal.Signals(number).name)
        self.number = number


def main() -> int:
    """Run the steps, or render the table again."""
    options = parse_options()
    # the steps write to the same output
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    out = options.out or RESULTS
    if options.table_only:
        return render_newest(out)
    for number in SIGNALS:
        # nohup and a shell's background jobs ignore some
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise_stopped)
    ends_at_s = monotonic() + options.minutes * 60 - KEPT_BACK_S
    with work_directory(options.work) as work:
        writes_files = options.out is not None or not options.quick
        out = out if writes_files else work
        out.mkdir(parents=True, exist_ok=True)
        try:
            return run(options, work, out, ends_at_s)
        except StoppedError as stopped:
            print(f"stopped by {stopped}")
            return 128 + stopped.number


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [step.name for step in STEPS]
    parser.add_argument("--minutes", type=float, help="what the run may take (default: 5; with --quick, 10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, fake, or a torch device")
    parser.add_argument("--steps", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument(
        "--work", type=Path, help="where models are written and removed: a real disk (default: temp dir)"
    )
    parser.add_argument(
        "--out", type=Path, help="where result files go (default: benchmarks/results; with --quick, none)"
    )
    parser.add_argument("--table-only", action="store_true", help="render the newest run's table again")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, few families: does every step run?"
    )
    options = parser.parse_args()
    options.minutes = options.minutes or (10.0 if options.quick else 5.0)
    return options


def _raise_stopped(number: int, frame: object) -> NoReturn:
    # a second signal must not interrupt the removal of the models
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise StoppedError(number)


def run(options: argparse.Namespace, work: Path, out: Path, ends_at_s: float) -> int:
    """Run every chosen step, and keep the table up to date."""
    steps = [step for step in STEPS if step.name in options.steps]
    spec = Spec(
        device=options.device,
        work=work,
        results=work / "hardware.jsonl",
        minutes=options.minutes,
        is_quick=options.quick,
    )
    header = look_at_the_machine(spec, options, steps)
    stem = out / f"gpu_{header['slug']}_{header['started'][:10]}"
    spec = replace(spec, device=header["device"], results=stem.with_suffix(".jsonl"))
    lines.append(spec.results, **header)
    status = 0
    try:
        for stage in stages(steps, os.cpu_count() or 1):
            run_stage(stage, steps, spec, ends_at_s)
            table.write_files(lines.read_run(spec.results), stem)
    except StoppedError as stopped:
        print(f"stopped by {stopped}: this is what there is", flush=True)
        status = 128 + stopped.number
    found = lines.read_run(spec.results)
    table.write_files(found, stem)
    print(f"\n{found.header['card']}: {found.header['summary']}\n\n{table.as_text(found)}")
    if out != work:
        print(f"\nwritten: {stem}.md, .json and .jsonl")
    return status or (1 if table.broken_promises(found) else 0)


def look_at_the_machine(spec: Spec, options: argparse.Namespace, steps: Sequence[Step]) -> dict[str, Any]:
    """Return the header of the run: hardware and versions, from a process that imports torch."""
    started = datetime.now(UTC)
    lines.append(spec.results, kind="run", steps=[])
    worker = Worker(spec=spec, step=HARDWARE, ends_at_s=monotonic() + 120)
    Stage(workers=[worker]).run()
    found = [case for case in lines.read_run(spec.results).cases() if case["status"] == lines.OK]
    if not found:
        cases = lines.read_run(spec.results).cases()
        sys.exit(f"the machine cannot be looked at: {worker.note or ''} {[case['reason'] for case in cases]}")
    figures = found[0]["figures"]
    facts = {**figures["facts"], "commit": commit()}
    chosen = f"--minutes {options.minutes:g} --device {options.device}{' --quick' * options.quick}"
    if len(steps) < len(STEPS):
        chosen += f" --steps {' '.join(step.name for step in steps)}"
    summary = (
        f"{started:%Y-%m-%d %H:%M} UTC, `bench_gpu.py {chosen}`, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, layerstream at {facts['commit']}"
    )
    return {
        "kind": "run",
        "started": started.isoformat(timespec="seconds"),
        "device": figures["device"],
        "card": figures["card"],
        "slug": re.sub(r"[^a-z0-9]+", "-", figures["slug"].lower()).strip("-"),
        "minutes": options.minutes,
        "steps": [step.name for step in steps],
        "summary": summary,
        "facts": facts,
    }


def commit() -> str:
    """Return the checkout's commit, with `-dirty` where files have changed; `unknown` without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def stages(steps: Sequence[Step], num_cores: int) -> list[list[Step]]:
    """Return the steps in order, those that time nothing together where there are cores for them."""
    side_by_side = [step for step in steps if not step.is_timed and num_cores >= 8]
    alone = [[step] for step in steps if step not in side_by_side]
    return [side_by_side, *alone] if side_by_side else alone


def run_stage(stage: Sequence[Step], steps: Sequence[Step], spec: Spec, ends_at_s: float) -> None:
    """Run the steps of a stage with the time that is their share of what is left."""
    left_s = ends_at_s - monotonic()
    later = [step for step in steps[steps.index(stage[-1]) :] if step not in stage]
    own = max(step.weight for step in stage)
    share_s = left_s * own / (own + sum(step.weight for step in later))
    share_s = max(share_s, min(left_s, LEAST_SHARE_S))
    workers = []
    for step in stage:
        shards = max(1, min(step.shards, (os.cpu_count() or 1) // 2))
        workers += [
            Worker(spec=spec, step=step.name, ends_at_s=monotonic() + share_s, shard=(number, shards))
            for number in range(shards)
        ]
    if share_s < 1.0:
        for step in stage:
            ending = {"ended": "not run", "note": "no time was left", "seconds": 0.0}
            lines.append(spec.results, kind="step", step=step.name, **ending)
        return
    Stage(workers=workers).run()


def render_newest(out: Path) -> int:
    """Make the table of the newest run in `out` again."""
    files = sorted(out.glob("gpu_*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        sys.exit(f"{out} holds no gpu_*.jsonl: nothing was measured there")
    found = lines.read_run(files[-1])
    table.write_files(found, files[-1].with_suffix(""))
    print(f"{found.header['card']}: {found.header['summary']}\n\n{table.as_text(found)}")
    return 1 if table.broken_promises(found) else 0


@contextmanager
def work_directory(parent: Path | None) -> Iterator[Path]:
    """Yield a directory for models, removed afterwards; what a killed run has left there goes first."""
    folder = parent or Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*"):
        remove_if_left(left)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder, ignore_cleanup_errors=True) as name,
        (Path(name) / "lock").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def remove_if_left(directory: Path) -> None:
    """Remove the directory of a run that was killed: one whose lock nobody holds."""
    with suppress(OSError), (directory / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
