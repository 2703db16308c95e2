"""A visitor's browser: its page, what the page asked for, and its errors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from app_process import App
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SHOTS = Path(__file__).resolve().parents[3] / ".artefacts" / "app"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)
FLAGS += ("--disable-component-update", "--disable-sync")
LONG_S = 120_000

MARKS = [
    # in CI a missing browser is a failure, because .ci/run installs one
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="no Chromium here: apt-get install chromium"
    ),
    pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost"]),
    pytest.mark.xdist_group("app"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
"""Marks of every test that opens a browser."""


class Visit:
    """One visitor's page, with its requests and its errors."""

    def __init__(
        self, browser: Browser, app: App, *, query: str = "", width: int = 1440, dark: bool = False
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        # without its heartbeat, the app does not hear that the page is closed
        with self.page.expect_response(lambda response: "/heartbeat/" in response.url, timeout=LONG_S):
            self.page.goto(app.address + query)
        expect(self.page.locator(".ls-masthead")).to_be_visible(timeout=LONG_S)
        if variants := parse_qs(query.removeprefix("?")).get("variants"):
            # the page fills itself from its address a moment after it is drawn
            expect(self.page.locator("#variants input:checked")).to_have_count(
                len(variants[0].split(",")), timeout=LONG_S
            )

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def choose(self, *variants: str) -> None:
        for box in self.page.locator("#variants input").all():
            box.set_checked(box.get_attribute("name") in variants)

    def type_in_settings(self, box: Locator, text: str) -> None:
        """Open the settings and type into one of their boxes.

        gradio draws the settings twice when they open, some 50 ms apart, and forgets what is typed
        between the two. So this types until the text has stayed for a moment.
        """
        self.page.locator("#more button, #more .label-wrap").first.click()
        for _ in range(20):
            box.fill(text)
            self.page.wait_for_timeout(500)
            if box.input_value() == text:
                return

    def set_tokens(self, tokens: int) -> None:
        box = self.page.get_by_label("number input for New tokens").first
        box.fill(str(tokens))
        box.press("Enter")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser, app: App) -> Iterator[Callable[..., Visit]]:
    """A function that opens the page. In the end nobody may have asked another server or seen an error."""
    visits = []

    def start(**options) -> Visit:
        visits.append(Visit(browser, app, **options))
        return visits[-1]

    yield start
    for each in visits:
        each.context.close()
        foreign = [
            url for url in each.requests if not url.startswith((app.address, "data:", "blob:", "about:"))
        ]
        assert foreign == []
        assert each.errors == []
