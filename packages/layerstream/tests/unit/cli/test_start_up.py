"""Commands that need no model load no model library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerstream.cli import app

_RUN = """
import json, sys
from layerstream.cli.app import main
status = main(sys.argv[1:])
loaded = sorted({"torch", "transformers", "huggingface_hub", "numpy", "datasets"} & set(sys.modules))
sys.stderr.write("\\n" + json.dumps({"status": status, "loaded": loaded}))
"""


def run(*arguments: str) -> tuple[int, list[str]]:
    """Run the command in a new process; return its status and which of the slow libraries it has loaded."""
    command = [sys.executable, "-c", _RUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    report = json.loads(done.stderr.splitlines()[-1])
    return report["status"], report["loaded"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["plan", "--help"], 0),
        (["estimate", "--help"], 0),
        (["chat", "--help"], 0),
        (["serve", "--help"], 0),
        (["plan", "--bugdet", "3"], 2),
        (["nonsense"], 2),
        (["plan", "some/model", "--budget", "many"], 2),
        (["plan", "some/model", "--machine", "gpu=16GB"], 2),
        (["run", "some/model", "--prompt", " "], 2),
        (["batch", "absent.jsonl", "results.jsonl", "-m", "some/model"], 2),
    ],
)
def test_help_and_errors_load_no_model_library(arguments: list[str], status: int) -> None:
    assert run(*arguments) == (status, [])


@pytest.mark.parametrize("chosen", [None, "7"])
def test_torchs_idle_threads_sleep_soon_unless_the_user_chose(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, ours = app.SHORT_SPINS
    without = {key: value for key, value in os.environ.items() if key != name}
    monkeypatch.setattr(os, "environ", without if chosen is None else without | {name: chosen})
    app.main(["--version"])
    assert os.environ[name] == (chosen or ours)


@pytest.mark.parametrize("command", ["run", "chat", "serve", "plan", "batch", "score", "trace"])
def test_a_local_model_that_is_none_is_refused_before_a_model_library_is_loaded(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    rest = {"run": ["-p", "hello"], "batch": ["-m"], "score": ["-m"]}.get(command, [])
    for model in (str(tmp_path / "empty"), str(tmp_path / "absent")):
        if rest == ["-m"]:
            files = [str(tmp_path / "rows.jsonl"), str(tmp_path / "results.jsonl")]
            status, loaded = run(command, *files, "-m", model)
        else:
            status, loaded = run(command, model, *rest)
        assert status == 2
        assert not {"torch", "transformers"} & set(loaded)


def test_a_job_that_is_refused_or_done_loads_no_model_library(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"wrong": 1}\n')
    arguments = ["batch", str(rows), str(tmp_path / "results.jsonl"), "-m", str(tiny_llama_dir), "--quiet"]
    assert run(*arguments)[0] == 1
    # safetensors checks a header with numpy at hand
    assert run(*arguments, "-n", "3") == (2, ["huggingface_hub", "numpy"])
    assert run(*arguments) == (1, ["huggingface_hub", "numpy"])


def test_a_finished_job_loads_no_model_library(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    arguments = ["batch", str(rows), str(tmp_path / "results.jsonl"), "-m", "some/model", "--quiet"]
    assert run(*arguments) == (0, [])


def test_a_data_set_is_read_without_a_model_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    for split in ("train", "test"):
        (tmp_path / "rows" / f"{split}.jsonl").write_text('{"prompt": "x"}\n')
    status, loaded = run("batch", str(tmp_path / "rows"), str(tmp_path / "results.jsonl"), "-m", "some/model")
    assert status == 2
    assert loaded == ["datasets", "huggingface_hub", "numpy"]
