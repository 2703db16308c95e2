"""The whole page: masthead, one tab per tool, links and endpoints, and the options to launch it with."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..documents import read_documents
from ..host_info import read_host_info
from ..theme import ASSETS, make_theme
from ..view.pages import masthead, method_view
from .api import add_endpoints, describe_endpoints
from .context import context
from .fit import fit
from .links import wire_links, wire_tabs
from .run_loop import session_of
from .services import Services, block
from .side_by_side import Controls, side_by_side
from .watch import watch

MISSING_TEXTS = {"common.complete": "Done"}
"""Texts that gradio announces to screen readers but has no words for."""


def make_page(services: Services) -> gr.Blocks:
    """Return the app with its queue set up."""
    limits = services.settings.limits
    with gr.Blocks(title="layerstream: one prompt, side by side", analytics_enabled=False) as page:
        block(masthead(services.catalogue.names, read_host_info()))
        # on a phone the tabs take two rows; a menu would hide them
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Side by side", id="compare", elem_id="page-compare"):
                controls, share = side_by_side(services)
            with gr.Tab("Watch it stream", id="watch", elem_id="page-watch") as watch_tab:
                replan = watch(services)
            with gr.Tab("Will it fit?", id="fit", elem_id="page-fit") as fit_tab:
                first_plan, fit_controls = fit(services)
            with gr.Tab("Long context", id="context", elem_id="page-context"):
                context(services)
            with gr.Tab("How it is measured", id="method", elem_id="page-method"):
                block(method_view(read_documents(), describe_endpoints()))
        watch_tab.select(**replan)
        fit_tab.select(**first_plan)
        wire_tabs(page, tabs, {"watch": replan, "fit": first_plan}, fit_controls, services.catalogue)
        wire_links(page, controls, share, limits)
        wire_readiness(page, services, controls)
        add_endpoints(services)
    return page.queue(max_size=limits.waiting, default_concurrency_limit=8)


def wire_readiness(page: gr.Blocks, services: Services, controls: Controls) -> None:
    """Tell `Readiness` which pages are open and in use."""
    if services.settings.in_process:
        return

    def on_use(request: gr.Request) -> None:
        services.readiness.page_used(session_of(request))

    def on_close(request: gr.Request) -> None:
        services.readiness.page_closed(session_of(request))

    immediate: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    in_use = [controls.prompt.focus, controls.variants.change]
    gr.on([page.load, *in_use], on_use, None, None, trigger_mode="once", **immediate)
    page.unload(on_close)


def launch_options() -> dict[str, Any]:
    """Return the options for gradio's `launch`: our theme, and no feature that contacts another server."""
    return {
        "theme": make_theme(),
        "css_paths": [ASSETS / "style.css"],
        "js": (ASSETS / "page.js").read_text(encoding="utf-8"),
        "footer_links": ["api"],
        "i18n": gr.I18n(en=MISSING_TEXTS),
        "run_history": False,
        "ssr_mode": False,
        "share": False,
        # gradio would ask for its own page once, and give up after three seconds: too few on a busy machine
        "_frontend": False,
        "quiet": True,
        "show_error": False,
    }
