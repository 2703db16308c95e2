"""Restart `layerstream batch` and `score` with one thing changed each: does a results file ever mix jobs?

Each case starts from the results of a finished (or killed) job on a tiny checkpoint, changes one thing, and
runs the command again in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Outcome, arguments, environment, publish, work_directory
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages" / "layerstream" / "tests"))

from kit.tiny_llama import save_tiny_llama

PROGRAM = "import sys; from layerstream.cli.app import main; sys.exit(main())"
# what an installed newer version would be
NEXT_VERSION = "import layerstream; layerstream.__version__ = '0.2.0'; " + PROGRAM
HUB_ID = "organisation/model"
COMMITS = ("a" * 40, "b" * 40)

PROMPTS = [
    {"id": "one", "prompt": "hello", "max_new_tokens": 4},
    {"id": "two", "prompt": 2},
    {"prompt": "The sea is"},
    {"prompt": "Two and two make"},
]
SCORES = [
    {"id": "sky", "prefix": "The sky is", "suffixes": [" blue", " green"]},
    {"prefix": "Two and two make", "suffixes": [" four", " five"]},
]


class Job:
    """A job in a folder of its own: model, rows, results and a Hub cache with two commits."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder, self.command = folder, command
        self.rows, self.results = folder / "rows.jsonl", folder / "results.jsonl"
        self.model = "model"
        self.head = folder / "head.safetensors"
        self.arguments: list[str] = []
        self.program = PROGRAM
        # what the case says about what it changed, to check the outcome against
        self.mixes_knowingly = False

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows file."""
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read_rows(self) -> list[dict[str, Any]]:
        """Return what is in the rows file."""
        return [json.loads(line) for line in self.rows.read_text(encoding="utf-8").splitlines()]

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own."""
        results = self.results.name if self.results.parent == self.folder else str(self.results)
        length = ["-n", "5"] if self.command == "batch" else []
        command = [self.command, self.rows.name, results, "-m", self.model, "--budget", "min", *length]
        variables = {
            **os.environ,
            "HF_HUB_CACHE": str(self.folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        return subprocess.run(
            [sys.executable, "-c", self.program, *command, *self.arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=variables,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the results file; none where it is not a file."""
        if not self.results.is_file():
            return []
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]


def is_header(line: dict[str, Any]) -> bool:
    return "layerstream_job" in line


def scaled_weights(directory: Path) -> None:
    """Give a checkpoint other weights under the same headers: it was trained further."""
    (path,) = directory.glob("*.safetensors")
    tensors = {name: tensor * 1.05 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


# -- the changes ------------------------------------------------------------------------------------------


def options(*given: str) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        job.arguments += given
        job.mixes_knowingly = "--resume-anyway" in given

    return change


def other_model(job: Job) -> None:
    job.model = "other-model"
    scaled_weights(shutil.copytree(job.folder / "model", job.folder / "other-model"))


def trained_further(job: Job) -> None:
    scaled_weights(job.folder / "model")


def edited_file(name: str) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        path = job.folder / "model" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "_edited": True}))

    return change


def model_moved(job: Job) -> None:
    job.model = (job.folder / "model").rename(job.folder / "elsewhere").name


def branch_moved(job: Job) -> None:
    (job.folder / "hub" / "models--organisation--model" / "refs" / "main").write_text(COMMITS[1])


def rows_changed(
    change_rows: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> Callable[[Job], None]:
    return lambda job: job.write_rows(change_rows(job.read_rows()))


def next_version(job: Job) -> None:
    job.program = NEXT_VERSION


def other_torch(job: Job) -> None:
    job.results.write_text(re.sub('"torch": "[^"]*"', '"torch": "2.0.0"', job.results.read_text()))


def without_header(job: Job) -> None:
    job.results.write_text("".join(job.results.read_text().splitlines(keepends=True)[1:]))


def killed_in_a_line(job: Job) -> None:
    job.results.write_bytes(job.results.read_bytes()[:-40])


def killed_in_the_header(job: Job) -> None:
    job.results.write_bytes(job.results.read_bytes()[:100])


def other_head(job: Job) -> None:
    save_file({"weight": torch.zeros(3, 64)}, job.head)


def to_a_device(job: Job) -> None:
    job.results = Path("/dev/full")


def onto_the_rows(job: Job) -> None:
    job.results = job.rows


def batch_continues(job: Job) -> None:
    job.command = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One restart.

    Attributes:
        changed: what was changed, for the table.
        change: changes it.
        command: `batch` or `score`.
        start: which finished job it starts from: `directory`, `hub` or `head`.
    """

    changed: str
    change: Callable[[Job], None]
    command: str = "batch"
    start: str = "directory"


REPAIRED = {"id": "two", "prompt": "two"}
MORE = {"prompt": "Once upon"}
CASES = [
    Case(changed="nothing", change=options()),
    Case(changed="nothing; it had been killed within a line", change=killed_in_a_line),
    Case(changed="nothing; it had been killed within the header", change=killed_in_the_header),
    Case(changed="`--model`: another checkpoint of the same shapes", change=other_model),
    Case(changed="the weights at the same path", change=trained_further),
    Case(changed="`generation_config.json` edited", change=edited_file("generation_config.json")),
    Case(changed="the place of the checkpoint, nothing else", change=model_moved),
    Case(changed="revision: `main` moved on the Hub", change=branch_moved, start="hub"),
    Case(
        changed="revision: the same commit by its name", change=options("--revision", COMMITS[0]), start="hub"
    ),
    Case(changed="`-n`", change=options("-n", "6")),
    Case(changed="`--temperature`", change=options("--temperature", "0.7")),
    Case(changed="`--chat`", change=options("--chat")),
    Case(changed="`--dtype`", change=options("--dtype", "bfloat16")),
    Case(changed="`--attn-implementation`", change=options("--attn-implementation", "eager")),
    Case(changed="`--budget` and `--max-rows`", change=options("--budget", "1GiB", "--max-rows", "1")),
    Case(
        changed="a row that had failed, repaired",
        change=rows_changed(lambda rows: [rows[0], REPAIRED, *rows[2:]]),
    ),
    Case(
        changed="a row that had been answered, repaired",
        change=rows_changed(lambda rows: [*rows[:3], {"prompt": "Two and two are"}]),
    ),
    Case(changed="a row added at the end", change=rows_changed(lambda rows: [*rows, MORE])),
    Case(changed="a row added in the middle", change=rows_changed(lambda rows: [rows[0], MORE, *rows[1:]])),
    Case(changed="a row removed", change=rows_changed(lambda rows: rows[1:])),
    Case(changed="rows moved", change=rows_changed(lambda rows: rows[::-1])),
    Case(changed="every row: another rows file", change=rows_changed(lambda rows: [MORE, REPAIRED])),
    Case(changed="the version of layerstream", change=next_version),
    Case(changed="the version of torch", change=other_torch),
    Case(changed="nothing; the results are of a version without headers", change=without_header),
    Case(changed="`-n`, with `--restart`", change=options("-n", "6", "--restart")),
    Case(
        changed="`-n`, with `--resume-anyway --retry-errors`",
        change=options("-n", "6", "--resume-anyway", "--retry-errors"),
    ),
    Case(changed="`--retry-errors`", change=options("--retry-errors")),
    Case(changed="the results: `/dev/full`", change=to_a_device),
    Case(changed="the results: the rows file", change=onto_the_rows),
    Case(changed="nothing", change=options(), command="score"),
    Case(changed="the weights at the same path", change=trained_further, command="score"),
    Case(changed="`--head` given", change=options("--head", "head.safetensors"), command="score"),
    Case(changed="the contents of the head", change=other_head, command="score", start="head"),
    Case(
        changed="a row repaired",
        change=rows_changed(lambda rows: [rows[0], {**rows[1], "suffixes": [" four", " six"]}]),
        command="score",
    ),
    Case(changed="rows moved", change=rows_changed(lambda rows: rows[::-1]), command="score"),
    Case(changed="the version of layerstream", change=next_version, command="score"),
    Case(changed="the command: `batch` in place of `score`", change=batch_continues, command="score"),
]
QUICK = slice(0, None, 6)

# what a restart says about the results that were there
NOTE = re.compile("done again|moved with their rows|kept (in|as) ")


# -- running ----------------------------------------------------------------------------------------------


def prepare(folder: Path, command: str, start: str) -> Job:
    """Return a job that has run to its end in `folder`."""
    job = Job(folder, command)
    save_tiny_llama(folder / "model")
    job.write_rows(PROMPTS if command == "batch" else SCORES)
    save_file({"weight": torch.ones(3, 64)}, job.head)
    if start == "hub":
        repository = folder / "hub" / "models--organisation--model"
        for commit in COMMITS:
            shutil.copytree(folder / "model", repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMITS[0])
        job.model = HUB_ID
    if start == "head":
        job.arguments = ["--head", job.head.name]
    first = job.run()
    assert first.returncode == (1 if command == "batch" else 0), first.stderr
    return job


def copy_of(job: Job, folder: Path) -> Job:
    """Return the same job in another folder, where a case may change anything."""
    shutil.copytree(job.folder, folder, symlinks=True)
    copy = Job(folder, job.command)
    copy.model, copy.arguments = job.model, [*job.arguments]
    return copy


def restart(case: Case, job: Job) -> tuple[tuple[str, ...], bool]:
    """Change one thing, start again; return the table's row, and whether the file is as promised."""
    case.change(job)
    before = job.results.read_bytes() if job.results.is_file() else b""
    old = {what_it_says(line) for line in map(parsed, before.splitlines()) if "digest" in line}
    done = job.run()
    lines = [] if job.results == job.rows else job.lines()
    results = [line for line in lines if not is_header(line)]
    if done.returncode == 2:
        happened = "refused: " + done.stderr.strip().removeprefix("error: ").split(". Give ")[0]
    else:
        num_kept = sum(what_it_says(line) in old for line in results)
        notes = [line for line in done.stderr.splitlines() if NOTE.search(line)]
        happened = f"{num_kept} of {len(old)} results kept, {len(results) - num_kept} new"
        happened = "; ".join([happened, *notes]).replace(f"{job.folder}/", "")
    num_jobs = len(jobs_of(lines))
    is_unchanged = not job.results.is_file() or job.results.read_bytes() == before
    is_as_promised = num_jobs <= 1 + job.mixes_knowingly and (done.returncode != 2 or is_unchanged)
    num_rows = str(len(results)) if lines else "–"
    row = (f"`{case.command}`", case.changed, happened, str(done.returncode), num_rows, str(num_jobs or "–"))
    return row, is_as_promised


def parsed(line: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}  # torn
    return found


def what_it_says(result: dict[str, Any]) -> str:
    """Return a result without its place among the rows."""
    return json.dumps({name: value for name, value in result.items() if name not in ("row", "id")})


def jobs_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the headers with results below them; results above every header are a job, too."""
    jobs: list[dict[str, Any]] = []
    header: dict[str, Any] | None = {}
    for line in lines:
        if is_header(line):
            header = line
        elif header is not None:
            jobs.append(header)
            header = None
    return jobs


def main() -> int:
    given = arguments(__doc__ or "")
    given.hardware = given.hardware or "cpu"
    cases = CASES[QUICK] if given.quick else CASES
    outcome = Outcome(
        theme="restarts",
        title="Restarts of batch and score with one thing changed",
        columns=(
            "command",
            "what changed",
            "what happened",
            "exit status",
            "rows in file",
            "jobs in the file",
        ),
        notes=[
            "Each restart begins with the results of a finished job on a tiny Llama (batch: four rows, one "
            "of them invalid; score: two rows), and is a process of its own. Exit status: 0 done, 1 done "
            "with errors, 2 refused. Rows and jobs in the file are counted after the restart; a refused one "
            "leaves the file as it was, byte for byte."
        ],
    )
    promises = []
    with work_directory(given) as work:
        facts = environment(work)
        started = {
            key: prepare(work / "-".join(key), *key) for key in {(case.command, case.start) for case in cases}
        }
        for number, case in enumerate(cases):
            job = copy_of(started[case.command, case.start], work / f"case-{number}")
            row, is_as_promised = restart(case, job)
            print(" | ".join(row), flush=True)
            outcome.rows.append(row)
            promises.append(is_as_promised)
    outcome.verdicts = [
        f"{'met' if all(promises) else 'MISSED'}: {sum(promises)} of {len(promises)} restarts leave one job "
        "in the file, or two that a header tells apart because --resume-anyway asked for them"
    ]
    outcome.figures = {"restarts": len(promises), "as_promised": sum(promises)}
    publish(outcome, given, facts)
    return 0 if all(promises) else 1


if __name__ == "__main__":
    sys.exit(main())
