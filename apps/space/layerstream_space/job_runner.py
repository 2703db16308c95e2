"""Run a visitor's request: check it against the limits, run case after case, stop at any moment.

This module uses compare's public names and the limits. It knows neither gradio nor HTML. To end
a run, close its iterator: the worker ends with it, and the iterator is never silent for longer than a
heartbeat.
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
)

from .errors import VisitorError
from .forecast import Forecast
from .models import Catalogue, sanitize_measurement, strip_paths
from .planner import Planner
from .run_state import RunState
from .settings import Limits, Settings

HEARTBEAT_S = 0.2
"""The longest silence of a run. Stop or a closed tab takes effect at the next update."""


DRAFTS = ("int8", "lookup")
"""The drafts that a visitor can choose: those that need no other model and no other library."""

CaseRunner = Callable[[Case], Generator[Event, None, None]]
"""Runs one case and yields its events, at least one every heartbeat."""


def run_in_app_process(case: Case) -> Generator[Event, None, None]:
    """Run `case` in this process, for hosts where child processes may not use the accelerator."""
    yield from run_in_process(case, heartbeat_s=HEARTBEAT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A visitor's request.

    Attributes:
        model: name of a model in the catalogue.
        prompt: the text.
        variants: names of weights variants.
        attention: names of attention variants.
        lengths: prompt lengths in tokens; 0 leaves the prompt as it is.
        new_tokens: length of the answer in tokens.
        budget: memory of the streamed variant: `min` or a size; on an accelerator its device memory.
        host_budget: host memory of the streamed variant on an accelerator: `min`, `auto` or a size.
        dtype: `auto` keeps the checkpoint's.
        rounds: how often each case is measured.
        quality: where to measure agreement with the exact model: `none`, `answer` (on its own answer) or
            `prose` (on a page of prose as well).
        timeline: report what a streamed case moves and waits for.
        draft: what proposes tokens for the streamed variant: one of `DRAFTS`; empty for nothing.
    """

    model: str
    prompt: str
    variants: tuple[str, ...]
    attention: tuple[str, ...] = ("default",)
    lengths: tuple[int, ...] = (0,)
    new_tokens: int = 32
    budget: str = "min"
    host_budget: str = "min"
    dtype: str = "auto"
    rounds: int = 1
    quality: str = "answer"
    timeline: bool = False
    draft: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """One update of a run.

    Attributes:
        state: the run's state; the same object in every update.
        event: the event that was applied; None while the model is fetched and when the run hits its time
            limit.
    """

    state: RunState
    event: Event | None = None


class JobRunner:
    """Runs requests."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        planner: Planner,
        run_case: CaseRunner,
    ) -> None:
        """Create a runner; nothing is started yet.

        Args:
            settings: how the app was started.
            catalogue: the models that may be run.
            planner: finds the default model.
            run_case: runs one case.
        """
        self._settings = settings
        self._catalogue = catalogue
        self._planner = planner
        self._forecast = Forecast()
        self._run_case = run_case

    def start(self, request: RunRequest) -> Generator[RunUpdate, None, None]:
        """Run `request` and yield an update for every event, at least one every `HEARTBEAT_S`.

        Raises:
            VisitorError: the request exceeds the limits or makes no sense; then nothing was started.
        """
        check_request(request, self._settings.limits)
        source = self._catalogue.source_of(request.model)
        experiment = _experiment(request, request.model, self._settings.limits)
        cases = experiment.cases()
        state = RunState(cases, experiment.reference_of(cases[0]), self._forecast.expect)
        if not source:
            source = yield from self._fetch_default_model(state)
        yield from self._run(request, source, state)

    def source_of(self, name: str) -> str:
        """Return the directory or Hub id of a model; fetching the default model may take half a minute."""
        return self._catalogue.source_of(name) or self._planner.default_model()

    def _fetch_default_model(self, state: RunState) -> Generator[RunUpdate, None, str]:
        path = self._planner.fetch_default_model()
        state.note = "Looking for the model. The first time, unpacking it takes half a minute."
        while not path.done():
            yield RunUpdate(state=state)
            time.sleep(HEARTBEAT_S)
        state.note = ""
        return path.result()

    def _run(self, request: RunRequest, source: str, state: RunState) -> Generator[RunUpdate, None, None]:
        limits = self._settings.limits
        experiment = _experiment(request, source, limits)
        deadline_s = time.monotonic() + limits.run_s

        def run_case(case: Case) -> Generator[Event, None, None]:
            return self._run_case(case.with_changes(timeline=request.timeline))

        with closing(run(experiment, runner=run_case)) as events:
            for raw_event in _report_as_visitor_errors(events, source, request.model):
                event = self._sanitize(raw_event, source, request.model)
                state.apply(event, time.monotonic())
                self._learn(state, event)
                yield RunUpdate(state=state, event=event)
                if time.monotonic() > deadline_s and not state.is_over:
                    state.stop(f"Stopped after {limits.run_s:.0f} s, the limit for one run on this page.")
                    yield RunUpdate(state=state)
                    return

    def _learn(self, state: RunState, event: Event) -> None:
        if event.measurement is not None and event.measurement.status == "ok":
            spent = state.column_of(event.case).spent
            self._forecast.learn(event.case, spent, len(event.measurement.token_ids))

    def _sanitize(self, event: Event, source: str, name: str) -> Event:
        case = event.case.with_changes(model=name, timeline=False)
        if event.measurement is None:
            return replace(event, case=case)
        measurement = sanitize_measurement(
            event.measurement, source, name, hide_stderr=self._settings.is_public
        )
        return replace(event, case=case, measurement=replace(measurement, case=case))


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
            host_budget=request.host_budget,
            dtype=request.dtype,
            rounds=request.rounds,
            time_limit_s=limits.case_s,
            quality=request.quality != "none",
            prose=request.quality == "prose",
            draft=request.draft,
            noise_floor=False,  # it would be one more case to wait for
        )
    except CompareError as error:
        raise VisitorError(strip_paths(str(error).replace(model, request.model))) from error


def _report_as_visitor_errors(events: Iterable[Event], source: str, name: str) -> Iterator[Event]:
    try:
        yield from events
    except CompareError as error:
        raise VisitorError(strip_paths(str(error).replace(source, name))) from error


def check_request(request: RunRequest, limits: Limits) -> None:
    """Check a request against the limits.

    Raises:
        VisitorError: which limit it exceeds, and what is possible.
    """
    if not request.prompt.strip():
        raise VisitorError("The prompt is empty. Write something, or pick an example.")
    if len(request.prompt) > limits.prompt_characters:
        raise VisitorError(
            f"The prompt has {len(request.prompt)} characters; the limit here is {limits.prompt_characters}."
        )
    _check_variants(request.variants, limits)
    if request.draft and request.draft not in DRAFTS:
        raise VisitorError(f"There is no draft {request.draft!r} here. Choose one of: {', '.join(DRAFTS)}.")
    if not 1 <= request.new_tokens <= limits.new_tokens:
        raise VisitorError(
            f"You asked for {request.new_tokens} new tokens; choose between 1 and {limits.new_tokens} here."
        )
    if not 1 <= request.rounds <= limits.rounds:
        raise VisitorError(
            f"You asked for {request.rounds} rounds; choose between 1 and {limits.rounds} here."
        )
    longest = max(request.lengths, default=0)
    if longest > limits.context_tokens:
        raise VisitorError(
            f"You asked for a prompt of {longest} tokens; the limit here is {limits.context_tokens}."
        )


def _check_variants(variants: Sequence[str], limits: Limits) -> None:
    if not variants:
        raise VisitorError("No variant is chosen. Tick at least one.")
    known = {variant.name for variant in list_variants("weights")}
    unknown = [name for name in variants if name not in known]
    if unknown:
        raise VisitorError(
            f"There is no variant called {unknown[0]!r}. Choose from: {', '.join(sorted(known))}."
        )
    if len(variants) > limits.variants:
        raise VisitorError(
            f"{len(variants)} variants are chosen; the limit for one run here is {limits.variants}."
        )
