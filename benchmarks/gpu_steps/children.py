"""Start a step's processes, end them in time, and start them again without the case that killed them.

Needs Python alone. A process is the leader of its own session: ending it ends all that it started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from . import lines

ROOT = Path(__file__).resolve().parents[2]
IMPORT_PATHS = (
    ROOT / "packages" / "layerstream" / "src",
    ROOT / "packages" / "compare" / "src",
    ROOT / "packages" / "layerstream" / "tests",
    ROOT / "benchmarks",
)
POLL_EVERY_S = 0.05
END_GRACE_S = 10.0
LEAST_S = 3.0
"""What a process needs to be worth starting again."""
MOST_STARTS = 20
DIED = ("exit status", "killed by")
"""How a step has ended whose process died for good."""
_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What all children of a run share; `gpu_steps.child.Child` says what each means."""

    device: str
    work: Path
    results: Path
    minutes: float
    is_quick: bool


@dataclass(slots=True, kw_only=True)
class Worker:
    """One process of a step, and those that take its place when it dies.

    Attributes:
        spec: what the run's children share.
        step: the step.
        ends_at_s: when it is ended, by `monotonic`.
        shard: its number among the step's processes, and how many those are.
        ended: how it has ended; empty while it runs.
        note: the last lines of its error output, if it ended badly.
    """

    spec: Spec
    step: str
    ends_at_s: float
    shard: tuple[int, int] = (0, 1)
    ended: str = ""
    note: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _begun_before: frozenset[str] = frozenset()
    _errors: Path | None = None
    _starts: int = 0

    def start(self) -> None:
        """Start the process; cases that have begun are left out."""
        self._starts += 1
        self._begun_before = self._begun()
        self._errors = self.spec.work / f"errors-{self.step}-{self.shard[0]}.txt"
        told = {
            "step": self.step,
            "device": self.spec.device,
            "work": str(self.spec.work),
            "results": str(self.spec.results),
            "ends_at_s": self.ends_at_s,
            "minutes": self.spec.minutes,
            "is_quick": self.spec.is_quick,
            "skip": sorted(self._begun_before),
            "shard": self.shard,
        }
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpu_steps.child", json.dumps(told)],
                env=environment(self.spec.work),
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def process_id(self) -> int | None:
        """The process's id; None before it has started."""
        return None if self._process is None else self._process.pid

    def poll(self) -> bool:
        """Return whether it has ended for good; start it again if it died and may go on."""
        if self.ended:
            return True
        if not self._has_exited():
            if monotonic() < self.ends_at_s:
                return False
            self.end("time limit")
        elif (status := self._reap()) == 0:
            self.ended = lines.OK
        else:
            self._died(status)
        return bool(self.ended)

    def end(self, reason: str) -> None:
        """End the process and all that it started."""
        self._reap()
        self.ended = reason

    def _has_exited(self) -> bool:
        """Return whether the process has exited. It is not reaped: until then its group's id is its own."""
        assert self._process is not None
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _reap(self) -> int:
        """Kill what is left of the process's group and return the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # a driver may hold on to a process for a while, to unlock its memory
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_GRACE_S)
        return -signal.SIGKILL if self._process.returncode is None else self._process.returncode

    def _died(self, status: int) -> None:
        self.note = self._tail()
        sys.stdout.write(f"{self.step}: {_status_text(status)}\n{self.note}\n")
        may_go_on = self._begun() != self._begun_before and self._starts < MOST_STARTS
        if may_go_on and self.ends_at_s - monotonic() > LEAST_S:
            self.start()
        else:
            self.ended = _status_text(status)

    def _begun(self) -> frozenset[str]:
        """Return this step's cases that have begun in this run, and those with a result."""
        try:
            found = lines.read_run(self.spec.results).lines
        except ValueError:
            return frozenset()
        return frozenset(line["case"] for line in found if line.get("step") == self.step and "case" in line)

    def _tail(self) -> str:
        assert self._errors is not None
        text = self._errors.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        for place, name in ((str(self.spec.work), "work"), (str(ROOT), "."), (str(Path.home()), "~")):
            text = text.replace(place, name)
        return " / ".join(line.strip() for line in text.splitlines()[-4:])


def environment(work: Path) -> dict[str, str]:
    """Return a child's environment: everything importable, no network, no progress bars, files in `work`."""
    earlier = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, IMPORT_PATHS), *earlier]),
        "TMPDIR": str(work),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _status_text(status: int) -> str:
    if status >= 0:
        return f"{DIED[0]} {status}"
    name = signal.Signals(-status).name
    return f"{DIED[1]} {name}{', probably out of memory' if name == 'SIGKILL' else ''}"


@dataclass(slots=True, kw_only=True)
class Stage:
    """Steps that run at the same time: one, or several that time nothing."""

    workers: list[Worker] = field(default_factory=list)

    def run(self) -> None:
        """Run the workers to their ends; on any exception, a signal's too, end them first."""
        starts: dict[str, float] = {}
        try:
            for worker in self.workers:
                starts.setdefault(worker.step, monotonic())
                worker.start()
            while [worker for worker in self.workers if not worker.poll()]:
                sleep(POLL_EVERY_S)
                self._close_steps(starts)
        except BaseException as error:
            for worker in self.workers:
                if not worker.ended and worker.process_id is not None:
                    worker.end(f"stopped: {error}" if str(error) else "stopped")
            raise
        finally:
            self._close_steps(starts)

    def _close_steps(self, starts: dict[str, float]) -> None:
        """Append the line of each step whose workers have all ended."""
        for step in list(starts):
            workers = [worker for worker in self.workers if worker.step == step]
            if not all(worker.ended for worker in workers):
                continue
            seconds = monotonic() - starts.pop(step)
            bad = [worker for worker in workers if worker.ended != lines.OK]
            told: dict[str, Any] = {"ended": bad[0].ended if bad else lines.OK}
            told["note"] = bad[0].note if bad else ""
            lines.append(workers[0].spec.results, kind="step", step=step, seconds=round(seconds, 1), **told)
