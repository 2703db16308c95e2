"""The planner's child, real and misbehaving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from app_process import children_of

from layerstream_space.errors import VisitorError
from layerstream_space.machines import MACHINES, machine_called
from layerstream_space.planner import Planner

CARD = next(iter(MACHINES))
TINY_CONFIG = json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    | {"vocab_size": 256, "dtype": "float16"}
)


@pytest.fixture(scope="module")
def planner() -> Iterator[Planner]:
    found = Planner()
    yield found
    found.close()


def child_that(body: str) -> tuple[str, ...]:
    return (
        sys.executable,
        "-c",
        f"import json, sys, time\nfor line in sys.stdin:\n    asked = json.loads(line)\n    {body}",
    )


def test_a_config_is_planned_on_a_card(planner):
    answer = planner.ask(
        "plan", config=TINY_CONFIG, machine=machine_called(CARD), prompt_tokens=16, new_tokens=4
    )
    assert len(answer["plan"]["units"]) in (6, 7)
    assert {unit["residency"] for unit in answer["plan"]["units"]} == {"device"}
    # rotary buffers are no parameters
    assert (
        2 * answer["model"]["parameters"]
        <= answer["model"]["weight_bytes"]
        < 2.01 * answer["model"]["parameters"]
    )


def test_a_share_of_the_memory_lies_between_the_least_and_all(planner, tiny_model):
    budgets = []
    for share in (0.0, 0.5, 1.0):
        answer = planner.ask(
            "plan", model=tiny_model, machine=None, prompt_tokens=16, new_tokens=4, share=share
        )
        budgets.append(answer["plan"]["ledger"]["device_budget_bytes"])
        assert answer["least_bytes"] <= budgets[-1]
    assert budgets == sorted(budgets)
    assert all(unit["residency"] == "device" for unit in answer["plan"]["units"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "this is no JSON"),
        ("[1]", "model_type"),
        ('{"model_type": "llama", "num_hidden_layers": 100000}', "at most 512"),
        ('{"model_type": "nonsense"}', "no such config"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantized checkpoint"),
        ('{"model_type": "llama", "hidden_size": 63, "num_attention_heads": 4}', "."),
        ('{"model_type": "t5"}', "."),
    ],
)
def test_a_config_that_makes_no_model_is_told_in_a_line_and_the_child_lives_on(planner, config, told):
    with pytest.raises(VisitorError, match=told) as error:
        planner.ask("plan", config=config, machine=machine_called(CARD))
    assert "\n" not in str(error.value)
    assert planner.ask("known")["models"]["llama-2-70b"] == "Llama-2-70B"


def test_a_path_of_this_machine_is_no_hub_id_in_the_childs_empty_folder(planner):
    with pytest.raises(VisitorError):
        planner.ask("plan", model="tests/kit", machine=machine_called(CARD))


def test_an_unknown_question_is_an_error(planner):
    with pytest.raises(VisitorError, match="no such question"):
        planner.ask("nonsense")


@pytest.mark.parametrize("body", ["sys.exit(1)", "print('hello', flush=True)", "print('[', flush=True)"])
def test_a_child_that_breaks_is_told_and_started_anew(body):
    planner = Planner(child_that(body))
    try:
        for _ in range(2):
            with pytest.raises(VisitorError, match="stopped at this question"):
                planner.ask("x")
    finally:
        planner.close()


def test_a_child_that_takes_too_long_is_ended():
    planner = Planner(child_that("time.sleep(60)"), answer_within_s=0.3)
    try:
        with pytest.raises(VisitorError, match="took too long"):
            planner.ask("x")
        assert planner._process is None
    finally:
        planner.close()


def test_an_answer_larger_than_a_pipe_arrives_whole():
    planner = Planner(child_that("print(json.dumps({'text': 'x' * 1_000_000}), flush=True)"))
    try:
        assert len(planner.ask("x")["text"]) == 1_000_000
    finally:
        planner.close()


def test_closing_ends_the_child():
    planner = Planner(child_that("print('{}', flush=True)"))
    planner.ask("x")
    pid = planner._process.pid
    planner.close()
    assert pid not in children_of(os.getpid())


def test_the_app_loads_no_model_library():
    program = (
        "import sys; from layerstream_space.ui.page import make_page; from layerstream_space.ui.services import make_services\n"
        "from layerstream_space.settings import Settings; make_page(make_services(Settings()))\n"
        "print(sorted({'torch', 'transformers', 'layerstream', 'bitsandbytes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
