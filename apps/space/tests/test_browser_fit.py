"""A real browser on the tabs and on "Will it fit?": links, figures and a phone's width."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect
from test_browser import LONG_S, browser, pytestmark, visit  # noqa: F401  fixtures and marks

FIRST_PLAN_MS = 300_000
"""The first plan starts the planner's process and profiles the model; a busy machine takes minutes."""

TABS = ("compare", "watch", "fit", "context", "method")
PLAN = "?tab=fit&model=llama-3.2-1b&machine=laptop&gpu=2&ram=4&disk=3.5&prompt_tokens=32&new_tokens=8"


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def column_of(page) -> tuple[float, float]:
    box = page.locator(".tabitem:visible").first.bounding_box()
    return round(box["x"]), round(box["width"])


@pytest.mark.parametrize("width", [390, 1440])
def test_every_tab_is_in_reach_has_its_address_and_the_column_stays_in_place(visit, width):  # noqa: F811
    mine = visit(width=width)
    page = mine.page
    columns = []
    expect(page.get_by_role("tab")).to_have_count(len(TABS))
    for index, name in enumerate(TABS):
        tab = page.get_by_role("tab").nth(index)
        expect(tab).to_be_in_viewport(ratio=1)
        tab.click()
        expect(page.locator(f"#page-{name}")).to_be_visible()
        if index:
            assert query_of(page.url) == {"tab": name}
        columns.append(column_of(page))
    assert len(set(columns)) == 1, columns
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_address_opens_a_tab_before_its_plan_is_made_and_a_reload_keeps_it(visit):  # noqa: F811
    mine = visit(query="?tab=context")
    page = mine.page
    expect(page.locator("#page-context")).to_be_visible(timeout=LONG_S)
    page.reload()
    expect(page.locator("#page-context")).to_be_visible(timeout=LONG_S)
    # gradio's client reports its own connection, which the reload broke off
    mine.errors.clear()


def test_link_to_a_plan_restores_it_and_own_figures_change_it(visit, app):  # noqa: F811
    mine = visit(query=PLAN)
    page = mine.page
    command = page.locator("#fit .ls-command code")
    expect(command).to_contain_text(
        "layerstream plan llama-3.2-1b --machine gpu=2GB,ram=4GB,disk=3.5GB/s,pcie=10GB/s",
        timeout=FIRST_PLAN_MS,
    )
    expect(command).to_contain_text("--prompt-tokens 32 --max-new-tokens 8")
    expect(page.locator("#fit .ls-fit-what")).to_contain_text("disk 3.50 GB/s")
    expect(page.locator("#fit .ls-times")).to_contain_text("1,000 such prompts, ", timeout=LONG_S)
    page.get_by_label("Disk, GB/s").fill("7")
    expect(command).to_contain_text("disk=7GB/s", timeout=LONG_S)
    page.locator("#fit-share").click()
    expect(page.locator("#fit-share")).to_have_text("Link copied")
    assert query_of(page.url) == {**query_of(PLAN), "disk": "7", "pcie": "10"}
    again = visit(query=page.url.removeprefix(app.address))
    expect(again.page.locator("#fit .ls-command code")).to_have_text(command.inner_text(), timeout=LONG_S)


def test_chosen_machine_fills_the_boxes_and_an_emptied_box_is_named(visit):  # noqa: F811
    page = visit(query=PLAN).page
    expect(page.locator("#fit .ls-verdict")).to_be_visible(timeout=FIRST_PLAN_MS)
    page.locator("#fit-machine input").click()
    page.get_by_role("option", name="Desktop: 24 GB card, 64 GB of RAM").click()
    expect(page.get_by_label("Card, GB")).to_have_value("24", timeout=LONG_S)
    expect(page.locator("#fit .ls-fit-what")).to_contain_text("Desktop: 24 GB card", timeout=LONG_S)
    page.get_by_label("RAM, GB").fill("")
    expect(page.get_by_role("alert")).to_contain_text("Give the RAM as a number above 0", timeout=LONG_S)
