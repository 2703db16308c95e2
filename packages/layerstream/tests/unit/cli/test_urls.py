"""Commands on a model at a URL do what they do on its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstream.cli import quiet_hub
from layerstream.cli.app import main
from layerstream.spec.fetch import FetchProgress
from layerstream.spec.options import LoadOptions


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def texts_of_batch(tmp_path: Path, model: str) -> list[str]:
    """Return the texts of a small batch."""
    rows, results = tmp_path / "rows.jsonl", tmp_path / f"results-{len(model)}.jsonl"
    rows.write_text('{"prompt": "hello"}\n{"prompt": "the sea"}\n')
    status = main(
        ["batch", str(rows), str(results), "--model", model, "--budget", "min", "-n", "4", "--quiet"]
    )
    assert status == 0
    return [json.loads(line)["text"] for line in results.read_text().splitlines()[1:]]


def test_a_batch_on_a_url_answers_as_on_its_folder(tmp_path: Path, tiny_llama_dir: Path) -> None:
    from_url = texts_of_batch(tmp_path, f"file://{tiny_llama_dir}")
    assert from_url == texts_of_batch(tmp_path, str(tiny_llama_dir))


def test_run_and_plan_take_urls(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tiny_llama_dir}"
    assert main(["plan", url, "--budget", "min"]) == 0
    assert url in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["run", url, "-p", "hello", "-n", "2", "--budget", "min", "--quiet"]) == 0
    answer = capsys.readouterr().out
    assert main(["run", str(tiny_llama_dir), "-p", "hello", "-n", "2", "--budget", "min", "--quiet"]) == 0
    assert capsys.readouterr().out == answer


def test_a_url_without_a_model_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", f"file://{tmp_path}/absent"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: there is no file://{tmp_path}/absent")
    assert err.count("\n") == 1


def test_what_a_job_copies_first_is_reported(tiny_llama_dir: Path) -> None:
    seen: list[FetchProgress] = []
    quiet_hub.copy_from_url(f"file://{tiny_llama_dir}", LoadOptions(), seen.append)
    last = seen[-1]
    assert last.done_bytes == last.total_bytes == (tiny_llama_dir / "model.safetensors").stat().st_size
    assert last.explain().startswith("model.safetensors: ")
