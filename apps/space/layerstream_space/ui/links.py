"""Links that carry a request: a button writes the choices into the address, and an address fills the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from inspect import isgenerator
from typing import Any

import gradio as gr

from ..models import Catalogue
from ..settings import Limits
from .fit import FitControls
from .fit_request import values_from_query as values_from_fit_query
from .side_by_side import Controls, available_variants

TABS = ("compare", "watch", "fit", "context", "method")
"""The tabs, as addresses name them in `?tab=`; gradio uses `page` itself."""

COPY_JS = """(prompt, variants, tokens, budget, quality, host) => {
  const query = {prompt, variants: variants.join(","), tokens, budget, quality};
  if (host && host !== "min") query.host_budget = host;
  window.layerstream.copyLink(query, "#share", "Link copied");
  return [];
}"""


def wire_links(page: gr.Blocks, controls: Controls, share: gr.Button, limits: Limits) -> None:
    """Fill the page from its address when it opens, and let the button write an address."""

    def on_load(request: gr.Request) -> tuple[Any, ...]:
        query = dict(request.query_params)
        return (*values_from_query(query, limits), _budget_from(query, "host_budget"))

    outputs = [
        controls.prompt,
        controls.variants,
        controls.new_tokens,
        controls.budget,
        controls.quality,
        controls.host_budget,
    ]
    page.load(on_load, None, outputs, queue=False, show_progress="hidden", api_visibility="private")
    share.click(None, outputs, None, js=COPY_JS, api_visibility="private")


def wire_tabs(
    page: gr.Blocks,
    tabs: gr.Tabs,
    plans: Mapping[str, Mapping[str, Any]],
    fit: FitControls,
    catalogue: Catalogue,
) -> None:
    """Open the tab that the address names (`?tab=fit`), fill its controls and make its first plan.

    Args:
        page: the page.
        tabs: its tabs.
        plans: for each tab that starts with a plan, the event that makes it.
        fit: the controls of "Will it fit?", which an address may fill.
        catalogue: the models that this page may run.
    """

    def on_load(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        name = opened_tab(query)
        values = values_from_fit_query(query, catalogue) if name == "fit" else {}
        return [
            gr.Tabs(selected=name) if name else gr.skip(),
            *(values.get(each.name, gr.skip()) for each in fields(fit)),
        ]

    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # a plan can take seconds, and the tab opens at once
    opened = page.load(on_load, None, [tabs, *fit.components], queue=False, **hidden)
    for name, plan in plans.items():
        opened.then(_if_opened(name, plan["fn"]), plan["inputs"], plan["outputs"], **hidden)


def opened_tab(query: Mapping[str, str]) -> str:
    """Return the tab that an address names; empty if it names none."""
    # addresses from before this name say "tool"
    name = query.get("tab") or query.get("tool", "")
    return name if name in TABS else ""


def _if_opened(name: str, plan: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """Return an event's function that makes a plan if the address names the tab `name`."""

    def on_opened(request: gr.Request, *values: Any) -> Iterator[Any]:
        if opened_tab(dict(request.query_params)) != name:
            yield gr.skip()
            return
        made = plan(*values)
        yield from made if isgenerator(made) else (made,)

    return on_opened


def values_from_query(query: dict[str, str], limits: Limits) -> tuple[Any, ...]:
    """Return updates for prompt, variants, new tokens, budget and quality.

    A missing or invalid value changes nothing.

    Args:
        query: the address's parameters; anyone can write them, so they are checked.
        limits: the limits of this page.
    """
    known = {name for _, name in available_variants()}
    variants = [name for name in query.get("variants", "").split(",") if name in known][: limits.variants]
    tokens = query.get("tokens", "")
    quality = query.get("quality", "")
    return (
        query["prompt"][: limits.prompt_characters] if query.get("prompt") else gr.skip(),
        variants or gr.skip(),
        min(max(4, int(tokens)), limits.new_tokens)
        if tokens.isascii() and tokens.isdigit() and len(tokens) < 7
        else gr.skip(),
        _budget_from(query, "budget"),
        quality if quality in ("answer", "prose", "none") else gr.skip(),
    )


def _budget_from(query: Mapping[str, str], name: str) -> Any:
    return query[name][:40] if query.get(name) else gr.skip()
