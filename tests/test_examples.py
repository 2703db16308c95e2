"""The examples run on a tiny checkpoint and generate what the resident model generates."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import layerstream as ls

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[[str], str]


@pytest.fixture
def run(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example on the tiny checkpoint and return what it wrote to stdout."""

    def run_example(name: str, argument: Path | None = tiny_llama_dir) -> str:
        path = ROOT / "examples" / name
        monkeypatch.setattr(sys, "argv", [str(path), *([] if argument is None else [str(argument)])])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def resident_answers(path: Path, prompts: list[str], new_tokens: int) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        rows = model.generate(
            **tokenizer(prompts, padding=True, return_tensors="pt"),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def test_generate_streamed_writes_what_the_resident_model_says(run: Run, tiny_llama_dir: Path) -> None:
    prompt = "[user] What is the capital of France?\n> "
    (whole,) = resident_answers(tiny_llama_dir, [prompt], 24)
    assert run("generate_streamed.py").strip() == whole.removeprefix(prompt).strip()


def test_pipeline_gives_what_the_resident_model_gives(run: Run, tiny_llama_dir: Path) -> None:
    (whole,) = resident_answers(tiny_llama_dir, ["The capital of France is"], 12)
    assert run("pipeline.py").strip() == whole.strip()


def test_batch_left_padded_gives_what_the_resident_model_gives(run: Run, tiny_llama_dir: Path) -> None:
    prompts = ["The capital of France is", "Two and two make", "The sea is"]
    assert run("batch_left_padded.py").splitlines() == [
        repr(text) for text in resident_answers(tiny_llama_dir, prompts, 12)
    ]


def test_score_choices_tells_what_the_library_tells(run: Run, tiny_llama_dir: Path) -> None:
    first, second, sweeps = run("score_choices.py").splitlines()
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        france, sums = ls.score(
            streamed,
            [
                ("The capital of France is", [" Paris", " Rome", " a fish"]),
                ("Two and two make", [" four", " five"]),
            ],
        )
    assert first.endswith(str([round(score.sum, 3) for score in france.scores]))
    assert second.endswith(str([round(score.sum, 3) for score in sums.scores]))
    assert sweeps == "1 sweep"


def test_many_prompts_gives_each_what_the_resident_model_gives_it_alone(
    run: Run, tiny_llama_dir: Path
) -> None:
    *answers, sweeps = run("many_prompts.py").splitlines()
    (whole,) = resident_answers(tiny_llama_dir, ["The capital of France is"], 8)
    assert answers[0] == f"0: {whole.removeprefix('The capital of France is')!r}"
    assert len(answers) == 4
    assert int(sweeps.split()[0]) <= 12


def test_several_devices_gives_what_the_resident_model_gives_for_each_part(
    run: Run, tiny_llama_dir: Path
) -> None:
    parts = [["The capital of France is", "The sea is"], ["Two and two make", "Once upon a time"]]
    wanted = [f"cpu: {text!r}" for part in parts for text in resident_answers(tiny_llama_dir, part, 12)]
    assert run("several_devices.py").splitlines() == wanted


def test_plan_before_loading_shows_less_reading_for_more_memory_and_a_refusal(run: Run) -> None:
    title, least, middle, most, refusal = run("plan_before_loading.py").splitlines()
    maps = [line.split()[-1] for line in (least, middle, most)]
    assert "placement" in title
    assert set(maps[0]) == {"."} and set(maps[1]) == {".", "D"} and set(maps[2]) == {"D"}
    assert refusal.startswith("half of the least is refused")


def test_progress_listener_hears_of_every_sweep(run: Run) -> None:
    lines = run("progress_listener.py").splitlines()
    assert [line.split(":")[0] for line in lines] == ["sweep 0", "sweep 1", "sweep 2", "sweep 3"]
    assert len({line.split(":")[1] for line in lines}) == 1


def test_simulate_70b_plans_the_large_shape_and_any_other(run: Run, tiny_llama_dir: Path) -> None:
    large, tiny = run("simulate_70b.py", None), run("simulate_70b.py")
    assert large.startswith("a 70B Llama in float16 on cuda:0")
    assert "blocks in host memory" in large and "limited by disk" in large
    assert tiny.startswith(str(tiny_llama_dir))
