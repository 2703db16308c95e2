"""`layerstream batch --ray`: what is refused before Ray is started. No Ray is needed here."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from layerstream.cli.app import main


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n')
    return path


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == package else find_spec(name)

    monkeypatch.setattr("layerstream.cli.batch.find_spec", find)
    monkeypatch.setattr("layerstream.cli.row_sources.find_spec", find)


def test_options_for_workers_need_ray(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", str(rows), str(rows.with_name("out.jsonl")), "--workers", "2", "--model", "x"]) == 2
    assert "are for --ray: give --ray ADDRESS or local" in " ".join(capsys.readouterr().err.split())


def test_without_ray_one_error_says_what_to_install(
    rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("ray", monkeypatch)
    assert main(["batch", str(rows), str(rows.with_name("out.jsonl")), "--ray", "local", "--model", "x"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: --ray needs ray, which is not installed: pip install 'layerstream[ray]'"


def test_without_pyarrow_parquet_is_refused(
    rows: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("pyarrow", monkeypatch)
    results = rows.with_name("out.parquet")
    assert main(["batch", str(rows), str(results), "--model", str(tiny_llama_dir)]) != 0
    assert "needs the package pyarrow" in " ".join(capsys.readouterr().err.split())
    assert not results.exists()
