"""Turn an experiment into an ordered list of cases and run them, resuming from a results file.

It does not know models, processes or reports. The reference runs first, then the other cases one
after another. Repeated rounds are interleaved, so that a slow minute of the machine affects every variant
alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import layerstream as ls
from layerstream import LayerstreamError, LoadOptions, PlanError, parse_size

from .case import Case
from .divergence import EXACT_VARIANTS, compared_with
from .environment import describe_environment
from .errors import ExperimentError
from .events import Event
from .measurement import Measurement
from .results import FINGERPRINT, ResultsFile, set_aside
from .runners.isolate import run_isolated
from .steps import StepClock
from .variants.registry import find_variant

Runner = Callable[[Case], Generator[Event, None, None]]
"""Runs one case and yields its events; the last one is `finished` and has the measurement.

Closing the generator stops the case."""

NOISE_FLOOR_KERNELS = ("eager", "sdpa-math", "flex")
"""Attention variants that round differently from the reference's. The first one runs everywhere."""

FINAL_STATUSES = ("ok", "unavailable")
"""Cases with these are not run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One prompt through every combination of variant, attention and prompt length.

    Attributes:
        model: directory or Hub id.
        prompt: the user's text.
        variants: names of weights variants, in the order of the report.
        attention: names of attention variants; the reference uses `default` if listed, else the first.
        lengths: prompt lengths in tokens; 0 leaves the prompt unchanged.
        max_new_tokens: tokens to generate, greedily.
        budget: device memory for the `streamed` variant: `min`, `auto` or a size; on a CPU, all its memory.
        host_budget: host memory for the `streamed` variant on an accelerator, in the same forms.
        dtype: torch's name of the unquantized dtype; `auto` keeps the checkpoint's.
        device: torch device string; `auto` is the accelerator if there is one.
        rounds: number of times each case is measured.
        threads: torch threads; 0 keeps torch's default.
        warmup_tokens: tokens generated once before measuring.
        time_limit_s: limit for each case.
        chat: apply the tokenizer's chat template.
        quality: measure agreement with the exact reference, once per variant and attention: at the first
            length, in the first round.
        prose: with `quality`, measure agreement on the 512 tokens of prose that ship with this package too,
            not only on the reference's answer. On a slow CPU this takes longer than everything else together.
        noise_floor: with `quality`, also measure the reference's weights with another attention kernel,
            unless a case does so already. A variant that differs by no more than this differs only by
            rounding.
        draft: what proposes tokens for the `streamed` variant, as for `layerstream.load`; empty for nothing.
        out: folder for the results, which makes the run resumable; None keeps them in memory.
    """

    model: str
    prompt: str
    variants: tuple[str, ...] = ("streamed", "resident", "bnb-int8", "bnb-nf4")
    attention: tuple[str, ...] = ("default",)
    lengths: tuple[int, ...] = (0,)
    max_new_tokens: int = 60
    budget: str = "min"
    host_budget: str = "min"
    dtype: str = "auto"
    device: str = "auto"
    rounds: int = 1
    threads: int = 0
    warmup_tokens: int = 2
    time_limit_s: float = 1800.0
    chat: bool = True
    quality: bool = True
    prose: bool = False
    noise_floor: bool = True
    draft: str = ""
    out: str | Path | None = None

    def __post_init__(self) -> None:
        """Reject an invalid experiment before anything starts.

        Raises:
            ExperimentError: an unknown or repeated variant, an empty choice, a number out of range, a folder
                without a checkpoint, or a budget that is not a size.
        """
        _check_model(self.model)
        _check_budget("budget", self.budget)
        _check_budget("host budget", self.host_budget)
        for kind, names in (("weights", self.variants), ("attention", self.attention)):
            _check_names(kind, names)
        if not self.lengths or len(set(self.lengths)) < len(self.lengths) or min(self.lengths) < 0:
            raise ExperimentError(
                f"prompt lengths are {self.lengths}: give distinct ones, each at least 1, or 0 to leave the "
                "prompt unchanged"
            )
        if not self.prompt.strip():
            raise ExperimentError("the prompt is empty: give some text")
        for name, least in (("max_new_tokens", 1), ("rounds", 1), ("threads", 0), ("warmup_tokens", 0)):
            if getattr(self, name) < least:
                raise ExperimentError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not self.time_limit_s > 0:
            raise ExperimentError(f"time_limit_s is {self.time_limit_s}: it must be more than 0")

    @property
    def reference_variant(self) -> str | None:
        """The weights variant that the others are compared with; None when no exact variant is listed."""
        return next((name for name in self.variants if name in EXACT_VARIANTS), None)

    @property
    def reference_attention(self) -> str:
        """The attention variant of the reference."""
        return "default" if "default" in self.attention else self.attention[0]

    def cases(self) -> tuple[Case, ...]:
        """Return every case in running order: by round, length, reference first; the noise floor last."""
        pairs = [(variant, attention) for variant in self.variants for attention in self.attention]
        pairs.sort(key=lambda pair: pair != (self.reference_variant, self.reference_attention))
        cases = (
            self._case(variant, attention, length, number)
            for number in range(self.rounds)
            for length in self.lengths
            for variant, attention in pairs
        )
        return (*cases, *self._noise_floor())

    def _noise_floor(self) -> tuple[Case, ...]:
        reference = self.reference_variant
        if not self.noise_floor or not self.quality or reference is None:
            return ()
        if any(name in NOISE_FLOOR_KERNELS for name in self.attention):
            return ()
        return (self._case(reference, NOISE_FLOOR_KERNELS[0], self.lengths[0], 0),)

    def reference_of(self, case: Case) -> Case | None:
        """Return the case to compare `case` with, of equal length and round; None without a reference."""
        if self.reference_variant is None:
            return None
        return self._case(self.reference_variant, self.reference_attention, case.prompt_tokens, case.round)

    def _case(self, variant: str, attention: str, length: int, number: int) -> Case:
        return Case(
            model=self.model,
            variant=variant,
            attention=attention,
            prompt=self.prompt,
            chat=self.chat,
            prompt_tokens=length,
            max_new_tokens=self.max_new_tokens,
            dtype=self.dtype,
            device=self.device,
            budget=self.budget,
            host_budget=self.host_budget,
            # agreement is the same in every round, and expensive at every long prompt: measure it once
            quality=self.quality and number == 0 and length == self.lengths[0],
            prose=self.prose,
            threads=self.threads,
            warmup_tokens=self.warmup_tokens,
            time_limit_s=self.time_limit_s,
            round=number,
            draft=self.draft if variant == "streamed" else "",
        )


class _ResultsInMemory:
    """Stands in for `ResultsFile` when the experiment has no folder."""

    def __init__(self) -> None:
        self.measurements: dict[str, Measurement] = {}

    def add(self, measurement: Measurement) -> None:
        self.measurements[measurement.case.key] = measurement

    def refuse_another_experiment(self, case: Case, environment: dict[str, Any]) -> None:
        pass


def run(
    experiment: Experiment, *, runner: Runner = run_isolated, restart: bool = False
) -> Generator[Event, None, None]:
    """Run every case of `experiment` and yield events as they happen.

    Cases that the experiment's folder already has results for are `skipped`; failed ones run again. A result
    is on disk before its `finished` event is yielded. Closing the iterator stops the running case. After a
    failure that no variant avoids, the remaining cases are not started: each is `finished` at once, as
    failed for the same reason.

    Args:
        experiment: what to run.
        runner: runs one case; by default in its own process.
        restart: start afresh; results in the folder are kept under another name.

    Raises:
        ResultsError: the folder's results are of another experiment (prompt, model, settings, versions), or
            another run is writing to them.
    """
    environment = describe_environment()
    if experiment.out is not None:
        environment |= _fingerprint(experiment.model)
        if restart:
            set_aside(experiment.out)
    with nullcontext(_ResultsInMemory()) if experiment.out is None else ResultsFile(experiment.out) as store:
        store.refuse_another_experiment(experiment.cases()[0], environment)
        runner = _stopping_at_shared_failures(runner)
        for case in experiment.cases():
            stored = store.measurements.get(case.key)
            if stored is not None and stored.status in FINAL_STATUSES:
                yield Event(case=case, kind="skipped", data={}, measurement=stored)
                continue
            # the worker must end when this generator is closed, not when the runner is garbage-collected
            clock = StepClock()
            with closing(runner(case)) as events:
                for event in events:
                    clock.feed(event, time.monotonic())
                    if event.measurement is not None:
                        measurement = _completed(
                            experiment, clock.added_to(event.measurement), store.measurements, environment
                        )
                        event = replace(event, measurement=measurement)
                        store.add(measurement)
                    yield event


def _stopping_at_shared_failures(runner: Runner) -> Runner:
    """Return a runner that starts no further case once one has failed for a reason that no variant avoids."""
    found: list[Measurement] = []

    def run_case(case: Case) -> Generator[Event, None, None]:
        if found:
            failure = replace(found[0], case=case, stderr_tail="", facts={})
            yield Event(case=case, kind="finished", data={}, measurement=failure)
            return
        with closing(runner(case)) as events:
            for event in events:
                if event.measurement is not None and event.measurement.hits_every_case:
                    found.append(event.measurement)
                yield event

    return run_case


def compare(
    experiment: Experiment, *, runner: Runner = run_isolated, restart: bool = False
) -> list[Measurement]:
    """Run every case of `experiment` and return all measurements in case order.

    Results found in the experiment's folder are included and not measured again.

    Args:
        experiment: what to run.
        runner: runs one case; by default in its own process.
        restart: start afresh; results in the folder are kept under another name.

    Raises:
        ResultsError: the folder's results are of another experiment (prompt, model, settings, versions), or
            another run is writing to them.
    """
    with closing(run(experiment, runner=runner, restart=restart)) as events:
        return [event.measurement for event in events if event.measurement is not None]


def _completed(
    experiment: Experiment,
    measurement: Measurement,
    stored: dict[str, Measurement],
    environment: dict[str, Any],
) -> Measurement:
    """Return `measurement` with its divergence from the reference and the environment."""
    case = experiment.reference_of(measurement.case)
    # the reference is compared with itself, and is not stored yet
    reference = None if case is None else {**stored, measurement.case.key: measurement}.get(case.key)
    return replace(compared_with(measurement, reference), environment=environment | measurement.environment)


def _fingerprint(model: str) -> dict[str, Any]:
    """Return what tells the model's contents; nothing if it is not on this machine, or not complete."""
    try:
        return {FINGERPRINT: ls.fingerprint_model(model, LoadOptions(local_files_only=True))}
    except LayerstreamError:
        return {}  # a worker will report it


def _check_budget(name: str, budget: str) -> None:
    if budget in ("min", "auto"):
        return
    try:
        parse_size(budget)
    except PlanError as error:
        raise ExperimentError(
            f"the {name} is {budget!r}: give min, or a size such as 6 GiB or 500 MB"
        ) from error


def _check_model(model: str) -> None:
    """Reject a local path without a checkpoint. Hub ids are not looked up here: the workers do that."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ExperimentError(f"{model} is not a checkpoint: the folder has no config.json")
    elif path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ExperimentError(
            f"there is no folder {model}: give a checkpoint's folder or a Hub id such as organization/name"
        )


def _check_names(kind: str, names: tuple[str, ...]) -> None:
    if not names or len(set(names)) < len(names):
        raise ExperimentError(
            f"{kind} variants are {', '.join(names) or 'none'}: give each at most once, and at least one"
        )
    for name in names:
        try:
            find_variant(name, kind)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
