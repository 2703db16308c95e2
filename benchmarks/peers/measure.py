"""Measure one stage: start every peer, take turns, compare tokens. What fails becomes a row that says why."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from peers.checkpoints import Checkpoint
from peers.contention import measure_contention
from peers.disk_speed import DiskSpeed
from peers.process import PeerError, PeerProcess, running_peer
from peers.protocol import LoadSpec, Prompts
from peers.stages import ENVIRONMENTS, Case, Stage, expected_s, rounds_of, sample_of

LOAD_LIMIT_S = 300.0
PASS_LIMIT_S = 60.0
CONTENTION_TOKENS = 25
LEAST_LIMIT_BYTES = 1024**3
"""The interpreter and its libraries alone take half of it."""


@dataclass(slots=True, kw_only=True)
class Clock:
    """What of the work is done, for an estimate of the rest.

    Attributes:
        expected_s: of everything, roughly.
        done_s: of what is done, roughly.
        started_s: when it began.
    """

    expected_s: float
    done_s: float = 0.0
    started_s: float = field(default_factory=monotonic)

    def advance(self, seconds: float) -> None:
        """Note that work which was expected to take `seconds` is done."""
        self.done_s += seconds

    def left(self) -> str:
        """Return how long the rest takes at the pace so far."""
        elapsed_s = monotonic() - self.started_s
        pace = max(0.5, elapsed_s / self.done_s) if self.done_s > 60.0 else 1.0
        return f"about {max(0.0, self.expected_s - self.done_s) * pace / 60:.0f} min left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all stages share.

    Attributes:
        pythons: the interpreter of each environment, or why there is none.
        work: a folder on the disk that is measured.
        rounds: interleaved rounds.
        clock: the estimate.
    """

    pythons: dict[str, Path | str]
    work: Path
    rounds: int
    clock: Clock

    def say(self, stage: Stage, text: str) -> None:
        """Print one line of progress."""
        print(f"[{stage.name}] {text} ({self.clock.left()})", flush=True)


def run_stage(bench: Bench, stage: Stage, cases: list[Case], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return everything that one stage found, as JSON holds it."""
    size_bytes = checkpoint.shape.weight_bytes
    limit_bytes = max(LEAST_LIMIT_BYTES, int(stage.limit_share * size_bytes)) if stage.limit_share else None
    found: dict[str, Any] = {
        "title": stage.title.format(size=f"{size_bytes / 1e9:.1f} GB", dtype=checkpoint.shape.dtype),
        "num_prompts": len(stage.prompts),
        "weight_bytes": size_bytes,
        "block_bytes": checkpoint.block_bytes,
        "routed_bytes": checkpoint.routed_bytes,
        "limit_bytes": limit_bytes,
        "new_tokens": stage.new_tokens,
        "load_average_before": os.getloadavg()[0],
        "bytes_per_s": [],
        "cases": {case.name: {"case": asdict(case), "rounds": []} for case in cases},
    }
    turns = Turns(bench=bench, stage=stage, checkpoint=checkpoint, found=found)
    turns.reference()
    with ExitStack() as running:
        for case in cases:
            turns.start(running, case, limit_bytes)
        for number in range(bench.rounds):
            turns.round(number)
        turns.finish()
    return found


@dataclass(slots=True, kw_only=True)
class Turns:
    """The running peers of a stage, and what was found so far."""

    bench: Bench
    stage: Stage
    checkpoint: Checkpoint
    found: dict[str, Any]
    processes: dict[Case, PeerProcess] = field(default_factory=dict)
    answers: Prompts = field(default_factory=list)

    def reference(self) -> None:
        """Have plain transformers answer every prompt alone, with everything in memory."""
        case = Case(name="in memory", peer="transformers")
        try:
            with running_peer("transformers", self._python(case), self._log(case)) as process:
                process.ask("load", seconds=LOAD_LIMIT_S, spec=self._spec(case, None))
                runs = [
                    self._generate(process, [prompt], self.stage.new_tokens) for prompt in self.stage.prompts
                ]
                self.found["contention"] = self._contention(process)
        except PeerError as error:
            self.found["reference_error"] = str(error)
            return
        self.answers = [run["tokens"][0] for run in runs]
        self.found["in_memory_seconds"] = runs[0]["seconds"]

    def _contention(self, process: PeerProcess) -> dict[str, float]:
        """Return what reading and computing cost each other; nothing where that is not what is measured."""
        if self.stage.limit_share or len(self.stage.prompts) > 1:
            return {}

        def compute() -> list[float]:
            seconds: list[float] = self._generate(process, self.stage.prompts, CONTENTION_TOKENS)["seconds"]
            return seconds[1:]

        return measure_contention(DiskSpeed(self.checkpoint.block_files), compute)

    def start(self, running: ExitStack, case: Case, limit_bytes: int | None) -> None:
        """Start a case's process and load its model."""
        entry = self.found["cases"][case.name]
        self.bench.say(self.stage, f"{case.name}: loading")
        try:
            python = self._python(case)
            label = f"-{list(self.found['cases']).index(case.name)}"
            process = running.enter_context(
                running_peer(case.peer, python, self._log(case), limit_bytes, label)
            )
            seconds = LOAD_LIMIT_S
            entry["load"] = process.ask("load", seconds=seconds, spec=self._spec(case, limit_bytes))
            self.processes[case] = process
        except PeerError as error:
            self._fail(case, error)

    def round(self, number: int) -> None:
        """Measure the disk, then every case that has rounds left; odd rounds in reverse order."""
        cases: list[Case | None] = [None, *self.processes]
        for case in cases if number % 2 == 0 else reversed(cases):
            if case is None:
                self.found["bytes_per_s"].append(DiskSpeed(self.checkpoint.block_files).measure())
            elif number < rounds_of(case, self.bench.rounds) and case in self.processes:
                self._turn(case, number)

    def finish(self) -> None:
        """Note how much memory each process took at most."""
        for case, process in self.processes.items():
            self._note_memory(case, process)

    def _turn(self, case: Case, number: int) -> None:
        process, entry = self.processes[case], self.found["cases"][case.name]
        prompts = sample_of(self.stage.prompts) if case.way == "alone" else self.stage.prompts
        new_tokens = case.new_tokens or self.stage.new_tokens
        try:
            if case.way == "own":
                seconds = PASS_LIMIT_S * new_tokens
                run = process.ask("generate_many", seconds=seconds, prompts=prompts, new_tokens=new_tokens)
            else:
                run = self._generate(process, prompts, new_tokens)
        except PeerError as error:
            self._fail(case, error)
            return
        tokens = run.pop("tokens")
        if self.answers:
            entry["equal"] = agreement(tokens, self._answers_to(prompts))
        entry["rounds"].append({"round": number, **run})
        rounds = rounds_of(case, self.bench.rounds)
        self.bench.clock.advance(self._expected_s(case) / rounds)
        self.bench.say(
            self.stage,
            f"round {number + 1} of {rounds}: {case.name}, {new_tokens} in {sum(run['seconds']):.2f} s",
        )

    def _generate(self, process: PeerProcess, prompts: Prompts, new_tokens: int) -> dict[str, Any]:
        return process.ask(
            "generate",
            seconds=PASS_LIMIT_S * new_tokens,
            prompts=prompts,
            new_tokens=new_tokens,
            cold_passes=1 if self.stage.limit_share else new_tokens,
        )

    def _fail(self, case: Case, error: PeerError) -> None:
        self.found["cases"][case.name]["error"] = str(error)
        process = self.processes.pop(case, None)
        if process is not None:
            self._note_memory(case, process)
            process.process.kill()
        done = len(self.found["cases"][case.name]["rounds"]) / rounds_of(case, self.bench.rounds)
        self.bench.clock.advance(self._expected_s(case) * (1 - done))
        self.bench.say(self.stage, f"{case.name}: {error}")

    def _note_memory(self, case: Case, process: PeerProcess) -> None:
        group_bytes = process.limit.peak_bytes()
        self.found["cases"][case.name]["memory"] = {**process.memory, "group_bytes": group_bytes}

    def _expected_s(self, case: Case) -> float:
        return expected_s(self.stage, case, self.bench.rounds, self.checkpoint.shape.weight_bytes)

    def _answers_to(self, prompts: Prompts) -> Prompts:
        wanted = dict(zip(map(tuple, self.stage.prompts), self.answers, strict=True))
        return [wanted[tuple(prompt)] for prompt in prompts]

    def _python(self, case: Case) -> Path:
        python = self.bench.pythons[ENVIRONMENTS[case.peer]]
        if isinstance(python, str):
            raise PeerError(python)
        return python

    def _log(self, case: Case) -> Path:
        return self.bench.work / f"{case.peer}.log"

    def _files_of(self, case: Case) -> Path:
        directory = self.checkpoint.directory
        if not case.has_own_files:
            return directory
        copy = directory.with_name(f"{directory.name}-copy-for-{case.peer}")
        if not copy.exists():
            shutil.copytree(directory, copy)
        return copy

    def _spec(self, case: Case, limit_bytes: int | None) -> dict[str, Any]:
        scratch = self.bench.work / f"{self.stage.model}-{case.peer}"
        scratch.mkdir(exist_ok=True)
        prompts = self.stage.prompts
        spec = LoadSpec(
            model=str(self._files_of(case)),
            scratch=str(scratch),
            keep=case.keep,
            variant=case.variant,
            limit_bytes=limit_bytes or 0,
            num_blocks=self.checkpoint.shape.num_blocks,
            block_bytes=self.checkpoint.block_bytes,
            batch_size=1 if case.way == "alone" else len(prompts),
            prompt_tokens=max(map(len, prompts)),
            new_tokens=case.new_tokens or self.stage.new_tokens,
        )
        return asdict(spec)


def agreement(found: Prompts, wanted: Prompts) -> dict[str, int]:
    """Return how many answers are equal as far as they go, and the tokens before the first differences."""
    equal_tokens = [
        next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
        for ours, theirs in zip(found, wanted, strict=True)
    ]
    full = sum(count == len(answer) for count, answer in zip(equal_tokens, found, strict=True))
    return {
        "answers": len(found),
        "equal_answers": full,
        "tokens": sum(map(len, found)),
        "equal_tokens": sum(equal_tokens),
    }
