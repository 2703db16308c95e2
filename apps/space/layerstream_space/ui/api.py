"""Endpoints for programs: typed functions that `gradio_client` calls by name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from layerstream import (
    KNOWN_MODELS,
    Machine,
    PlanError,
    Workload,
    bytes_by_precision,
    machine_from_figures,
)
from layerstream_compare import list_variants

from ..errors import VisitorError
from ..job_runner import RunRequest
from ..machines import MACHINES
from ..models import hub_id, strip_paths
from ..planner import ModelSource, PlanAnswer
from ..view.pages import Argument, Endpoint
from .fit_request import KNOWN, listed_source
from .run_loop import MODEL_QUEUE, follow_run
from .services import Services


def describe_endpoints() -> list[Endpoint]:
    """Return the endpoints' docstrings and signatures; gradio's own page does not explain the arguments."""
    return [_description(name, getattr(Endpoints, name)) for name in ("compare", "plan", "choices")]


def _description(name: str, function: Callable[..., Any]) -> Endpoint:
    summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("Args:")
    meanings = dict(re.findall(r"^ +(\w+): (.+)$", rest, re.MULTILINE))
    arguments = tuple(
        Argument(
            name=parameter.name,
            kind=str(parameter.annotation),
            default="" if parameter.default is parameter.empty else repr(parameter.default),
            meaning=meanings[parameter.name].replace("`", ""),
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    )
    return Endpoint(name=name, summary=" ".join(summary.split()).replace("`", ""), arguments=arguments)


def add_endpoints(services: Services) -> None:
    """Add `/compare`, `/plan` and `/choices` to the app."""
    endpoints = Endpoints(services)
    at_once = services.settings.limits.runs_at_once
    gr.api(endpoints.compare, api_name="compare", concurrency_id=MODEL_QUEUE, concurrency_limit=at_once)
    gr.api(endpoints.plan, api_name="plan")
    gr.api(endpoints.choices, api_name="choices")


class Endpoints:
    """The functions that programs can call. The page shows their docstrings."""

    def __init__(self, services: Services) -> None:
        """Create endpoints that answer from these services."""
        self._services = services

    def compare(
        self,
        prompt: str,
        variants: list[str],
        max_new_tokens: int = 32,
        budget: str = "min",
        model: str = "",
        quality: str = "answer",
        host_budget: str = "min",
    ) -> Generator[list[dict[str, Any]], None, None]:
        """Run one prompt through variants and return a measurement for each.

        A measurement has the fields of `layerstream_compare.Measurement`.

        Args:
            prompt: the text.
            variants: names from `/choices`; the first exact one (streamed, resident) is the reference.
            max_new_tokens: number of tokens to generate, greedily.
            budget: memory of the streamed variant: `min` or a size such as `100 MiB`.
            model: a name from `/choices`; empty means the first one.
            quality: where to measure agreement: `answer`, `prose` (also on prose, slow) or `none`.
            host_budget: host memory of the streamed variant on an accelerator: `min`, `auto` or a size.
        """
        request = RunRequest(
            model=model or self._services.catalogue.names[0],
            prompt=prompt,
            variants=tuple(variants),
            new_tokens=max_new_tokens,
            budget=budget,
            quality=quality,
            host_budget=host_budget,
        )
        try:
            with closing(follow_run(self._services.job_runner, request)) as states:
                for state in states:
                    yield [json.loads(measurement.to_json()) for measurement in state.measurements]
        except VisitorError as error:
            raise _as_gradio_error(error) from error

    def plan(
        self, model: str, machine: str, dtype: str = "auto", prompt_tokens: int = 512, new_tokens: int = 128
    ) -> dict[str, Any]:
        """Return the placement plan of a model on a machine. Nothing runs.

        It says where every block would live, the memory ledger in bytes and the predicted seconds.

        Args:
            model: a known model or one of this page's models, from `/choices`, or a Hub id.
            machine: a name from `/choices`, or figures such as `gpu=16GB,ram=32GB,disk=2.5GB/s,pcie=12GB/s`.
            dtype: `auto`, `float16`, `bfloat16` or `float32`.
            prompt_tokens: length of the prompt in tokens.
            new_tokens: length of the answer in tokens.
        """
        try:
            is_listed = model in KNOWN or model in KNOWN_MODELS or model in self._services.catalogue.names
            source = listed_source(self._services, model) if is_listed else ModelSource(model=hub_id(model))
            workload = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
            answer = self._services.planner.plan(
                source, machine=_machine(machine), workload=workload, dtype=dtype
            )
        except (VisitorError, PlanError) as error:
            raise _as_gradio_error(error) from error
        return _record(answer, model)

    def choices(self) -> dict[str, list[str]]:
        """Return what the other endpoints accept: models, machines, and the variants that run here."""
        return {
            "models": list(self._services.catalogue.names),
            "known_models": list(KNOWN),
            "machines": list(MACHINES),
            "variants": [
                variant.name for variant in list_variants("weights") if variant.availability() is None
            ],
        }


def _machine(text: str) -> Machine | None:
    if text in MACHINES:
        return MACHINES[text]
    if "=" in text:
        return machine_from_figures(text)
    raise VisitorError(f"There is no machine called {text!r}. Choose from: {', '.join(MACHINES)}.")


def _record(answer: PlanAnswer, model: str) -> dict[str, Any]:
    """Return an answer as JSON-ready values, with the requested name of the model and without its folder."""
    profile, plan = answer.profile, answer.plan
    return {
        "plan": None if plan is None else replace(plan, model_name=model).to_dict(),
        "why_not": strip_paths(answer.reason),
        "least_bytes": answer.minimum_bytes,
        "model": {
            "name": model,
            "type": profile.model_type,
            "dtype": profile.dtype,
            "parameters": profile.num_parameters,
            "weight_bytes": profile.weight_bytes,
            "quantized_parameters": sum(unit.num_parameters for unit in profile.blocks),
            "kept_bytes": profile.weight_bytes - sum(unit.weight_bytes for unit in profile.blocks),
            "bytes_by_precision": dict(bytes_by_precision(profile.num_parameters)),
            "blocks": len(profile.blocks),
        },
        "machine": asdict(answer.machine),
    }


def _as_gradio_error(error: Exception) -> gr.Error:
    return gr.Error(strip_paths(str(error)), print_exception=False)
