"""The endpoints as programs use them, through `gradio_client`: a tiny checkpoint and real workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import pytest
from app_process import App
from gradio_client import Client
from gradio_client.exceptions import AppError

from layerstream_space.ui.api import describe_endpoints
from layerstream_space.view.pages import method_view

pytestmark = [
    pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost"]),
    pytest.mark.xdist_group("app"),
    pytest.mark.timeout(300),
    # the client's libraries warn on import and leave their connections to the garbage collector
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def connected(app: App) -> Iterator[Client]:
    """A client whose own thread, which keeps the session alive, ends with the test."""
    client = Client(app.address, verbose=False)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    with connected(app) as client:
        yield client


def test_page_explains_every_argument_of_every_endpoint():
    endpoints = describe_endpoints()
    assert [each.name for each in endpoints] == ["compare", "plan", "choices"]
    arguments = {argument.name: argument for argument in endpoints[0].arguments}
    assert (arguments["prompt"].default, arguments["max_new_tokens"].default) == ("", "32")
    assert arguments["variants"].kind == "list[str]"
    html = method_view({}, endpoints)
    assert all(escape(argument.meaning) in html for each in endpoints for argument in each.arguments)


def test_choices_name_models_machines_and_variants(client):
    choices = client.predict(api_name="/choices")
    assert choices["models"] == ["tiny-model"]
    assert {"streamed", "resident", "bnb-nf4"} <= set(choices["variants"])
    assert "Llama-2-70B" in choices["known_models"]


def test_compare_runs_two_variants_and_returns_their_measurements(client, tiny_model):
    streamed, resident = client.predict("Hello", ["streamed", "resident"], 6, "min", api_name="/compare")
    assert (streamed["status"], resident["status"]) == ("ok", "ok")
    assert streamed["token_ids"] == resident["token_ids"]
    assert len(streamed["token_ids"]) == 6
    assert all(agreement["is_bit_exact"] for agreement in streamed["agreements"])
    assert streamed["memory"]["held_bytes"] < resident["memory"]["held_bytes"]
    assert streamed["case"]["model"] == "tiny-model"
    assert tiny_model not in str([streamed, resident])


def test_plan_answers_for_hardware_that_is_not_here(client):
    answer = client.predict(
        "Llama-2-70B", client.predict(api_name="/choices")["machines"][0], api_name="/plan"
    )
    assert answer["model"]["parameters"] > 68e9
    places = {unit["residency"] for unit in answer["plan"]["units"]}
    assert places == {"device", "host", "disk"}
    assert answer["plan"]["model_name"] == "Llama-2-70B"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", ["streamed"]), "The prompt is empty"),
        (("Hello", ["magic"]), "no variant called"),
        (("Hello", ["streamed"], 8, "min", "/etc"), "This page runs only tiny-model"),
        (("Hello", ["streamed"], 100_000), "between 1 and 512"),
    ],
)
def test_request_beyond_the_limits_is_a_readable_error(client, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(*arguments, api_name="/compare")


def test_failed_case_is_reported_without_paths(client, tiny_model):
    (failed,) = client.predict("Hello", ["streamed"], 4, "1 KiB", api_name="/compare")
    assert failed["status"] == "failed"
    assert "cannot hold" in failed["reason"]
    assert "/" not in failed["reason"].replace("and/or", "")


def test_cancelling_a_job_ends_its_worker(client, app):
    job = client.submit("Hello", ["resident"], 200, api_name="/compare")
    assert app.wait_for_workers(True)
    job.cancel()
    assert app.wait_for_workers(False, within_s=10)


def test_simultaneous_visitors_are_queued_and_each_gets_its_own_answer(app):
    prompts = ["one", "two", "three"]
    found: dict[str, str] = {}

    def visit(prompt: str) -> None:
        with connected(app) as client:
            (result,) = client.predict(prompt, ["resident"], 4, api_name="/compare")
        found[prompt] = result["case"]["prompt"]

    threads = [threading.Thread(target=visit, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(app.workers()))
        threads[0].join(0.05)
    for thread in threads:
        thread.join()
    assert found == {prompt: prompt for prompt in prompts}
    assert most == 1


def test_only_the_endpoints_for_programs_are_public(client):
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/compare",
        "/plan",
        "/choices",
    }
