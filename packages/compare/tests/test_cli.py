from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_workers import result, wait_until_gone

from layerstream_compare.case import Case
from layerstream_compare.cli import main
from layerstream_compare.protocol import measurement_of
from layerstream_compare.results import ResultsFile


@pytest.fixture
def folder(tmp_path) -> Path:
    with ResultsFile(tmp_path) as results:
        for variant in ("streamed", "resident"):
            case = Case(model="m", variant=variant, prompt="Hi")
            results.add(measurement_of(case, {"kind": "result", **result()}, isolation="process"))
    return tmp_path


def test_report_writes_every_file_and_shows_the_table(folder, capsys):
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr()
    assert "streamed" in told.out
    assert "257 MiB" in told.out
    assert {path.name for path in folder.iterdir()} == {
        "results.jsonl",
        "report.html",
        "report.md",
        "results.csv",
    }


def test_report_as_json_is_one_record_a_line_and_nothing_else(folder, capsys):
    assert main(["report", "--json", str(folder)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["case"]["variant"] for record in records] == ["streamed", "resident"]


def test_variants_are_listed_with_why_one_cannot_run(capsys):
    assert main(["variants"]) == 0
    told = capsys.readouterr().out
    assert "bnb-nf4-dq" in told
    assert "sdpa-math" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
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
        (["run", "--model", "m", "--prompt", "x", "--lengths", "4q"], "'4q' is no prompt length"),
        (["report", "/no/such/folder"], "no results in /no/such/folder"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments, told, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1


def test_an_option_that_does_not_exist_is_status_2(capsys):
    assert main(["run", "--no-such-option"]) == 2
    assert "no-such-option" in capsys.readouterr().err


def broken_model(folder: Path) -> str:
    """Return a folder that looks like a checkpoint to the parent and fails in a worker."""
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_the_parent_loads_neither_torch_nor_transformers_though_its_cases_do(tmp_path):
    program = f"""
import sys
from layerstream_compare.cli import main
status = main(["run", "--model", {broken_model(tmp_path)!r}, "--prompt", "x", "--variants", "resident",
               "--no-noise-floor", "--out", {str(tmp_path)!r}])
heavy = {{"torch", "transformers", "numpy", "bitsandbytes", "layerstream"}} & set(sys.modules)
print(status, sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 []"
    # the case failed for want of a whole model, in a worker that loaded everything
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert record["status"] == "failed"
    assert (tmp_path / "report.html").is_file()


def test_an_interrupt_ends_the_running_case_and_is_status_130(tmp_path):
    command = [
        sys.executable,
        "-c",
        "import sys; from layerstream_compare.cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    command += ["run", "--model", broken_model(tmp_path), "--prompt", "x", "--variants", "resident"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not (
            workers := [pid for pid in children.read_text().split() if b"compare.worker" in command_line(pid)]
        ):
            time.sleep(0.01)
        parent.send_signal(signal.SIGINT)
        assert "Traceback" not in parent.stderr.read()
    assert parent.returncode == 130
    # struck while it was being started, the worker finds out by itself, before it has imported anything large
    assert wait_until_gone(int(workers[0]))


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
