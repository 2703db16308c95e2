from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_workers import result, wait_until_gone

import layerstream_compare.cli as cli
from layerstream_compare.case import Case
from layerstream_compare.cli import main, parse_length
from layerstream_compare.errors import ExperimentError
from layerstream_compare.events import Event
from layerstream_compare.measurement import Measurement
from layerstream_compare.protocol import measurement_of
from layerstream_compare.results import ResultsFile


def measured(case: Case | None = None) -> Measurement:
    case = case or Case(model="m", variant="streamed", prompt="Hi")
    return measurement_of(case, {"kind": "result", **result()}, isolation="process")


@pytest.fixture
def folder(tmp_path) -> Path:
    with ResultsFile(tmp_path) as results:
        for variant in ("streamed", "resident"):
            results.add(measured(Case(model="m", variant=variant, prompt="Hi")))
    return tmp_path


def test_report_writes_every_file_and_prints_the_table(folder, capsys):
    assert main(["report", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "streamed" in output
    assert "257 MiB" in output
    assert {path.name for path in folder.iterdir()} == {
        "results.jsonl",
        "report.html",
        "report.md",
        "results.csv",
    }


@pytest.mark.parametrize(("options", "prose"), [((), False), (("--prose",), True)])
def test_prose_is_an_option_of_the_command(options, prose, tmp_path, capsys):
    with ResultsFile(tmp_path) as results:
        case = Case(model="m", variant="resident", prompt="Hi", prose=prose)
        results.add(measurement_of(case, {"kind": "result", **result()}, isolation="process"))
    run = ["run", "--model", "m", "--prompt", "Hi", "--variants", "resident", "--no-noise-floor"]
    # another choice would be refused, or would measure again
    assert main([*run, *options, "--out", str(tmp_path)]) == 0
    assert "already measured" in capsys.readouterr().err


def test_report_as_json_prints_one_record_per_line_and_nothing_else(folder, capsys):
    assert main(["report", "--json", str(folder)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["case"]["variant"] for record in records] == ["streamed", "resident"]


def test_variants_lists_weights_and_attention_variants(capsys):
    assert main(["variants"]) == 0
    output = capsys.readouterr().out
    assert "bnb-nf4-dq" in output
    assert "sdpa-math" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--model", "m"], "give either --prompt or --prompt-file"),
        (
            ["run", "--model", "m", "--prompt", "x", "--prompt-file", "y"],
            "give either --prompt or --prompt-file",
        ),
        (["run", "--model", "m", "--prompt-file", "/no/such/file"], "No such file"),
        (["run", "--model", "m", "--prompt", "x", "--variants", "nf5"], "no weights variant is called 'nf5'"),
        (
            ["run", "--model", "m", "--prompt", "x", "--attention", "fast"],
            "no attention variant is called 'fast'",
        ),
        (["run", "--model", "m", "--prompt", "x", "--lengths", "4q"], "'4q' is not a prompt length"),
        (["run", "--model", "m", "--prompt", "x", "--restart"], "give it with --out"),
        (["report", "/no/such/folder"], "no results in /no/such/folder"),
    ],
)
def test_an_error_prints_one_line_and_returns_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_option_returns_status_2(capsys):
    assert main(["run", "--no-such-option"]) == 2
    assert "no-such-option" in capsys.readouterr().err


def broken_model(folder: Path) -> str:
    """Return a folder that the parent accepts as a checkpoint and a worker fails to load."""
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_the_parent_loads_neither_torch_nor_transformers(tmp_path):
    program = f"""
import sys
from layerstream_compare.cli import main
status = main(["run", "--model", {broken_model(tmp_path)!r}, "--prompt", "x", "--variants", "resident",
               "--no-noise-floor", "--out", {str(tmp_path)!r}])
heavy = {{"torch", "transformers", "numpy", "bitsandbytes"}} & set(sys.modules)
print(status, sorted(heavy))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "1 []"
    # the case failed in a worker, which loaded torch and found no weights
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert record["status"] == "failed"
    assert (tmp_path / "report.html").is_file()


def test_an_interrupt_ends_the_running_case_and_returns_status_130(tmp_path):
    command = [
        sys.executable,
        "-c",
        "import sys; from layerstream_compare.cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    command += ["run", "--model", broken_model(tmp_path), "--prompt", "x", "--variants", "resident"]
    command += ["--no-noise-floor"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not (
            workers := [pid for pid in children.read_text().split() if b"compare.worker" in command_line(pid)]
        ):
            time.sleep(0.01)
        parent.send_signal(signal.SIGINT)
        said = parent.stderr.read()
        assert "Traceback" not in said
        assert "\nstopped: 0 of 1 cases were measured; with --out FOLDER they are kept" in said
        assert said.endswith("\n")
    assert parent.returncode == 130
    # interrupted while it was starting, the worker exits by itself before it imports torch
    assert wait_until_gone(int(workers[0]))


@pytest.mark.parametrize(
    ("options", "how"),
    [((), "the same command again"), (("--restart",), "the same command without --restart")],
)
def test_an_interrupt_says_what_is_kept_where_and_how_to_go_on(options, how, tmp_path, capsys, monkeypatch):
    def interrupted(experiment, **_):
        for case in experiment.cases()[:2]:
            yield Event(case=case, kind="skipped", data={}, measurement=measured(case))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    run = ["run", "--model", "m", "--prompt", "x", *options, "--out", str(tmp_path)]
    assert main(run) == 130
    assert capsys.readouterr().err.endswith(
        f"\nstopped: 2 of 5 cases are kept in {tmp_path}; run {how} to go on\n"
    )


def test_an_interrupt_without_a_folder_shows_what_was_measured(capsys, monkeypatch):
    def interrupted(experiment, **_):
        yield Event(case=experiment.cases()[0], kind="finished", data={}, measurement=measured())
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert main(["run", "--model", "m", "--prompt", "x"]) == 130
    assert "257 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "tokens"), [("512", 512), ("1k", 1024), (" 4K ", 4096), ("0", 0)])
def test_a_prompt_length_is_a_number_of_tokens_or_of_1024_tokens(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "1m", "1 2", "٣"])
def test_an_invalid_prompt_length_is_rejected_with_its_text(text):
    with pytest.raises(ExperimentError, match="is not a prompt length"):
        parse_length(text)


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
