"""`layerstream run --verify`: what it prints, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import layerstream as ls
from layerstream.cli.app import main

ARGUMENTS = ("-p", "hello", "-n", "3", "--verify")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["run", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_prints_one_line_for_each_unit_before_the_answer_and_counts_only_the_answers_sweeps(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answer, shown = run(capsys, tiny_llama_dir, "--budget", "min", *ARGUMENTS)
    assert status == 0
    assert answer == run(capsys, tiny_llama_dir, *ARGUMENTS)[1]
    lines = [line for line in shown.splitlines() if "equal in all" in line]
    assert lines[0].split()[0].startswith("model.layers.0")
    assert lines[-1].split()[0] == "lm_head"
    assert "sweeps      3," in shown


def test_json_has_the_verification(tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, tiny_llama_dir, "--budget", "min", "--json", *ARGUMENTS)
    printed = json.loads(out)
    assert status == 0
    assert printed["verification"]["is_equal"] is True
    assert all(unit["is_equal"] for unit in printed["verification"]["units"])
    assert printed["report"]["sweeps"] == 3


def test_a_resident_plan_says_in_a_line_that_there_is_nothing_to_verify(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, shown = run(capsys, tiny_llama_dir, *ARGUMENTS)
    assert status == 0
    assert len([line for line in shown.splitlines() if "nothing to verify" in line]) == 1


def test_quiet_prints_nothing_of_it(tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, shown = run(capsys, tiny_llama_dir, "--budget", "min", "--quiet", *ARGUMENTS)
    assert shown == ""


def test_a_difference_ends_the_command_with_status_2_before_any_answer(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine is sound: what a broken one would find takes the place of what this one finds."""
    found = ls.VerificationReport(
        model_name="tiny",
        dtype="float32",
        units=(
            unit("model.layers.0", num_different=0),
            unit("model.layers.1", num_different=2),
            unit("lm_head", num_different=1),
        ),
    )
    monkeypatch.setattr(ls.StreamedModel, "verify", lambda _: found)
    status, answer, shown = run(capsys, tiny_llama_dir, "--budget", "min", *ARGUMENTS)
    assert (status, answer) == (2, "")
    assert "equal in all 8 values" in shown
    *_, error = shown.splitlines()
    assert error.startswith("error: the verification of tiny in float32 failed: model.layers.1 on cpu")
    assert (
        "differs in 2 of 8 values, by at most 0.5 (2 of 3 units failed). Results would not be exact" in error
    )


def unit(name: str, *, num_different: int) -> ls.UnitVerification:
    return ls.UnitVerification(
        unit=name,
        device="cpu",
        num_values=8,
        num_finite=8,
        num_different=num_different,
        largest_difference=0.5 if num_different else 0.0,
    )
