"""An experiment: which cases, in which order, and the loop that runs them.

Parent's side: it knows cases, runners, the results file and divergence. It deliberately knows nothing of models, processes or how
results are shown. Reference first, then one after another; repeated rounds are interleaved, so that a slow minute of the machine
falls on every variant alike.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .case import Case
from .divergence import EXACT_VARIANTS, compared_with
from .environment import describe_environment
from .errors import ExperimentError
from .events import Event
from .measurement import Measurement
from .results import ResultsFile
from .runners.isolate import run_isolated
from .units import is_size
from .variants.registry import find_variant

Runner = Callable[[Case], Generator[Event, None, None]]
"""Runs one case and yields its events; the last one is `finished` and has the measurement. Closing it ends the case."""

OTHER_KERNELS = ("eager", "sdpa-math", "flex")
"""Attention variants that round in another way than the reference's, the first one best: it runs everywhere."""

_DONE = ("ok", "unavailable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One prompt through every combination of variant, attention and prompt length.

    Attributes:
        model: directory or Hub id.
        prompt: the user's text.
        variants: names of weights variants, in the order of the report.
        attention: names of attention variants; the first one (or `default`, where it is among them) is the reference's.
        lengths: prompt lengths in tokens; 0 leaves the prompt as it is.
        max_new_tokens: tokens to generate, greedily.
        budget: memory for the `streamed` variant: `min`, or a size.
        dtype: torch's name of the unquantized dtype; `auto` keeps the checkpoint's.
        device: torch device string; `auto` is the accelerator if there is one.
        rounds: how often each case is measured.
        threads: torch threads; 0 leaves torch's choice.
        warmup_tokens: tokens generated once before measuring.
        time_limit_s: for each case.
        chat: apply the tokenizer's chat template.
        quality: measure agreement with the exact reference: once a variant and attention, at the first length, in the first round.
        prose: measure it on the prose of this package too, not on the reference's answer alone.
        noise_floor: with quality, measure the reference's weights once more with another attention kernel, where no case does that
            anyway: a variant that differs by no more than this one differs by rounding.
        out: folder for the results, which makes them resumable; None keeps them in memory.
    """

    model: str
    prompt: str
    variants: tuple[str, ...] = ("streamed", "resident", "bnb-int8", "bnb-nf4")
    attention: tuple[str, ...] = ("default",)
    lengths: tuple[int, ...] = (0,)
    max_new_tokens: int = 60
    budget: str = "min"
    dtype: str = "auto"
    device: str = "auto"
    rounds: int = 1
    threads: int = 0
    warmup_tokens: int = 2
    time_limit_s: float = 1800.0
    chat: bool = True
    quality: bool = True
    prose: bool = True
    noise_floor: bool = True
    out: str | Path | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense before anything is started.

        Raises:
            ExperimentError: an unknown or repeated variant, an empty choice, a number out of its range, a folder without a
                checkpoint, or a budget that is no size.
        """
        _check_model(self.model)
        if self.budget not in ("min", "auto") and not is_size(self.budget):
            raise ExperimentError(
                f"the budget is {self.budget!r}: give min, or a size such as 6 GiB or 500 MB"
            )
        for kind, names in (("weights", self.variants), ("attention", self.attention)):
            _check_names(kind, names)
        if not self.lengths or len(set(self.lengths)) < len(self.lengths) or min(self.lengths) < 0:
            raise ExperimentError(
                f"prompt lengths are {self.lengths}: give different ones, each at least 1, or 0 for the prompt as it is"
            )
        if not self.prompt.strip():
            raise ExperimentError("the prompt is empty: give some text, which longer lengths repeat")
        for name, least in (("max_new_tokens", 1), ("rounds", 1), ("threads", 0), ("warmup_tokens", 0)):
            if getattr(self, name) < least:
                raise ExperimentError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not self.time_limit_s > 0:
            raise ExperimentError(f"time_limit_s is {self.time_limit_s}: it must be more than 0")

    @property
    def reference_variant(self) -> str | None:
        """The weights variant whose answers the others are compared with; None when no exact one is asked for."""
        return next((name for name in self.variants if name in EXACT_VARIANTS), None)

    @property
    def reference_attention(self) -> str:
        """The attention variant of the reference."""
        return "default" if "default" in self.attention else self.attention[0]

    def cases(self) -> tuple[Case, ...]:
        """Return every case in the order of running: in each round, for each length, the reference first; the noise floor last."""
        pairs = [(variant, attention) for variant in self.variants for attention in self.attention]
        pairs.sort(key=lambda pair: pair != (self.reference_variant, self.reference_attention))
        asked = (
            self._case(variant, attention, length, number)
            for number in range(self.rounds)
            for length in self.lengths
            for variant, attention in pairs
        )
        return (*asked, *self._noise_floor())

    def _noise_floor(self) -> tuple[Case, ...]:
        wanted = self.noise_floor and self.quality and self.reference_variant is not None
        if not wanted or any(name in OTHER_KERNELS for name in self.attention):
            return ()
        return (self._case(self.reference_variant or "", OTHER_KERNELS[0], self.lengths[0], 0),)

    def reference_of(self, case: Case) -> Case | None:
        """Return the case with whose answer this one's is compared: of the same length and round."""
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
            # agreement does not change from round to round, and a long prompt would cost it as much again at every length
            quality=self.quality and number == 0 and length == self.lengths[0],
            prose=self.prose,
            threads=self.threads,
            warmup_tokens=self.warmup_tokens,
            time_limit_s=self.time_limit_s,
            round=number,
        )


class _Memory:
    """Where results go that no file keeps."""

    def __init__(self) -> None:
        self.measurements: dict[str, Measurement] = {}

    def add(self, measurement: Measurement) -> None:
        self.measurements[measurement.case.key] = measurement


def run(experiment: Experiment, *, runner: Runner = run_isolated) -> Generator[Event, None, None]:
    """Run every case of `experiment` and yield what happens while it happens.

    Cases whose result is in the experiment's folder already are `skipped`; failed ones run again. A result is on the disk before
    its `finished` event is yielded. Closing the iterator ends the case that runs.

    Args:
        experiment: what to run.
        runner: how one case is run; in a process of its own by default.

    Raises:
        ResultsError: the folder's results are of another version, or another run is writing to them.
    """
    environment = describe_environment()
    with nullcontext(_Memory()) if experiment.out is None else ResultsFile(experiment.out) as store:
        for case in experiment.cases():
            known = store.measurements.get(case.key)
            if known is not None and known.status in _DONE:
                yield Event(case=case, kind="skipped", data={}, measurement=known)
                continue
            # the runner's process must end with this generator, not when it is collected
            with closing(runner(case)) as events:
                for event in events:
                    if event.measurement is not None:
                        measurement = _completed(
                            experiment, event.measurement, store.measurements, environment
                        )
                        event = replace(event, measurement=measurement)
                        store.add(measurement)
                    yield event


def compare(experiment: Experiment, *, runner: Runner = run_isolated) -> list[Measurement]:
    """Run every case of `experiment` and return the measurements in the order of the cases, those found in its folder included.

    Args:
        experiment: what to run.
        runner: how one case is run; in a process of its own by default.

    Raises:
        ResultsError: the folder's results are of another version, or another run is writing to them.
    """
    with closing(run(experiment, runner=runner)) as events:
        return [event.measurement for event in events if event.measurement is not None]


def _completed(
    experiment: Experiment,
    measurement: Measurement,
    known: dict[str, Measurement],
    environment: dict[str, Any],
) -> Measurement:
    reference = experiment.reference_of(measurement.case)
    found = None if reference is None else {**known, measurement.case.key: measurement}.get(reference.key)
    return replace(compared_with(measurement, found), environment=environment | measurement.environment)


def _check_model(model: str) -> None:
    """Refuse a path without a checkpoint before any case fails of it; whether the Hub has a name, the workers find out."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ExperimentError(f"{model} is no checkpoint: the folder has no config.json")
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
