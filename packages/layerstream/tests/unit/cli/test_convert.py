"""`layerstream convert`: what a user reads before, during and after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.families import GQA
from kit.gguf_files import TOKENS, stored_as, tiny_model, write_gguf
from kit.pickled_weights import SINGLE, save_pickled
from transformers import AutoConfig

import layerstream as ls
from layerstream.cli.app import main
from layerstream.conversion import pickled


@pytest.fixture
def source(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    save_pickled(tiny_llama_dir, tmp_path / "pickled")
    return tmp_path / "pickled"


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert main([str(argument) for argument in arguments]) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_error_of_run_gives_the_command_whose_result_run_takes(
    source: Path, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["-p", "hello", "-n", 2, "--quiet"]
    _, err = run(capsys, "run", source, *prompt, status=2)
    command = f"layerstream convert {source} TARGET"
    assert command in err
    _, *arguments = command.replace("TARGET", str(tmp_path / "converted")).split()
    out, err = run(capsys, *arguments)
    assert out.startswith(f"{tmp_path / 'converted'}: 39 tensors, 738 KiB in 1 file, in ")
    assert "writing 738 KiB of weights" in err
    assert f"next: layerstream run {tmp_path / 'converted'}" in err
    answer, _ = run(capsys, "run", tmp_path / "converted", *prompt)
    assert answer == run(capsys, "run", tiny_llama_dir, *prompt)[0] != ""


def test_a_quantized_file_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {**GQA, "vocab_size": len(TOKENS), "intermediate_size": 96, "num_hidden_layers": 1}
    model = tiny_model(AutoConfig.for_model("llama", **sizes))
    path = write_gguf(model, tmp_path / "model.gguf", "llama", stored_as("Q8_0"), tokenizer=True)
    _, err = run(capsys, "convert", path, tmp_path / "converted", "--dtype", "bfloat16")
    assert "The file is quantized (Q8_0). Its values are stored as bfloat16" in err
    assert "not of the original model" in err


def test_quiet_prints_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "convert", source, tmp_path / "converted", "--quiet") == ("", "")


def test_after_ctrl_c_the_user_knows_what_is_kept(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pickled.PickledSource.read

    def interrupted(self: pickled.PickledSource, name: str) -> object:
        if name == "model.layers.2.mlp.up_proj.weight":
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(pickled.PickledSource, "read", interrupted)
    command = ["convert", source, tmp_path / "converted", "--max-shard-size", "200KB"]
    _, err = run(capsys, *command, status=130)
    assert "2 of 4 files of weights are complete and kept; the same command goes on" in err
    assert "not usable yet" in err
    monkeypatch.undo()
    _, err = run(capsys, "run", tmp_path / "converted", "-p", "hello", status=2)
    assert "unfinished conversion" in err
    out, _ = run(capsys, *command)
    assert "of it from an earlier attempt" in out


def test_what_cannot_be_converted_is_one_line_and_status_2(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save([1], source / SINGLE)
    out, err = run(capsys, "convert", source, tmp_path / "converted", status=2)
    (line,) = err.splitlines()
    assert out == ""
    assert line == f"error: {source / SINGLE} holds a list, not tensors by name"


def test_progress_tells_bytes_rate_and_time_left() -> None:
    progress = ls.ConversionProgress(
        files_done=1, num_files=3, bytes_done=2**30, total_bytes=3 * 2**30, bytes_per_s=2**29
    )
    assert progress.explain() == "1 GiB of 3 GiB · file 2 of 3 · 0.54 GB/s · about 4 s left"
