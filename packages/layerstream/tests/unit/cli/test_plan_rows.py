"""`layerstream plan --rows`: a job on several machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstream.cli.app import main

MACHINE = "ram=32GB,disk=2.5GB/s"


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr()


def cluster_of(capsys: pytest.CaptureFixture[str], model: Path, *options: object) -> dict[str, object]:
    command = ("plan", model, "--machine", MACHINE, "--rows", 1000, "--json", *options)
    cluster: dict[str, object] = json.loads(run(capsys, *command)[0])["cluster"]
    return cluster


def test_a_job_of_many_rows_is_shown_below_the_plan(
    capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    command = (
        "plan",
        tiny_llama_dir,
        "--machine",
        MACHINE,
        "--rows",
        1000,
        "--machines",
        "1,3",
        "--price",
        2,
    )
    lines = run(capsys, *command)[0].splitlines()
    table = lines[[line.startswith("  cluster     1,000 rows") for line in lines].index(True) + 1 :]
    assert table[0].split()[-1] == "cost"
    assert [row.split()[:2] for row in table[1:3]] == [["1", "1,000"], ["3", "334"]]


def test_the_batch_is_as_large_as_is_fastest_unless_it_is_given(
    capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    fastest = cluster_of(capsys, tiny_llama_dir)
    given = cluster_of(capsys, tiny_llama_dir, "--batch-size", 3)
    assert given["rows_per_sweep"] == 3
    assert int(str(fastest["rows_per_sweep"])) > 3


def test_a_budget_without_room_for_larger_batches_keeps_the_largest_that_fits(
    capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    assert cluster_of(capsys, tiny_llama_dir, "--budget", "min")["rows_per_sweep"] == 1
    assert cluster_of(capsys, tiny_llama_dir, "--budget", "4GiB")["rows_per_sweep"] == 256
    tight = cluster_of(capsys, tiny_llama_dir, "--budget", "50MiB")
    assert 1 <= int(str(tight["rows_per_sweep"])) < 256


def test_the_time_until_a_machine_computes_can_be_given(
    capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    assert cluster_of(capsys, tiny_llama_dir, "--load-s", 90)["load_s"] == 90


@pytest.mark.parametrize("text", ["", "1,two", "0", "1,,2", "-1"])
def test_machines_that_are_no_numbers_are_refused(
    text: str, capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    _, err = run(capsys, "plan", tiny_llama_dir, "--rows", 10, f"--machines={text}", status=2)
    assert "1,2,4,8" in err


@pytest.mark.parametrize("option", ["--machines=1,2", "--price=0", "--load-s=0"])
def test_options_of_a_job_without_rows_are_refused(
    option: str, capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    _, err = run(capsys, "plan", tiny_llama_dir, "--machine", MACHINE, option, status=2)
    assert "give --rows N" in err


def test_without_rows_nothing_is_said_of_a_job(
    capsys: pytest.CaptureFixture[str], tiny_llama_dir: Path
) -> None:
    assert "cluster" not in json.loads(run(capsys, "plan", tiny_llama_dir, "--json")[0])
