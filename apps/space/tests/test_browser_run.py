"""A run in a real browser: what a visitor sees of it while it goes on, and what is left of it."""

from __future__ import annotations

import pytest
from browser_visit import LONG_S, MARKS, browser, visit
from playwright.sync_api import expect

__all__ = ["browser", "visit"]  # pytest finds the fixtures by these names

pytestmark = MARKS


COVERED = """() => {
  const line = [...document.querySelectorAll(".ls-status")].find((e) => e.offsetParent !== null);
  const box = line.getBoundingClientRect();
  const top = document.elementFromPoint(box.left + 60, box.top + box.height / 2);
  return line.contains(top) ? "" : top.outerHTML.slice(0, 200);
}"""


def test_status_line_can_be_read_while_a_model_runs(visit):
    mine = visit(query="?variants=resident&tokens=200&quality=none")
    mine.page.locator("#compare").click()
    expect(mine.page.locator(".ls-column.running")).to_be_visible(timeout=LONG_S)
    mine.page.locator("#answers .ls-status").scroll_into_view_if_needed()
    assert mine.page.evaluate(COVERED) == ""
    expect(mine.page.locator(".ls-column.running .ls-text > div:not(.ls-wait)")).to_be_visible(timeout=LONG_S)
    assert mine.page.evaluate(COVERED) == ""
    mine.page.locator("#stop").click()


@pytest.mark.parametrize("typed", ["50 MiB", "1 GiB"])
def test_typed_budget_stays_as_it_was_typed(visit, typed):
    mine = visit()
    box = mine.page.locator("#budget textarea, #budget input")
    mine.type_in_settings(box, typed)
    box.press("Enter")
    box.blur()
    expect(box).to_have_value(typed)


def test_budget_without_a_unit_is_refused_with_an_example(visit):
    mine = visit(query="?variants=streamed&budget=1")
    mine.page.locator("#compare").click()
    expect(mine.page.get_by_role("alert")).to_contain_text("has no unit", timeout=LONG_S)


def test_downloads_of_an_earlier_run_are_gone_when_a_later_request_is_refused(visit):
    mine = visit(query="?prompt=Hi&variants=resident&tokens=4&quality=none")
    mine.page.locator("#compare").click()
    expect(mine.page.locator("a.ls-link")).to_have_count(3, timeout=LONG_S)
    mine.page.get_by_role("textbox", name="Prompt").first.fill("  ")
    mine.page.locator("#compare").click()
    expect(mine.page.get_by_role("alert")).to_contain_text("The prompt is empty", timeout=LONG_S)
    expect(mine.page.locator("a.ls-link")).to_have_count(0)
    expect(mine.page.locator("#plots .ls-bar")).to_have_count(0)


SAID = """() => {
  window.said = [];
  new MutationObserver(() => {
    const voices = document.querySelectorAll('.sr-only[role="status"]');
    for (const voice of voices) window.said.push(voice.textContent.trim());
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_screen_reader_hears_words_and_no_keys_of_untranslated_texts(visit):
    mine = visit(query="?prompt=Hi&variants=resident&tokens=4&quality=none")
    mine.page.evaluate(SAID)
    mine.page.locator("#compare").click()
    expect(mine.page.locator("a.ls-link")).to_have_count(3, timeout=LONG_S)
    mine.page.wait_for_function("window.said.at(-1) === '' && window.said.some(Boolean)", timeout=LONG_S)
    said = set(mine.page.evaluate("window.said"))
    assert [text for text in said if text.startswith("common.")] == []


def test_running_lanes_come_first_and_the_controls_fold_until_they_are_opened(visit):
    mine = visit(query="?variants=resident&tokens=100&quality=none")
    page = mine.page
    page.locator("#compare").click()
    lane = page.locator(".ls-column.running")
    expect(lane).to_be_visible(timeout=LONG_S)
    expect(page.locator("#variants")).to_be_hidden()
    expect(page.locator("#stop")).to_be_in_viewport()
    assert lane.bounding_box()["y"] < 450
    expect(page.locator(".ls-status").first).to_contain_text("left in all")
    expect(page.locator(".ls-lanebar .now")).to_be_visible()
    mine.shoot("side-by-side_running")
    page.locator("#change").click()
    expect(page.locator("#variants")).to_be_visible()
    page.locator("#stop").click()
    expect(page.locator("#compare")).to_be_enabled()
    page.locator("#compare").click()
    expect(page.locator("#variants")).to_be_hidden(timeout=LONG_S)
    page.locator("#stop").click()


def test_run_on_a_phone_is_brought_into_view(visit):
    page = visit(query="?variants=resident&tokens=100&quality=none", width=390).page
    page.locator("#compare").scroll_into_view_if_needed()
    page.locator("#compare").click()
    expect(page.locator(".ls-column.running h3")).to_be_in_viewport(timeout=LONG_S)
    page.locator("#stop").click()


def test_worker_gets_ready_while_a_page_is_open_and_none_is_left_after_stop(visit, app):
    mine = visit(query="?variants=resident&tokens=200&quality=none")
    assert app.wait_for_spare(True)
    (ready,) = app.spares()
    mine.page.locator("#compare").click()
    expect(mine.page.locator(".ls-column.running .ls-text > div:not(.ls-wait)")).to_be_visible(timeout=LONG_S)
    assert (app.workers(), app.spares()) == ([ready], [])
    mine.page.locator("#stop").click()
    assert app.wait_for_workers(False, within_s=10)
    assert app.spares() == []
    mine.page.get_by_role("textbox", name="Prompt").first.focus()
    assert app.wait_for_spare(True)


def test_no_worker_is_left_once_the_last_page_is_closed(visit, app):
    mine = visit()
    assert app.wait_for_spare(True)
    mine.page.close()
    assert app.wait_for_spare(False, within_s=20)


def test_watch_with_a_draft_shows_what_each_sweep_verified_and_ends_with_the_report(visit):
    mine = visit(query="?tab=watch", width=390, dark=True)
    page = mine.page
    expect(page.locator("#watch-plan")).to_contain_text("Plan for", timeout=LONG_S)
    page.get_by_label("int8: the model's own 8-bit copy").check()
    expect(page.locator("#watch-plan")).to_contain_text("Draft int8: about", timeout=LONG_S)
    page.locator("#watch-run").click()
    tally = page.locator("#watch .ls-tally")
    expect(tally).to_contain_text("drafted tokens accepted, drafting took", timeout=LONG_S)
    first = page.locator("#watch .ls-sweeps li").last
    expect(first).to_contain_text("sweep 1")
    expect(first).to_contain_text("accepted,")
    expect(first.locator(".own, .yes").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    mine.shoot("watch_draft_phone_dark")


def test_rounds_share_a_lane_and_give_a_range(visit):
    mine = visit(query="?prompt=Hi&variants=resident&tokens=4&quality=none")
    box = mine.page.get_by_label("number input for Rounds")
    mine.type_in_settings(box, "2")
    box.press("Enter")
    mine.page.locator("#compare").click()
    expect(mine.page.locator("a.ls-link")).to_have_count(3, timeout=LONG_S)
    assert mine.page.locator(".ls-column").count() == 1
    expect(mine.page.locator("#plots .range")).to_have_count(2)
