"""Plans from kept profiles, and the child process that makes the profiles, real and misbehaving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from app_process import children_of

from layerstream import Residency, Workload
from layerstream_space.errors import VisitorError
from layerstream_space.machines import MACHINES
from layerstream_space.planner import ModelSource, Planner
from layerstream_space.profiler import Profiler

CARD = next(iter(MACHINES.values()))
WORKLOAD = Workload(prompt_tokens=16, new_tokens=4)
TINY = ModelSource(
    config=json.dumps(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "vocab_size": 256,
            "dtype": "float16",
        }
    )
)


@pytest.fixture(scope="module")
def planner() -> Iterator[Planner]:
    planner = Planner()
    yield planner
    planner.close()


class CountingProfiler(Profiler):
    """A profiler that records the questions to its child."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[str] = []

    def ask(self, question, **options):
        self.questions.append(question)
        return super().ask(question, **options)


def child_that(body: str) -> tuple[str, ...]:
    return (
        sys.executable,
        "-c",
        f"import json, sys, time\nfor line in sys.stdin:\n    request = json.loads(line)\n    {body}",
    )


def test_config_is_planned_on_a_card(planner):
    answer = planner.plan(TINY, machine=CARD, workload=WORKLOAD)
    assert len(answer.plan.units) in (6, 7)
    assert answer.plan.count(Residency.DEVICE) == len(answer.plan.units)
    # rotary buffers are not parameters
    parameters, weight_bytes = answer.profile.num_parameters, answer.profile.weight_bytes
    assert 2 * parameters <= weight_bytes < 2.01 * parameters


def test_share_of_the_memory_is_between_the_minimum_and_everything(planner, tiny_model):
    budgets = []
    for share in (0.0, 0.5, 1.0):
        answer = planner.plan(ModelSource(model=tiny_model), machine=None, workload=WORKLOAD, share=share)
        budgets.append(answer.plan.ledger.device_budget_bytes)
        assert answer.minimum_bytes <= budgets[-1]
    assert budgets == sorted(budgets)
    assert answer.plan.is_resident


def test_only_the_first_plan_asks_the_child(tiny_model):
    profiler = CountingProfiler()
    planner = Planner(profiler)
    try:
        for share in (0.0, 0.3, 0.6, 1.0):
            planner.plan(ModelSource(model=tiny_model), machine=None, workload=WORKLOAD, share=share)
        assert profiler.questions == ["this_machine", "profile"]
    finally:
        planner.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "This is not JSON"),
        ("[1]", "model_type"),
        ('{"model_type": "llama", "num_hidden_layers": 100000}', "the limit here is 512"),
        ('{"model_type": "nonsense"}', "does not accept this config"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantized checkpoint"),
        ('{"model_type": "llama", "hidden_size": 63, "num_attention_heads": 4}', "."),
        ('{"model_type": "t5"}', "."),
    ],
)
def test_config_without_a_model_is_explained_in_a_line_and_the_child_lives_on(planner, config, message):
    with pytest.raises(VisitorError, match=message) as error:
        planner.plan(ModelSource(config=config), machine=CARD, workload=WORKLOAD)
    assert "\n" not in str(error.value)
    assert planner.profile(TINY).model_type == "llama"


def test_path_of_this_machine_is_not_a_hub_id_in_the_childs_empty_folder(planner):
    with pytest.raises(VisitorError):
        planner.profile(ModelSource(model="tests/kit"))


def test_unknown_question_is_an_error():
    profiler = Profiler()
    try:
        with pytest.raises(VisitorError, match="no such question"):
            profiler.ask("nonsense")
    finally:
        profiler.close()


@pytest.mark.parametrize("body", ["sys.exit(1)", "print('hello', flush=True)", "print('[', flush=True)"])
def test_broken_child_is_reported_and_started_again(body):
    profiler = Profiler(child_that(body))
    try:
        for _ in range(2):
            with pytest.raises(VisitorError, match="stopped at this question"):
                profiler.ask("x")
    finally:
        profiler.close()


def test_child_that_takes_too_long_is_ended():
    profiler = Profiler(child_that("time.sleep(60)"), answer_within_s=0.3)
    try:
        with pytest.raises(VisitorError, match="took too long"):
            profiler.ask("x")
        assert profiler._process is None
    finally:
        profiler.close()


def test_answer_larger_than_a_pipe_arrives_whole():
    profiler = Profiler(child_that("print(json.dumps({'text': 'x' * 1_000_000}), flush=True)"))
    try:
        assert len(profiler.ask("x")["text"]) == 1_000_000
    finally:
        profiler.close()


def test_closing_ends_the_child():
    profiler = Profiler(child_that("print('{}', flush=True)"))
    profiler.ask("x")
    pid = profiler._process.pid
    profiler.close()
    assert pid not in children_of(os.getpid())


def test_app_and_its_plans_load_no_model_library():
    program = (
        "import sys\n"
        "from layerstream_space.settings import Settings\n"
        "from layerstream_space.ui.page import make_page\n"
        "from layerstream_space.ui.services import make_services\n"
        "services = make_services(Settings()); make_page(services); services.planner.close()\n"
        "print(sorted({'torch', 'transformers', 'bitsandbytes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
