"""An address fills the page, within the limits of the page. Gradio loads in its own process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from layerstream_space.settings import PUBLIC_LIMITS
from layerstream_space.ui.links import values_from_query

def plain(value):
    return value if isinstance(value, (str, int, list)) else "skipped"

queries = json.loads(sys.argv[1])
print(json.dumps([[plain(value) for value in values_from_query(query, PUBLIC_LIMITS)] for query in queries]))
"""

QUERIES = [
    {},
    {"prompt": "Hi", "variants": "streamed,bnb-nf4", "tokens": "24", "budget": "80 MiB", "quality": "none"},
    {"prompt": "", "variants": "magic", "tokens": "many", "quality": "best"},
    {
        "prompt": "x" * 5000,
        "tokens": "99999",
        "variants": "streamed,resident,bnb-int8,bnb-nf4,bnb-fp4",
        "budget": "y" * 200,
    },
]


@pytest.fixture(scope="module")
def answers():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(QUERIES)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_address_without_parameters_changes_nothing(answers):
    assert set(answers[0]) == {"skipped"}


def test_address_fills_every_control(answers):
    assert answers[1] == ["Hi", ["streamed", "bnb-nf4"], 24, "80 MiB", "none"]


def test_invalid_parameters_change_nothing(answers):
    assert answers[2] == answers[0]


def test_address_is_held_to_the_limits(answers):
    prompt, variants, tokens, budget, _ = answers[3]
    assert (len(prompt), len(variants), tokens, len(budget)) == (1200, 4, 64, 40)


CONTROLS = """
import json
import gradio as gr
from layerstream_space.settings import Settings
from layerstream_space.ui.side_by_side import _budgets

with gr.Blocks():
    pairs = [_budgets(Settings(), has_gpu=has_gpu) for has_gpu in (False, True)]
print(json.dumps([[budget.label, host.visible, host.value] for budget, host in pairs]))
"""


def test_host_budget_is_a_control_only_with_a_gpu_and_starts_at_the_least():
    done = subprocess.run([sys.executable, "-c", CONTROLS], capture_output=True, text=True, check=True)
    without, with_gpu = json.loads(done.stdout)
    assert without == ["Memory budget of the streamed model", False, "min"]
    assert with_gpu == ["Device memory budget of the streamed model", True, "min"]
