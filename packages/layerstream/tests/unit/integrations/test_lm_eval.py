"""lm-evaluation-harness on a streamed model agrees with the harness's own model for transformers.

Skipped if the extra `lm-eval` is not installed; `nox -s tests` installs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import layerstream as ls

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from layerstream.integrations.lm_eval import StreamedLM  # noqa: E402

QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "green", "a fish"], "answer": 0},
    {"question": "Two and two make", "choices": ["five", "four", "4"], "answer": 1},
    {"question": "A dog is an", "choices": ["animal", "idea", "x"], "answer": 0},
    {"question": "The sky is", "choices": ["high", "low", "sky"], "answer": 1},
]
TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def plain(tiny_llama_dir: Path) -> Any:
    return HFLM(pretrained=str(tiny_llama_dir), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module")
def streamed(tiny_llama_dir: Path) -> Iterator[ls.StreamedModel]:
    with ls.load(tiny_llama_dir, budget="min", device="cpu") as model:
        yield model


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=index) for index, pair in enumerate(arguments)
    ]


def assert_close(mine: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in theirs], abs=1e-3, rel=1e-5)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]


def test_loglikelihoods_are_the_harnesss(plain: Any, streamed: ls.StreamedModel) -> None:
    pairs = [
        ("The sky is", " blue"),
        ("The sky is ", "green"),
        ("The sky is", " a"),
        ("", "once"),
        ("x", "y"),
        ("a" * 600, "bcd"),
    ]
    instances = requests("loglikelihood", pairs)
    streamed.reset_report()
    mine = StreamedLM(streamed, max_rows=64).loglikelihood(instances)
    assert streamed.report().sweeps == 1
    assert_close(mine, plain.loglikelihood(instances))


def test_a_greedy_continuation_is_recognized(plain: Any, streamed: ls.StreamedModel) -> None:
    (continuation,) = StreamedLM(streamed).generate_until(
        requests("generate_until", [("once upon", {"max_gen_toks": 4, "until": []})])
    )
    (mine,) = StreamedLM(streamed).loglikelihood(requests("loglikelihood", [("once upon", continuation)]))
    (theirs,) = plain.loglikelihood(requests("loglikelihood", [("once upon", continuation)]))
    assert mine[1] == theirs[1]


def test_rolling_loglikelihoods_are_the_harnesss(plain: Any, streamed: ls.StreamedModel) -> None:
    instances = requests(
        "loglikelihood_rolling", [("a longer text than one window holds; " * 20,), ("short",)]
    )
    mine = StreamedLM(streamed, max_rows=64).loglikelihood_rolling(instances)
    theirs = plain.loglikelihood_rolling(instances)
    assert mine == pytest.approx(theirs, rel=1e-5)


def test_generations_are_the_harnesss(plain: Any, streamed: ls.StreamedModel) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    instances = requests(
        "generate_until",
        [("The sky is", settings), ("Two", settings), ("once upon", {**settings, "until": ["e"]})],
    )
    mine = StreamedLM(streamed, packed=False).generate_until(instances)
    assert mine == plain.generate_until(instances)


@pytest.mark.timeout(300)
def test_a_whole_task_takes_one_sweep_and_gives_the_harnesss_figures(
    plain: Any, streamed: ls.StreamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "questions.json"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_choices.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    streamed.reset_report()
    settings: dict[str, Any] = {
        "tasks": ["tiny_choices"],
        "task_manager": tasks,
        "log_samples": True,
        "bootstrap_iters": 0,
    }
    mine = lm_eval.simple_evaluate(model=StreamedLM(streamed, max_rows=64), **settings)
    assert streamed.report().sweeps == 1
    theirs = lm_eval.simple_evaluate(model=plain, **settings)
    for metric in ("acc,none", "acc_norm,none"):
        assert mine["results"]["tiny_choices"][metric] == theirs["results"]["tiny_choices"][metric]
    for one, other in zip(mine["samples"]["tiny_choices"], theirs["samples"]["tiny_choices"], strict=True):
        answers = [
            [(float(value), greedy == "True") for ((value, greedy),) in sample["resps"]]
            for sample in (one, other)
        ]
        assert_close(*answers)
