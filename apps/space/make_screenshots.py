"""Take the screenshots in docs/screenshots of the app on its default model, in headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

TARGET = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
COLOURS = 256
LONG_MS = 900_000


def main() -> None:
    """Start the app, take all screenshots, and stop it."""
    TARGET.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "layerstream_space", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as app:
        assert app.stdout is not None
        try:
            take_all(app.stdout.readline().rpartition(" ")[2].strip())
        finally:
            app.terminate()


def take_all(address: str) -> None:
    """Take all screenshots, the quick ones first."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.goto(f"{address}?tokens=24")
        for take in (fit, side_by_side, watch, watch_draft, context_page):
            take(page)
        browser.close()


def side_by_side(page: Page) -> None:
    """A complete run of four variants, then the same in dark mode and at a phone's width."""
    page.get_by_role("tab", name="Side by side").click()
    page.click("#compare")
    page.wait_for_selector("a.ls-link", timeout=LONG_MS)
    page.mouse.move(0, 0)
    page.mouse.wheel(0, -10_000)
    keep(page, "side-by-side")
    page.evaluate("document.body.classList.add('dark')")
    page.locator("mark").first.hover()
    keep(page, "side-by-side-dark")
    page.set_viewport_size({"width": 390, "height": 844})
    keep(page, "side-by-side-phone", whole=False)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.evaluate("document.body.classList.remove('dark')")


def watch(page: Page) -> None:
    """The plan and the timeline of a run."""
    page.get_by_role("tab", name="Watch it stream").click()
    page.wait_for_selector("#watch-plan .ls-cell", timeout=LONG_MS)
    page.click("#watch-run")
    page.wait_for_selector("#watch h3:has-text('The last sweeps')", timeout=LONG_MS)
    keep(page, "watch")


def watch_draft(page: Page) -> None:
    """The same with a draft: what each sweep verified."""
    page.get_by_label("int8: the model's own 8-bit copy").check()
    page.wait_for_selector("#watch-plan:has-text('Draft int8: about')", timeout=LONG_MS)
    page.click("#watch-run")
    page.wait_for_selector("#watch .ls-tally:has-text('drafting took')", timeout=LONG_MS)
    keep(page, "watch-draft")


def fit(page: Page) -> None:
    """Llama-2-70B on a T4."""
    page.get_by_role("tab", name="Will it fit?").click()
    page.wait_for_selector(".ls-verdict", timeout=LONG_MS)
    keep(page, "fit")


def context_page(page: Page) -> None:
    """Attention variants against prompt length."""
    page.get_by_role("tab", name="Long context").click()
    page.click("#context-run")
    page.wait_for_selector("#context :text('Done')", timeout=2 * LONG_MS)
    keep(page, "context")


def keep(page: Page, name: str, *, whole: bool = True) -> None:
    """Write a screenshot with few colours, which is enough for a page and keeps the file small."""
    page.wait_for_timeout(400)
    picture = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.quantize(COLOURS, kmeans=2).save(TARGET / f"{name}.png", optimize=True)
    sys.stderr.write(f"{name}.png {(TARGET / f'{name}.png').stat().st_size // 1024} KiB\n")


if __name__ == "__main__":
    main()
