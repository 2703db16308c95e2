"""Links that carry a request: a button writes the choices into the address, and an address fills the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ..settings import Limits
from .side_by_side import Controls, available_variants

TOOLS = ("compare", "watch", "fit", "context", "method")
"""The tabs, as addresses name them in `?tool=`; gradio uses `page` itself."""

COPY_JS = """(prompt, variants, tokens, budget, quality, host) => {
  const link = new URL(window.location.href.split(/[?#]/)[0]);
  const query = {prompt, variants: variants.join(","), tokens, budget, quality};
  if (host && host !== "min") query.host_budget = host;
  link.search = new URLSearchParams(query).toString();
  window.history.replaceState(null, "", link);
  if (navigator.clipboard) navigator.clipboard.writeText(link.toString()).catch(() => {});
  const button = document.querySelector("#share");
  if (button) {
    const label = button.textContent;
    button.textContent = "Link copied";
    setTimeout(() => { button.textContent = label; }, 1800);
  }
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


def wire_tools(page: gr.Blocks, tabs: gr.Tabs, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Open the tab that the address names (`?tool=fit`) and make its first plan.

    Args:
        page: the page.
        tabs: its tabs.
        plans: for each tab that starts with a plan, the event that makes it.
    """

    def on_load(request: gr.Request) -> list[Any]:
        tool = str(request.query_params.get("tool", ""))
        opened = gr.Tabs(selected=tool) if tool in TOOLS else gr.skip()
        return [opened, *(_first(plan) if name == tool else gr.skip() for name, plan in plans.items())]

    outputs = [tabs, *(plan["outputs"] for plan in plans.values())]
    page.load(on_load, None, outputs, show_progress="hidden", api_visibility="private")


def _first(plan: Mapping[str, Any]) -> Any:
    return plan["fn"](*(component.value for component in plan["inputs"]))


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
