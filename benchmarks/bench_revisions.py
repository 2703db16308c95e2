"""Revisions: is this working tree as fast as another commit? Both take turns in one run.

    python benchmarks/bench_revisions.py --against COMMIT

A refactoring shows here that it costs nothing. Each revision runs in a process of its own that imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from common import (
    Outcome,
    environment,
    interleave,
    median,
    median_ratio,
    option_parser,
    publish,
    verdict,
    work_directory,
)
from random_llama import HALF_GB, MANY_BLOCKS, SMALL, write_llama

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "decode, resident": "12 tokens of the 0.5 GB model, everything resident",
    "sweep, streamed": "4 tokens of the 0.5 GB model, everything streamed",
    "batch, streamed": "8 requests of 4 tokens in shared sweeps, everything streamed",
    "small blocks, resident": "16 tokens of 32 blocks of hidden size 64, everything resident",
    "small blocks, streamed": "16 tokens of the same, everything streamed",
}
LEAST, MOST = 0.97, 1.03
NOTES = [
    "Every round runs each case once in each revision; ratios are medians of the rounds' own, new by old.",
    "CPU seconds are those of the process, all its threads together.",
]


def main() -> int:
    parser = option_parser(__doc__)
    parser.add_argument("--against", default="HEAD", help="the other commit (default: HEAD)")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds or 9
    outcome = Outcome(
        theme="revisions",
        title=f"This working tree against {options.against}",
        columns=("case", "s, new", "s, old", "new / old", "CPU s, new / old"),
        notes=[*NOTES, *(f"{name}: {meaning}." for name, meaning in CASES.items())],
    )
    with ExitStack() as stack:
        work = stack.enter_context(work_directory(options))
        facts = environment(work)
        write_llama(work / "large", SMALL if options.quick else HALF_GB)
        write_llama(work / "blocks", SMALL if options.quick else MANY_BLOCKS)
        trees = {"new": ROOT, "old": stack.enter_context(checkout(options.against, work / "old"))}
        workers = {name: stack.enter_context(worker(tree, work)) for name, tree in trees.items()}
        for case in CASES:
            compare(outcome, case, workers, rounds)
            print(outcome.verdicts[-1], file=sys.stderr, flush=True)
    return publish(outcome, options, facts)


def compare(outcome: Outcome, case: str, workers: dict[str, subprocess.Popen[str]], rounds: int) -> None:
    """Measure one case in both revisions, in turns, and add its row."""
    cpu_s: dict[str, list[float]] = {name: [] for name in workers}

    def run(name: str) -> float:
        found = ask(workers[name], case)
        cpu_s[name].append(found["cpu_s"])
        return found["elapsed_s"]

    seconds = interleave({name: partial(run, name) for name in workers}, rounds=rounds)
    cpu_s = {name: values[-rounds:] for name, values in cpu_s.items()}
    ratio, cpu_ratio = median_ratio(seconds["new"], seconds["old"]), median_ratio(cpu_s["new"], cpu_s["old"])
    row = (
        f"{median(seconds['new']):.4f}",
        f"{median(seconds['old']):.4f}",
        f"{ratio:.3f}",
        f"{cpu_ratio:.3f}",
    )
    outcome.rows.append((case, *row))
    outcome.verdicts.append(verdict(f"{case}: seconds, new / old", ratio, MOST))
    outcome.figures[case] = {"elapsed_s": seconds, "cpu_s": cpu_s, "ratio": ratio, "cpu_ratio": cpu_ratio}


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Yield a working tree of `commit`; it is removed afterwards."""
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def worker(tree: Path, work: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that imports the layerstream of `tree` and answers on its standard output."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(tree / "packages" / "layerstream" / "src"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("measured_revision.py")), str(work)]
    with subprocess.Popen(
        command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            where = ask(process, "where")["path"]
            assert Path(where).is_relative_to(tree), f"the worker of {tree} has imported {where}"
            yield process
        finally:
            process.terminate()


def ask(process: subprocess.Popen[str], question: str) -> dict[str, float]:
    """Return the worker's answer to one line."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(question, file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the worker ended at {question!r}; its error is above")
    answer: dict[str, float] = json.loads(line)
    return answer


if __name__ == "__main__":
    sys.exit(main())
