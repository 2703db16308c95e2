"""A real browser on the real app with a tiny checkpoint: what a visitor sees, clicks and gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from app_process import App
from browser_visit import LONG_S, MARKS, Visit, browser, visit
from playwright.sync_api import expect

__all__ = ["browser", "visit"]  # pytest finds the fixtures by these names

pytestmark = MARKS


WATCH_WORDS = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const text = document.querySelector(".ls-column.running .ls-text:not(:has(.ls-wait))");
    if (text) window.lengths.push(text.textContent.length);
  }).observe(document.querySelector("#answers"), {subtree: true, childList: true, characterData: true});
}"""


NAMELESS = """() => {
  const named = (e) => e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.title
    || e.placeholder || e.textContent.trim() || e.closest("label")?.textContent.trim()
    || (e.id && document.querySelector(`label[for="${e.id}"]`));
  const controls = [...document.querySelectorAll("button, input, textarea, select, [role=tab]")];
  return controls.filter((e) => e.offsetParent !== null && !named(e)).map((e) => e.outerHTML.slice(0, 120));
}"""


def test_visitor_compares_two_variants_and_sees_answers_marks_figures_and_plots(visit):
    mine = visit(query="?prompt=Hello%20there&variants=streamed,bnb-nf4&tokens=60&budget=min")
    page = mine.page
    expect(page.get_by_role("textbox", name="Prompt").first).to_have_value("Hello there")
    mine.shoot("side-by-side_empty")
    page.evaluate(WATCH_WORDS)
    page.locator("#compare").click()
    expect(page.locator(".ls-column.running")).to_be_visible(timeout=LONG_S)
    heights = [page.locator(".ls-column").first.bounding_box()["y"]]
    expect(page.locator("a.ls-link")).to_have_count(3, timeout=LONG_S)
    heights.append(page.locator(".ls-column").first.bounding_box()["y"])
    assert max(heights) - min(heights) < 2, "the columns moved while words arrived"
    lengths = page.evaluate("window.lengths")
    assert len(set(lengths)) > 2, "all words arrived at once"
    assert page.locator(".ls-column.ok").count() == 2
    assert page.locator(".ls-column.reference .ls-badge.exact").count() == 1
    mark = page.locator(".ls-column mark")
    expect(mark).to_have_count(1)
    mark.hover()
    expect(mark.locator(".ls-tip")).to_be_visible()
    assert "margin" in mark.locator(".ls-tip").inner_text()
    figures = page.locator(".ls-column").first.locator("dd").all_inner_texts()
    assert len(figures) == 8
    assert "–" not in figures
    explained = page.locator("#page-compare .ls-read")
    explained.locator("summary").click()
    expect(explained.get_by_text("same top token", exact=True)).to_be_visible()
    assert page.locator("#plots .ls-bar").count() == 6
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("#compare")).to_be_enabled()
    mine.shoot("side-by-side_done")


def test_download_contains_the_measurements(visit):
    mine = visit(query="?prompt=Hi&variants=resident&tokens=4&quality=none")
    mine.page.locator("#compare").click()
    with mine.page.expect_download(timeout=LONG_S) as waiting:
        mine.page.get_by_role("link", name="JSON").click(timeout=LONG_S)
    (record,) = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert record["case"]["variant"] == "resident"
    assert record["case"]["model"] == "tiny-model"
    assert waiting.value.suggested_filename == "layerstream-compare.json"


def test_stop_ends_the_worker_and_the_page_can_start_again(visit, app):
    mine = visit(query="?variants=resident,streamed&tokens=200&quality=none")
    mine.page.locator("#compare").click()
    assert app.wait_for_workers(True)
    mine.page.locator("#stop").click()
    assert app.wait_for_workers(False, within_s=10)
    expect(mine.page.locator(".ls-status").first).to_contain_text("Stopped")
    assert mine.page.locator(".ls-column.stopped").count() == 2
    expect(mine.page.locator("#compare")).to_be_enabled()
    expect(mine.page.locator("#stop")).to_be_disabled()
    mine.shoot("side-by-side_stopped")


def test_closed_tab_ends_its_worker(visit, app):
    mine = visit(query="?variants=resident&tokens=200")
    mine.page.locator("#compare").click()
    assert app.wait_for_workers(True)
    mine.page.close()
    assert app.wait_for_workers(False, within_s=20)


def test_reload_during_a_run_ends_the_worker_and_gives_a_fresh_page(visit, app):
    mine = visit(query="?variants=resident&tokens=200")
    mine.page.locator("#compare").click()
    assert app.wait_for_workers(True)
    mine.page.reload()
    assert app.wait_for_workers(False, within_s=20)
    expect(mine.page.locator(".ls-column.empty").first).to_be_visible()
    # gradio's client reports its own connection, which the reload broke off
    mine.errors.clear()


def queued_behind_another(visit, app, query: str) -> tuple[Visit, Visit]:
    """Return a visitor whose run is under way, and one who waits behind it with `query`."""
    first = visit(query="?prompt=First&variants=resident&tokens=512&quality=none")
    first.page.locator("#compare").click()
    assert app.wait_for_workers(True)
    second = visit(query=query)
    second.page.locator("#compare").click()
    expect(second.page.locator("#queue")).to_contain_text("queue: 1/1", timeout=LONG_S)
    return first, second


def test_second_visitor_sees_the_place_in_the_queue_and_then_the_answer(visit, app):
    first, second = queued_behind_another(
        visit, app, "?prompt=Second&variants=resident&tokens=4&quality=none"
    )
    expect(second.page.locator("#queue .progress-text")).to_be_visible()
    second.shoot("side-by-side_queued")
    first.page.locator("#stop").click()
    expect(second.page.locator("#answers .ls-column.ok")).to_have_count(1, timeout=LONG_S)
    assert first.page.locator(".ls-column.stopped").count() == 1


def test_visitor_can_leave_the_queue(visit, app):
    first, second = queued_behind_another(visit, app, "?variants=streamed&tokens=4&quality=none")
    second.page.locator("#stop").click()
    expect(second.page.locator("#compare")).to_be_enabled()
    expect(second.page.locator("#queue")).not_to_contain_text("queue:")
    expect(second.page.locator("#queue .error")).to_be_hidden()
    first.page.locator("#stop").click()
    assert app.wait_for_workers(False, within_s=10)
    assert second.page.locator(".ls-column.ok").count() == 0


BROKEN_APP = """
import sys
from layerstream_space.settings import Settings
from layerstream_space.ui.page import launch_options, make_page
from layerstream_space.ui.services import make_services

def broken(case):
    raise RuntimeError("a secret of the server's")
    yield

page = make_page(make_services(Settings(models=(sys.argv[1],), budget="min"), broken))
address = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_options())[1]
print("layerstream is open at", address, flush=True)
page.block_thread()
"""


def test_page_can_start_again_after_a_crash(browser, tiny_model):
    with App(tiny_model, command=("-c", BROKEN_APP)) as broken:
        mine = Visit(browser, broken, query="?variants=resident&tokens=4")
        mine.page.locator("#compare").click()
        expect(mine.page.get_by_role("alert")).to_contain_text("Something broke", timeout=LONG_S)
        expect(mine.page.locator("#compare")).to_be_enabled()
        expect(mine.page.locator("#stop")).to_be_disabled()
        assert "secret" not in mine.page.content()
        mine.shoot("side-by-side_broken")
        mine.context.close()


def test_invalid_request_shows_a_message_and_nothing_runs(visit, app):
    mine = visit(query="?variants=streamed&tokens=8")
    mine.page.get_by_role("textbox", name="Prompt").first.fill("   ")
    mine.page.locator("#compare").click()
    expect(mine.page.get_by_role("alert")).to_contain_text("The prompt is empty", timeout=LONG_S)
    assert app.workers() == []
    mine.shoot("side-by-side_error")


def test_budget_too_small_fails_in_its_column_and_says_what_to_do(visit):
    mine = visit(query="?prompt=Hi&variants=streamed&tokens=4&budget=1%20KiB&quality=none")
    mine.page.locator("#compare").click()
    expect(mine.page.locator(".ls-column.failed .ls-reason")).to_contain_text("give at least", timeout=LONG_S)
    assert "Traceback" not in mine.page.content()


def test_copied_link_opens_the_same_request(visit, app):
    mine = visit(query="?prompt=A%20%26%20B&variants=streamed,bnb-nf4&tokens=12&budget=5%20MiB&quality=none")
    expect(mine.page.get_by_role("textbox", name="Prompt").first).to_have_value("A & B")
    mine.page.locator("#share").click()
    expect(mine.page.locator("#share")).to_have_text("Link copied")
    again = visit(query=mine.page.url.removeprefix(app.address))
    expect(again.page.get_by_role("textbox", name="Prompt").first).to_have_value("A & B")
    assert [box.get_attribute("name") for box in again.page.locator("#variants input:checked").all()] == [
        "streamed",
        "bnb-nf4",
    ]


def test_link_to_a_tool_opens_it_and_plans_a_model_on_a_machine(visit):
    mine = visit(query="?tool=fit")
    expect(mine.page.locator(".ls-verdict")).to_contain_text("It runs, streamed", timeout=LONG_S)
    assert mine.page.locator("#fit .ls-cell").count() == 81
    mine.page.get_by_label("A config.json").check()
    box = mine.page.get_by_label("Content of its config.json")
    box.fill(
        '{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8, '
        '"dtype": "float16"}'
    )
    mine.page.locator("#plan").click()
    expect(mine.page.locator(".ls-verdict")).to_contain_text("It fits as it is", timeout=LONG_S)
    box.fill("{")
    mine.page.locator("#plan").click()
    expect(mine.page.get_by_role("alert")).to_contain_text("not JSON", timeout=LONG_S)


def test_slider_plans_before_anything_runs_and_then_the_timeline_moves(visit, app):
    mine = visit()
    page = mine.page
    page.get_by_role("tab", name="Watch it stream").click()
    expect(page.locator("#watch-plan .ls-cell")).to_have_count(3, timeout=LONG_S)
    before = page.locator("#watch-plan").inner_text()
    box = page.get_by_label("number input for Memory, from the minimum to all")
    box.fill("100")
    box.press("Enter")
    expect(page.locator("#watch-plan")).not_to_have_text(before, timeout=LONG_S)
    expect(page.locator("#watch-plan")).to_contain_text("0 B read")
    assert app.workers() == []
    box.fill("0")
    box.press("Enter")
    expect(page.locator("#watch-plan")).not_to_contain_text(" 0 B read", timeout=LONG_S)
    page.locator("#watch-run").click()
    expect(page.locator("#watch h3")).to_have_text("The last sweeps", timeout=LONG_S)
    for row in ("read", "compute"):
        assert page.locator(f"#watch svg.{row} rect").count() > 0
    assert page.locator("#watch .ls-answer").inner_text().strip()
    mine.shoot("watch_done")


def test_step_of_the_method_links_to_its_section_in_the_document(visit):
    mine = visit(query="?tool=method")
    document = mine.page.locator("#doc-measuring")
    expect(document).to_be_hidden()
    mine.page.get_by_role("link", name="Read more: Libraries first").click()
    expect(document).to_be_visible()
    expect(mine.page.locator("#doc-measuring-memory")).to_be_in_viewport()
    mine.shoot("method_read-more")


def test_long_context_draws_a_curve_for_each_attention_variant(visit):
    mine = visit()
    page = mine.page
    page.get_by_role("tab", name="Long context").click()
    for length in (128, 256, 512, 1024, 2048):
        page.locator(f'#context-lengths input[name="{length}"]').set_checked(length <= 256)
    page.locator("#context-run").click()
    expect(page.locator("#context")).to_contain_text("Done", timeout=LONG_S)
    assert page.locator("#context polyline").count() == 4
    mine.shoot("context_done")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_phone_shows_every_page_without_scrolling_sideways(visit, dark):
    for tool in ("watch", "fit", "context", "method", "compare"):
        mine = visit(query=f"?tool={tool}", width=390, dark=dark)
        expect(mine.page.locator(f"#page-{tool}")).to_be_visible(timeout=LONG_S)
        # tabs that do not fit move into a menu once the page has measured itself
        mine.page.wait_for_function(
            "document.documentElement.scrollWidth <= window.innerWidth", timeout=10_000
        )
        mine.shoot(f"phone_{tool}_{'dark' if dark else 'light'}")


def test_dark_mode_is_dark(visit):
    mine = visit(dark=True)
    expect(mine.page.locator(".gallery-item").last).to_be_visible()
    expect(mine.page.locator("body")).to_have_css("background-color", "rgb(15, 20, 23)")


def test_every_control_has_a_name_for_screen_readers(visit):
    mine = visit()
    expect(mine.page.locator(".gallery-item").last).to_have_text("List three good uses of a paper clip.")
    nameless = mine.page.evaluate(NAMELESS)
    assert nameless == []
