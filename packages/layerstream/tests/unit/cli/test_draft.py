"""`--draft`: the same text, a plan and a report that name the draft, and what it cannot be used for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstream.cli.app import main

MACHINE = "gpu=80GB,ram=32GB,disk=2.5GB/s"

pytestmark = pytest.mark.usefixtures("quiet_terminal")


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert main([str(argument) for argument in arguments]) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("draft", ["int8", "lookup", "itself"])
def test_run_prints_the_same_text_and_says_what_the_draft_saved(
    draft: str, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_llama_dir) if draft == "itself" else draft
    asked = ("run", tiny_llama_dir, "-p", "hello", "-n", 24, "--budget", "min")
    plain, _ = run(capsys, *asked, "--quiet")
    out, err = run(capsys, *asked, "--draft", name)
    assert out == plain
    planned, reported = (line for line in err.splitlines() if line.startswith(f"  draft       {name}: "))
    assert "if each is accepted with a chance of" in planned
    assert "drafted tokens accepted, drafting took" in reported
    printed = json.loads(run(capsys, *asked, "--draft", name, "--json")[0])
    assert printed["plan"]["draft"] == name
    found = printed["report"]["speculation"]
    assert found["draft"] == name
    assert found["tokens"] == printed["answer"]["new_tokens"] - 1
    assert printed["report"]["sweeps"] == found["sweeps"] + 1


@pytest.mark.parametrize("model", ["tiny", "llama-2-70b"])
def test_plan_for_a_machine_shows_the_draft_and_its_memory(
    model: str, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_llama_dir) if model == "tiny" else model
    asked = ("plan", model, "--machine", MACHINE, "--json")
    plain = json.loads(run(capsys, *asked)[0])
    assert plain["draft"] == ""
    planned = json.loads(run(capsys, *asked, "--draft", "int8")[0])
    assert planned["draft"] == "int8"
    assert planned["draft_forecast"]["tokens_per_sweep"] > 1
    kinds = {line["kind"]: line["num_bytes"] for line in planned["ledger"]["lines"]}
    assert kinds["draft"] > 0
    assert "draft" not in {line["kind"] for line in plain["ledger"]["lines"]}


def test_plan_for_this_machine_and_for_the_same_described_one_takes_the_same_draft(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text(run(capsys, "probe", "--path", tmp_path, "--device", "cpu", "--json")[0])
    asked = ("plan", tiny_llama_dir, "--draft", "int8", "--budget", "min", "--json")
    here, there = (
        {line["kind"]: line["num_bytes"] for line in json.loads(out)["ledger"]["lines"]}["draft"]
        for out, _ in (run(capsys, *asked, "--device", "cpu"), run(capsys, *asked, "--machine", machine))
    )
    assert here == there > 0


def test_another_model_as_the_draft_of_a_described_machine_is_refused_with_what_is_possible(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("plan", tiny_llama_dir, "--machine", MACHINE, "--draft", "some/model")
    out, err = run(capsys, *asked, status=2)
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "'some/model' is another model" in err and "int8, nf4, lookup, auto" in err


def test_a_draft_on_several_devices_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = (tmp_path / "rows.jsonl", tmp_path / "results.jsonl")
    asked = ("batch", *files, "-m", "some/model", "--device", "cpu,cpu", "--draft", "int8")
    _, err = run(capsys, *asked, status=2)
    assert "works on one device" in err


@pytest.mark.parametrize("command", ["score", "trace", "probe", "estimate"])
def test_commands_that_generate_no_text_or_one_token_per_sweep_have_no_such_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(capsys, command, "--draft", "int8", status=2)
    assert "--draft" in err


def test_batch_with_a_draft_answers_as_run_does(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("hello", "hello, hello, hello")
    rows, results = tmp_path / "rows.jsonl", tmp_path / "results.jsonl"
    rows.write_text("".join(json.dumps({"id": prompt, "prompt": prompt}) + "\n" for prompt in prompts))
    _, err = run(
        capsys, "batch", rows, results, "-m", tiny_llama_dir, "-n", 12, "--budget", "min", "--draft", "int8"
    )
    answers = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert {answer["id"]: answer["text"] + "\n" for answer in answers} == {
        prompt: run(capsys, "run", tiny_llama_dir, "-p", prompt, "-n", 12, "-q")[0] for prompt in prompts
    }
    assert "drafted tokens accepted" in err
