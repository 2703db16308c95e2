"""Endpoints for programs: typed functions that `gradio_client` calls by name; the page's own events are none of them."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from typing import Any

import gradio as gr

from layerstream_compare import list_variants

from ..errors import VisitorError
from ..jobs import Wish
from ..machines import MACHINES, machine_called
from ..models import hub_id, without_paths
from .fit import KNOWN, subject_called
from .services import MODEL_QUEUE, Services


def add_endpoints(services: Services) -> None:
    """Add `/compare`, `/plan` and `/choices` to the app."""
    limits = services.settings.limits

    def compare(
        prompt: str, variants: list[str], max_new_tokens: int = 32, budget: str = "min", model: str = "", quality: str = "answer"
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
        wish = Wish(
            model=model or services.catalogue.names[0],
            prompt=prompt,
            variants=tuple(variants),
            new_tokens=max_new_tokens,
            budget=budget,
            quality=quality,
        )
        done: list[dict[str, Any]] = []
        try:
            with closing(services.runs.start(wish)) as steps:
                for step in steps:
                    if step.event is not None and step.event.measurement is not None:
                        done = [*done, json.loads(step.event.measurement.to_json())]
                    yield done
        except VisitorError as error:
            raise gr.Error(without_paths(str(error)), print_exception=False) from error

    def plan(model: str, machine: str, dtype: str = "auto", prompt_tokens: int = 512, new_tokens: int = 128) -> dict[str, Any]:
        """Return where every block of a model would live on a machine, the ledger in bytes and the predicted seconds. Nothing runs.

        Args:
            model: a known model or one of this page's, from `/choices`, or a Hub id.
            machine: a name from `/choices`.
            dtype: `auto`, `float16`, `bfloat16` or `float32`.
            prompt_tokens: of the prompt.
            new_tokens: of the answer.
        """
        try:
            if machine not in MACHINES:
                raise VisitorError(f"There is no machine called {machine!r}; there are {', '.join(MACHINES)}.")
            listed = model in KNOWN or model in services.catalogue.names
            subject = subject_called(services, model) if listed else {"model": hub_id(model)}
            return services.planner.ask(
                "plan",
                **subject,
                machine=machine_called(machine),
                dtype=dtype,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
            )
        except VisitorError as error:
            raise gr.Error(without_paths(str(error)), print_exception=False) from error

    def choices() -> dict[str, list[str]]:
        """Return what the other endpoints take: models, known models, machines, and the variants that this machine can run."""
        return {
            "models": list(services.catalogue.names),
            "known_models": list(KNOWN),
            "machines": list(MACHINES),
            "variants": [each.name for each in list_variants("weights") if each.availability() is None],
        }

    gr.api(compare, api_name="compare", concurrency_id=MODEL_QUEUE, concurrency_limit=limits.runs_at_once)
    gr.api(plan, api_name="plan")
    gr.api(choices, api_name="choices")
