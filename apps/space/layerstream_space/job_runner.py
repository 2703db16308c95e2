"""JobRunner: a visitor's request, checked against the limits, carried out case by case, stoppable at any moment.

It knows compare's public names and the limits; it deliberately knows neither gradio nor HTML. Whoever consumes a run closes it to
end it: the worker ends with the iterator, and no iterator is silent for longer than a heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from layerstream_compare import (
    Case,
    CompareError,
    Event,
    Experiment,
    list_variants,
    run,
    run_in_process,
    run_isolated,
)

from .errors import VisitorError
from .models import Catalogue, sanitize_measurement, strip_paths
from .planner import Planner
from .run_state import RunState
from .settings import Limits, Settings

HEARTBEAT_S = 0.2
"""No run is silent for longer: a pressed Stop or a closed tab is noticed at the next sign of life."""

FETCH_WITHIN_S = 600.0


Runner = Callable[[Case], Generator[Event, None, None]]
"""JobRunner one case, never silent for longer than a heartbeat."""


def run_in_worker_process(case: Case) -> Generator[Event, None, None]:
    """Run `case` in a process of its own."""
    return run_isolated(case, heartbeat_s=HEARTBEAT_S)


def run_in_app_process(case: Case) -> Generator[Event, None, None]:
    """Run `case` in this process, where children may not have the accelerator."""
    yield from run_in_process(case, heartbeat_s=HEARTBEAT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a visitor asked for.

    Attributes:
        model: a name of the catalogue.
        prompt: the text.
        variants: names of weights variants.
        attention: names of attention variants.
        lengths: prompt lengths in tokens; 0 leaves the prompt as it is.
        new_tokens: tokens of the answer.
        budget: memory of the streamed column: `min` or a size.
        dtype: `auto` keeps the checkpoint's.
        quality: measure agreement with the exact model: `none`, `answer` (on its answer) or `prose` (on a page of prose too).
        timeline: tell what a streamed case moves and waits for.
    """

    model: str
    prompt: str
    variants: tuple[str, ...]
    attention: tuple[str, ...] = ("default",)
    lengths: tuple[int, ...] = (0,)
    new_tokens: int = 32
    budget: str = "min"
    dtype: str = "auto"
    quality: str = "answer"
    timeline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One sign of life of a run.

    Attributes:
        state: the run's columns; the same object each time.
        event: what happened; None while the model is fetched, at the start and at the end.
        changed: whether anything but time has.
    """

    state: RunState
    event: Event | None = None
    changed: bool = True


class JobRunner:
    """Carries out requests."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, planner: Planner, runner: Runner | None = None
    ) -> None:
        """Know what may be run, and how.

        Args:
            settings: how the app was started.
            catalogue: the models.
            planner: finds the default model.
            runner: runs one case; by default what the settings say.
        """
        self._settings = settings
        self._catalogue = catalogue
        self._planner = planner
        self._runner = runner or (run_in_app_process if settings.in_process else run_in_worker_process)

    def start(self, request: RunRequest) -> Generator[Step, None, None]:
        """Carry out `request` and yield a step at every event, and at least every `HEARTBEAT_S`; the last one's state is over.

        Raises:
            VisitorError: the request is beyond the limits or makes no sense; nothing was started then.
        """
        check(request, self._settings.limits)
        source = self._catalogue.source_of(request.model)
        state = _state(_experiment(request, request.model, self._settings.limits))
        if not source:
            source = yield from self._fetched(state)
        yield from self._run(request, source, state)

    def source_of(self, name: str) -> str:
        """Return the directory or Hub id of a model, fetched where it must be. May take half a minute."""
        return self._catalogue.source_of(name) or str(
            self._planner.ask("default_model", within_s=FETCH_WITHIN_S)["path"]
        )

    def _fetched(self, state: RunState) -> Generator[Step, None, str]:
        """Wait until the default model is there; return its directory."""
        answer = self._planner.submit("default_model", within_s=FETCH_WITHIN_S)
        state.note = "Getting the model; the first time takes half a minute."
        yield Step(state=state)
        while not answer.done():
            time.sleep(HEARTBEAT_S)
            yield Step(state=state, changed=False)
        state.note = ""
        return str(answer.result()["path"])

    def _run(self, request: RunRequest, source: str, state: RunState) -> Generator[Step, None, None]:
        limits = self._settings.limits
        experiment = _experiment(request, source, limits)
        deadline = time.monotonic() + limits.run_s
        runner = (
            self._runner
            if not request.timeline
            else lambda case: self._runner(case.with_changes(timeline=True))
        )
        with closing(run(experiment, runner=runner)) as events:
            for event in _without_comparison_errors(events, source, request.model):
                event = self._shown(event, source, request.model)
                yield Step(state=state, event=event, changed=state.take(event, time.monotonic()))
                if time.monotonic() > deadline and not state.is_over:
                    state.stop(f"Stopped after {limits.run_s:.0f} s, the limit for one run here.")
                    yield Step(state=state)
                    return

    def _shown(self, event: Event, source: str, name: str) -> Event:
        case = event.case.with_changes(model=name, timeline=False)
        if event.measurement is None:
            return replace(event, case=case)
        hides = self._settings.is_public
        measurement = replace(sanitize_measurement(event.measurement, source, name, hides=hides), case=case)
        return replace(event, case=case, measurement=measurement)


def _experiment(request: RunRequest, model: str, limits: Limits) -> Experiment:
    try:
        return Experiment(
            model=model,
            prompt=request.prompt,
            variants=request.variants,
            attention=request.attention,
            lengths=request.lengths,
            max_new_tokens=request.new_tokens,
            budget=request.budget,
            dtype=request.dtype,
            time_limit_s=limits.case_s,
            quality=request.quality != "none",
            prose=request.quality == "prose",
            noise_floor=False,  # one more case to wait for
        )
    except CompareError as error:
        raise VisitorError(strip_paths(str(error).replace(model, request.model))) from error


def _without_comparison_errors(events: Iterable[Event], source: str, name: str) -> Iterator[Event]:
    try:
        yield from events
    except CompareError as error:
        raise VisitorError(strip_paths(str(error).replace(source, name))) from error


def _state(experiment: Experiment) -> RunState:
    cases = experiment.cases()
    return RunState(cases, experiment.reference_of(cases[0]))


def check(request: RunRequest, limits: Limits) -> None:
    """Refuse a request beyond the limits.

    Raises:
        VisitorError: which one, and what is possible.
    """
    if not request.prompt.strip():
        raise VisitorError("The prompt is empty: write something, or pick an example.")
    if len(request.prompt) > limits.prompt_characters:
        raise VisitorError(
            f"The prompt has {len(request.prompt)} characters; at most {limits.prompt_characters} fit here."
        )
    if not request.variants:
        raise VisitorError("No variant is chosen: tick at least one.")
    known = {each.name for each in list_variants("weights")}
    strangers = [name for name in request.variants if name not in known]
    if strangers:
        raise VisitorError(
            f"There is no variant called {strangers[0]!r}; there are {', '.join(sorted(known))}."
        )
    if len(request.variants) > limits.variants:
        raise VisitorError(
            f"{len(request.variants)} variants are chosen; at most {limits.variants} in one run here."
        )
    if not 1 <= request.new_tokens <= limits.new_tokens:
        raise VisitorError(f"{request.new_tokens} new tokens; between 1 and {limits.new_tokens} here.")
    _check_lengths(request.lengths, limits)


def _check_lengths(lengths: Sequence[int], limits: Limits) -> None:
    if max(lengths, default=0) > limits.context_tokens:
        raise VisitorError(f"A prompt of {max(lengths)} tokens; at most {limits.context_tokens} here.")
