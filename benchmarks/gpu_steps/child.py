"""Run one step of `bench_gpu.py` in a process of its own: `python -m gpu_steps.child '<json>'`.

The process appends a line for each case that it begins and ends. If it dies, the driver starts it again
without the cases that have begun, so that one bad case costs one row.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import transformers

import layerstream as ls
from layerstream.machine import describe_machine
from layerstream.streaming.runtime import DeviceRuntime, TorchRuntime
from layerstream.testing import FakeAsyncRuntime

from . import lines
from .lines import Found, Row

FAKE = "fake"
BROKEN_DEVICE_STATUS = 75
"""The exit status of a child whose device answers no longer: the rest needs a fresh process."""

Case = tuple[str, float, Callable[[], Found]]
"""A case: its name, the seconds that it needs, and the work."""


class NotHereError(Exception):
    """A case that makes no sense here, or that something is missing for; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What a step knows about its run.

    Attributes:
        step: its name.
        device: torch device string, or `fake`.
        work: where models are; the driver removes it.
        results: the file of lines.
        ends_at_s: the `monotonic` time at which the driver ends the process.
        minutes: what the whole run may take, which decides how large models are.
        is_quick: show that the step works, no more.
        skip: cases that an earlier process has begun.
        shard: this process's number among those of the step, and how many those are.
    """

    step: str
    device: str
    work: Path
    results: Path
    ends_at_s: float
    minutes: float
    is_quick: bool
    skip: frozenset[str]
    shard: tuple[int, int]

    @property
    def torch_device(self) -> torch.device:
        """Where tensors are: the CPU for the fake device."""
        return torch.device("cpu" if self.device == FAKE else self.device)

    @property
    def is_accelerator(self) -> bool:
        """Whether it is a real device with a memory of its own."""
        return self.torch_device.type != "cpu"

    @property
    def has_two_tiers(self) -> bool:
        """Whether device memory and host memory are two."""
        return self.is_accelerator or self.device == FAKE

    def remaining_s(self) -> float:
        """Return the seconds that are left, with a little kept back to write results."""
        return self.ends_at_s - monotonic() - 1.0

    def rounds(self, round_s: float, *, most: int) -> int:
        """Return how many rounds of `round_s` fit into half of what is left: 1 to `most`."""
        return max(1, min(most, int(self.remaining_s() / 2 / max(round_s, 1e-6))))

    def load(self, path: Path, budget: ls.MemoryBudget, workload: ls.Workload) -> ls.StreamedModel:
        """Load a streamed model on the device, the fake one included."""
        if self.device != FAKE:
            return ls.load(path, budget=budget, device=self.device, workload=workload)
        return ls.load(path, budget=budget, runtime=self.runtime(), workload=workload)

    def plan(self, path: Path, budget: ls.MemoryBudget, workload: ls.Workload) -> ls.PlacementPlan:
        """Return what `load` would do."""
        profile = profile_of(path, self.device)
        machine = self.machine(profile.dtype)
        return ls.simulate(profile, machine=machine, budget=budget, workload=workload)

    def machine(self, dtype: str) -> ls.Machine:
        """Return this machine as the planner sees it."""
        machine = describe_machine(self.torch_device, dtype=dtype)
        return replace(machine, device="fake:0") if self.device == FAKE else machine

    def runtime(self) -> DeviceRuntime:
        """Return the operations of the device."""
        return FakeAsyncRuntime(lag_s=0.0) if self.device == FAKE else TorchRuntime(self.torch_device)

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        torch.get_device_module(self.torch_device).synchronize()

    @property
    def is_judged(self) -> bool:
        """Whether speed and memory count: large models on a device with a memory of its own."""
        return self.is_accelerator and not self.is_quick

    def at_most(
        self, what: str, ratio: float, target: float, note: str, *, is_judged: bool | None = None
    ) -> Row:
        """Return a row for a ratio with an upper bound."""
        row = Row(what=what, found=f"{ratio:.3f}", target=f"at most {target:g}", note=note)
        return self._judged(row, ratio <= target, is_judged)

    def within(self, what: str, ratio: float, target: float, note: str) -> Row:
        """Return a row for a ratio that should be 1, give or take `target`."""
        row = Row(what=what, found=f"{ratio:.3f}", target=f"1 ± {target:g}", note=note)
        return self._judged(row, abs(ratio - 1) <= target, None)

    def _judged(self, row: Row, is_met: bool, is_judged: bool | None) -> Row:
        if self.is_judged if is_judged is None else is_judged:
            return replace(row, met=is_met)
        where = {FAKE: "the fake device", "cpu": "the CPU"}.get(self.device, f"{self.device}, --quick")
        return replace(row, note=f"not judged ({where}); {row.note}")


@cache
def profile_of(path: Path, device: str) -> ls.ModelProfile:
    """Return a model's sizes, inspected once."""
    return ls.profile_model(path, device=device)


def run(child: Child, cases: Iterator[Case]) -> None:
    """Run the cases of a step that have not begun yet, and append what each one finds."""
    for number, (name, needs_s, work) in enumerate(until_one_fails(child, cases)):
        if name in child.skip or number % child.shard[1] != child.shard[0]:
            continue
        if child.remaining_s() < needs_s:
            report(child, name, lines.SKIPPED, "the step's time was over")
            continue
        lines.append(child.results, kind="begun", step=child.step, case=name)
        start_s = monotonic()
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - whatever a case raises is its row
            report_error(child, name, error, monotonic() - start_s)
        else:
            report(child, name, lines.OK, "", monotonic() - start_s, found)
        free_memory(child)


def until_one_fails(child: Child, cases: Iterator[Case]) -> Iterator[Case]:
    """Yield the cases. What is raised between two of them, as by a model that they share, is a row too."""
    try:
        yield from cases
    except Exception as error:  # noqa: BLE001 - as above
        report_error(child, "what the cases share", error)


def report_error(child: Child, case: str, error: Exception, seconds: float = 0.0) -> None:
    """Append the line of a case that has raised `error`."""
    if isinstance(error, NotHereError):
        report(child, case, lines.SKIPPED, str(error), seconds)
        return
    traceback.print_exception(error)
    report(child, case, lines.FAILED, one_line(error), seconds)
    leave_a_broken_device(child)


def report(
    child: Child, case: str, status: str, reason: str = "", seconds: float = 0.0, found: Found | None = None
) -> None:
    """Append the line of a case that has ended, and print it."""
    found = found or Found()
    lines.append(
        child.results,
        kind="case",
        step=child.step,
        case=case,
        status=status,
        reason=reason,
        seconds=round(seconds, 3),
        rows=list(found.rows),
        figures=found.figures,
    )
    shown = [f"{row.what}: {row.found}" for row in found.rows if not row.tally]
    print(f"{child.step}: {case}: {'; '.join(shown) or status}{f' ({reason})' if reason else ''}", flush=True)


def one_line(error: BaseException) -> str:
    """Return an error in one line without paths of this machine."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    root = Path(__file__).resolve().parents[2]
    # paths of this machine do not belong in a result file
    for place, name in ((tempfile.gettempdir(), "work"), (str(root), "."), (str(Path.home()), "~")):
        text = text.replace(place, name)
    return text[:400]


def shown_bytes(num_bytes: float) -> str:
    """Return a size as the table shows it, in decimal units like its rates."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.{3 if unit == 'GB' else 1}f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def free_memory(child: Child) -> None:
    """Return what the last case leaves to the device and the system."""
    gc.collect()
    module = torch.get_device_module(child.torch_device)
    if hasattr(module, "empty_cache"):
        module.empty_cache()


def leave_a_broken_device(child: Child) -> None:
    """End the process if the device answers no longer: every later case would fail with the same error."""
    try:
        child.synchronize()
    except RuntimeError:
        sys.exit(BROKEN_DEVICE_STATUS)


def die_with_the_driver() -> None:
    """Ask Linux to end this process when the driver ends, however it does."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return


def parse(text: str) -> Child:
    """Return the child that the driver describes in JSON."""
    spec: dict[str, Any] = json.loads(text)
    return Child(
        **{
            **spec,
            "work": Path(spec["work"]),
            "results": Path(spec["results"]),
            "skip": frozenset(spec["skip"]),
            "shard": tuple(spec["shard"]),
        }
    )


def main() -> int:
    """Run the step that the first argument describes."""
    die_with_the_driver()
    child = parse(sys.argv[1])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    if not child.is_accelerator:
        # threads do not speed up tiny matrices, and they make the figures of a busy machine jump
        torch.set_num_threads(1)
    module = importlib.import_module(f"gpu_steps.{child.step}")
    if hasattr(module, "count"):
        lines.append(child.results, kind="count", step=child.step, count=module.count(child))
    run(child, module.cases(child))
    sys.stdout.flush()
    # neither a daemon thread nor a driver's exit handler may turn a finished step into a hanging one
    os._exit(0)


if __name__ == "__main__":
    # one module, one class: `gpu_steps.child` may not be there twice
    from gpu_steps.child import main as run_step

    sys.exit(run_step())
