"""Requests to "Will it fit?", from the page, from an address, and as a command that gives the same plan."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from layerstream_space.errors import VisitorError
from layerstream_space.machines import MACHINE_KEYS, MACHINES, Figures, choose
from layerstream_space.models import Catalogue
from layerstream_space.planner import ModelSource, Planner, answer_s, many_prompts
from layerstream_space.settings import Settings
from layerstream_space.ui.fit_request import (
    FROM_CONFIG,
    FROM_HUB,
    FROM_LIST,
    FitRequest,
    command_of,
    known_model,
    values_from_query,
    workload_of,
)

REQUEST = FitRequest(
    origin=FROM_LIST,
    known="llama-3.2-1b",
    hub="",
    config="",
    dtype="auto",
    machine="t4",
    gpu=2.0,
    ram=4.0,
    disk=2.5,
    pcie=12.0,
    prompt_tokens=64,
    new_tokens=16,
)
CATALOGUE = Catalogue(Settings(models=("owner/mine",)))
COMMAND = "import sys; from layerstream.cli.app import main; sys.exit(main(sys.argv[1:]))"


def query_of(**changes: str) -> dict:
    return values_from_query(changes, CATALOGUE)


def test_address_fills_the_controls_that_it_names():
    assert query_of(
        model="qwen3-32b", machine="desktop", gpu="24", disk="2.5", prompt_tokens="2000", dtype="float16"
    ) == {
        "origin": FROM_LIST,
        "known": "qwen3-32b",
        "machine": "desktop",
        "gpu": 24.0,
        "disk": 2.5,
        # an address may leave figures to the machine
        "ram": 64.0,
        "pcie": 24.0,
        "prompt_tokens": 2000,
        "dtype": "float16",
    }
    assert query_of(model="owner/mine") == {"origin": FROM_LIST, "known": "owner/mine"}
    assert query_of(model="some/other") == {"origin": FROM_HUB, "hub": "some/other"}
    assert query_of(gpu="0") == {"gpu": 0.0}


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"model": "nonsense"},
        {"machine": "mine"},
        {"dtype": "int8"},
        {"ram": "0"},
        {"disk": "-2"},
        {"gpu": "nan"},
        {"pcie": "1e9"},
        {"new_tokens": "many"},
    ],
)
def test_parameters_that_make_no_sense_change_nothing(query):
    assert values_from_query(query, CATALOGUE) == {}


def test_address_is_held_to_the_limits():
    assert query_of(prompt_tokens="999999", new_tokens="999999") == {
        "prompt_tokens": 32_768,
        "new_tokens": 4096,
    }


def test_emptied_box_is_no_figure_and_an_unknown_choice_is_refused():
    values = [*vars_of(REQUEST)]
    values[7] = None
    assert FitRequest.from_values(values).ram == -1.0
    values[5] = "elsewhere"
    with pytest.raises(VisitorError, match="from the lists"):
        FitRequest.from_values(values)
    with pytest.raises(VisitorError):
        workload_of(replace(REQUEST, prompt_tokens=0))


def vars_of(request: FitRequest) -> list:
    return [getattr(request, name) for name in FitRequest.__slots__]


def test_command_names_the_model_as_the_command_line_does():
    machine = "gpu=2GB,ram=4GB"
    assert command_of(REQUEST, machine) == (
        "layerstream plan llama-3.2-1b --machine gpu=2GB,ram=4GB --prompt-tokens 64 --max-new-tokens 16"
    )
    hub = replace(REQUEST, origin=FROM_HUB, hub="https://huggingface.co/a/b", dtype="float16")
    assert command_of(hub, "").startswith("layerstream plan a/b --prompt-tokens")
    assert command_of(hub, "").endswith("--dtype float16")
    assert command_of(replace(REQUEST, origin=FROM_CONFIG, config="{}"), machine) == ""
    assert command_of(replace(REQUEST, known="owner/mine"), machine) == ""
    assert known_model(replace(REQUEST, known="owner/mine")) is None


@pytest.fixture(scope="module")
def planner():
    planner = Planner()
    yield planner
    planner.close()


@pytest.mark.timeout(300)
def test_page_and_command_line_give_one_plan_for_the_same_figures(planner):
    figures = Figures(gpu=REQUEST.gpu, ram=REQUEST.ram, disk=REQUEST.disk, pcie=REQUEST.pcie)
    chosen = choose(MACHINES[MACHINE_KEYS[REQUEST.machine]], figures)
    answer = planner.plan(
        ModelSource(known=REQUEST.known), machine=chosen.machine, workload=workload_of(REQUEST)
    )
    arguments = shlex.split(command_of(REQUEST, chosen.text))[1:]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == answer.plan.to_dict()
    assert not answer.plan.is_resident


@pytest.mark.timeout(300)
def test_prompts_that_share_sweeps_take_less_time_than_one_after_another(planner):
    answer = planner.plan(
        ModelSource(known=REQUEST.known),
        machine=MACHINES[MACHINE_KEYS["laptop"]],
        workload=workload_of(REQUEST),
        dtype="float32",
    )
    many = many_prompts(answer)
    assert many.at_once > 1
    assert many.total_s < 1000 * answer_s(answer.plan, REQUEST.new_tokens)
    assert many.answer_s == pytest.approx(many.total_s / 1000)
