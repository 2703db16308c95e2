"""Endpoints for programs: typed functions that `gradio_client` calls by name; the page's own events are none of them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import gradio as gr

from layerstream_compare import list_variants

from ..errors import VisitorError
from ..job_runner import RunRequest
from ..machines import MACHINES, machine_called
from ..models import hub_id, strip_paths
from ..view.pages import Argument, Endpoint
from .fit import KNOWN, subject_called
from .services import MODEL_QUEUE, Services


def describe_endpoints() -> list[Endpoint]:
    """Return what each endpoint's docstring and signature say; gradio's own page of endpoints leaves the arguments unexplained."""
    return [_described(name, getattr(Endpoints, name)) for name in ("compare", "plan", "choices")]


def _described(name: str, function: Callable[..., Any]) -> Endpoint:
    told, _, rest = inspect.cleandoc(function.__doc__ or "").partition("Args:")
    meanings = dict(re.findall(r"^ +(\w+): (.+)$", rest, re.MULTILINE))
    arguments = tuple(
        Argument(
            name=each.name,
            kind=str(each.annotation),
            default="" if each.default is each.empty else repr(each.default),
            told=meanings[each.name].replace("`", ""),
        )
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    )
    return Endpoint(name=name, told=" ".join(told.split()).replace("`", ""), arguments=arguments)


def add_endpoints(services: Services) -> None:
    """Add `/compare`, `/plan` and `/choices` to the app."""
    endpoints = Endpoints(services)
    at_once = services.settings.limits.runs_at_once
    gr.api(endpoints.compare, api_name="compare", concurrency_id=MODEL_QUEUE, concurrency_limit=at_once)
    gr.api(endpoints.plan, api_name="plan")
    gr.api(endpoints.choices, api_name="choices")


class Endpoints:
    """What a program can ask for."""

    def __init__(self, services: Services) -> None:
        """Answer from these services."""
        self._services = services

    def compare(
        self,
        prompt: str,
        variants: list[str],
        max_new_tokens: int = 32,
        budget: str = "min",
        model: str = "",
        quality: str = "answer",
    ) -> Generator[list[dict[str, Any]], None, None]:
        """Run one prompt through variants and return a measurement for each, as `layerstream_compare.Measurement` writes them.

        Args:
            prompt: the text.
            variants: names from `/choices`; the first exact one (streamed, resident) is the reference.
            max_new_tokens: tokens to generate, greedily.
            budget: memory of the streamed variant: `min` or a size such as `100 MiB`.
            model: a name from `/choices`; empty is the first.
            quality: `answer`, `prose` (and on prose, slow) or `none`.
        """
        request = RunRequest(
            model=model or self._services.catalogue.names[0],
            prompt=prompt,
            variants=tuple(variants),
            new_tokens=max_new_tokens,
            budget=budget,
            quality=quality,
        )
        done: list[dict[str, Any]] = []
        try:
            with closing(self._services.job_runner.start(request)) as steps:
                for step in steps:
                    if step.event is not None and step.event.measurement is not None:
                        done = [*done, json.loads(step.event.measurement.to_json())]
                    yield done
        except VisitorError as error:
            raise _told(error) from error

    def plan(
        self, model: str, machine: str, dtype: str = "auto", prompt_tokens: int = 512, new_tokens: int = 128
    ) -> dict[str, Any]:
        """Return where every block of a model would live on a machine, the ledger in bytes and the predicted seconds. Nothing runs.

        Args:
            model: a known model or one of this page's, from `/choices`, or a Hub id.
            machine: a name from `/choices`.
            dtype: `auto`, `float16`, `bfloat16` or `float32`.
            prompt_tokens: of the prompt.
            new_tokens: of the answer.
        """
        lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        try:
            if machine not in MACHINES:
                raise VisitorError(
                    f"There is no machine called {machine!r}; there are {', '.join(MACHINES)}."
                )
            listed = model in KNOWN or model in self._services.catalogue.names
            subject = subject_called(self._services, model) if listed else {"model": hub_id(model)}
            answer = self._services.planner.ask(
                "plan", **subject, machine=machine_called(machine), dtype=dtype, **lengths
            )
        except VisitorError as error:
            raise _told(error) from error
        return _named(answer, model)

    def choices(self) -> dict[str, list[str]]:
        """Return what the other endpoints take: models, known models, machines, and the variants that this machine can run."""
        return {
            "models": list(self._services.catalogue.names),
            "known_models": list(KNOWN),
            "machines": list(MACHINES),
            "variants": [each.name for each in list_variants("weights") if each.availability() is None],
        }


def _named(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the planner's answer with the model called as it was asked for, and never by its folder."""
    plan = answer["plan"]
    named = {
        **answer,
        "model": {**answer["model"], "name": model},
        "why_not": strip_paths(answer["why_not"]),
    }
    return named if plan is None else {**named, "plan": {**plan, "model_name": model}}


def _told(error: VisitorError) -> gr.Error:
    return gr.Error(strip_paths(str(error)), print_exception=False)
