"""Directories that are no checkpoint: each command says what is wrong, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerstream.cli.app import main


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [],
            "neither model.safetensors nor model.safetensors.index.json, but nothing, it is empty",
        ),
        (["notes.md"], "but notes.md; give a directory with a whole checkpoint, or a Hub id"),
        (["config.json"], "has no weights"),
        (["model.safetensors"], "it has no config.json; put the config next to the weights"),
        (["model.gguf"], "has only GGUF weights (model.gguf)"),
        (["config.json", "m.bin"], "has only pickled weights (m.bin)"),
    ],
)
@pytest.mark.parametrize("command", [("run", "-p", "hello"), ("plan",), ("trace",)], ids=lambda each: each[0])
def test_what_is_wrong_with_a_directory_is_said_before_its_tokenizer(
    command: tuple[str, ...],
    files: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in files:
        (model / file).write_text('{"model_type": "llama"}')
    monkeypatch.chdir(tmp_path)
    assert main([command[0], str(model), *command[1:]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
