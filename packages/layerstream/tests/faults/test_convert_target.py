"""An interrupted conversion is never taken for a checkpoint, and goes on where it stopped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.pickled_weights import SINGLE, save_pickled
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.checkpoint.index import CONVERSION_NOTE, open_checkpoint
from layerstream.conversion import target as target_module

SHARD_BYTES = 200_000


@pytest.fixture
def source(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    save_pickled(tiny_llama_dir, tmp_path / "pickled")
    return tmp_path / "pickled"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "converted"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerstream.conversion.pickled.PIECE_BYTES", 10_000)


def convert(source: Path, target: Path, on_progress: object = None) -> ls.ConversionReport:
    return ls.convert_checkpoint(source, target, max_shard_size=SHARD_BYTES, on_progress=on_progress)  # type: ignore[arg-type]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def interrupt_in_file(number: int) -> object:
    """Return a callback that raises KeyboardInterrupt in the middle of a file, counted from 0."""
    pieces = 0

    def on_progress(progress: ls.ConversionProgress) -> None:
        nonlocal pieces
        pieces += progress.files_done == number
        if pieces == 3:
            raise KeyboardInterrupt

    return on_progress


def assert_no_checkpoint(target: Path) -> None:
    with pytest.raises(ls.CheckpointNotFoundError, match="unfinished conversion"):
        open_checkpoint(target)
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(target)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("files_done", [0, 1, 3])
def test_after_an_interrupt_the_same_call_goes_on_and_gives_the_same_files(
    files_done: int, source: Path, target: Path
) -> None:
    convert(source, target.parent / "at once")
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, interrupt_in_file(files_done))
    assert_no_checkpoint(target)
    complete = sorted(target.glob("*.safetensors"))
    assert len(complete) == files_done
    assert not list(target.glob(".*"))
    inodes = [path.stat().st_ino for path in complete]
    seen: list[ls.ConversionProgress] = []
    report = convert(source, target, seen.append)
    assert [path.stat().st_ino for path in complete] == inodes
    assert contents(target) == contents(target.parent / "at once")
    assert (report.kept_bytes > 0) == (files_done > 0)
    assert seen[0].bytes_done > report.kept_bytes
    assert seen[-1].bytes_done == seen[-1].total_bytes == report.weight_bytes


def test_a_killed_conversion_goes_on_and_leaves_no_remains(source: Path, target: Path) -> None:
    program = (
        "import sys, os, signal, layerstream as ls\n"
        "from layerstream.conversion import pickled\n"
        "pickled.PIECE_BYTES = 10_000\n"
        "def die(progress):\n"
        "    if progress.files_done == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"ls.convert_checkpoint(*sys.argv[1:], max_shard_size={SHARD_BYTES}, on_progress=die)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in target.glob(".*.partial")] == [".model-00002-of-00004.safetensors.partial"]
    assert_no_checkpoint(target)
    report = convert(source, target)
    assert report.kept_bytes > 0
    assert not list(target.glob(".*"))
    assert not (target / CONVERSION_NOTE).exists()
    assert len(open_checkpoint(target).tensors) == report.num_tensors


def test_a_file_of_the_wrong_length_is_written_again(source: Path, target: Path) -> None:
    convert(source, target.parent / "at once")
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, interrupt_in_file(2))
    first = min(target.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    convert(source, target)
    assert contents(target) == contents(target.parent / "at once")


def test_a_folder_with_other_files_is_refused_and_left_alone(source: Path, target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(ls.ConversionError, match="is not empty"):
        convert(source, target)
    assert contents(target) == {"thesis.txt": b"mine"}


def test_a_complete_conversion_is_not_done_again(source: Path, target: Path) -> None:
    convert(source, target)
    before = contents(target)
    with pytest.raises(ls.ConversionError, match="is not empty"):
        convert(source, target)
    assert contents(target) == before


def test_an_empty_folder_will_do(source: Path, target: Path) -> None:
    target.mkdir()
    assert convert(source, target).num_files == 4


@pytest.mark.parametrize("change", ["source", "dtype", "size", "note"])
def test_an_unfinished_conversion_of_something_else_is_refused(
    change: str, source: Path, target: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, interrupt_in_file(1))
    options: dict[str, object] = {"max_shard_size": SHARD_BYTES}
    if change == "source":
        os.utime(source / SINGLE, ns=(1, 1))
    elif change == "note":
        (target / CONVERSION_NOTE).write_text("{")
    else:
        options |= {"dtype": "float16"} if change == "dtype" else {"max_shard_size": 2 * SHARD_BYTES}
    before = contents(target)
    with pytest.raises(ls.ConversionError, match=r"unfinished conversion of .*remove it"):
        ls.convert_checkpoint(source, target, **options)  # type: ignore[arg-type]
    assert contents(target) == before


def test_too_little_space_is_said_before_a_weight_is_written(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(ls.ConversionError, match=r"needs 64\.7 MiB more .* 1 MiB free") as caught:
        convert(source, target)
    assert caught.value.needed_bytes > 64 * 2**20
    assert not list(target.glob("*.safetensors"))
    monkeypatch.undo()
    convert(source, target)


@pytest.mark.usefixtures("small_pieces")
def test_a_disk_that_fills_up_keeps_what_is_complete(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = os.write

    def filling_up(descriptor: int, data: bytes) -> int:
        nonlocal written
        # a full disk first takes a part
        if written > 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, bytes(data)[:7000])
        written += done
        return done

    monkeypatch.setattr("layerstream.checkpoint.new_shards.os.write", filling_up)
    with pytest.raises(ls.ConversionError, match=r"No space left on device; 1 of 4 files .* are kept"):
        convert(source, target)
    monkeypatch.undo()
    assert len(list(target.glob("*.safetensors"))) == 1
    assert_no_checkpoint(target)
    assert convert(source, target).kept_bytes > 0


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ls.ConversionError, match="cannot be written"):
        convert(source, tmp_path / "file" / "converted")


def test_a_source_that_disappears_is_named(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removing(self: object, folder: Path) -> None:
        (source / SINGLE).unlink()

    monkeypatch.setattr("layerstream.conversion.model_files.CopiedFiles.write_first", removing)
    with pytest.raises(ls.CheckpointError, match=r"cannot be read from the source: No such file"):
        convert(source, target)
    assert not list(target.glob("*.safetensors"))


def test_a_read_only_source_is_enough(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.chmod(0o444)
    source.chmod(0o555)
    try:
        convert(source, target)
    finally:
        source.chmod(0o755)
    # what is copied is the user's own
    assert all(os.access(path, os.W_OK) for path in target.iterdir())
