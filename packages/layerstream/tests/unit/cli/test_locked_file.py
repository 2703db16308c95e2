"""A locked file is replaced at once or not at all, and has one owner all the while."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import layerstream as ls
from layerstream.cli import locked_file
from layerstream.cli.locked_file import LockedFile

_KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from layerstream.cli.locked_file import LockedFile

def lines():
    yield b"new\\n" * 1_000_000
    os.kill(os.getpid(), signal.SIGKILL)

LockedFile(Path(sys.argv[1])).replace(lines())
"""


def test_what_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old\n")
    path.chmod(0o640)
    file = LockedFile(path)
    file.replace([b"new\n"])
    file.append(b"more\n")
    file.close()
    assert path.read_text() == "new\nmore\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_killed_while_it_replaces_it_leaves_the_old_contents_and_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_text("old\n")
    done = subprocess.run([sys.executable, "-c", _KILLED_WHILE_REPLACING, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old\n"
    file = LockedFile(path)
    file.replace([b"newer\n"])
    file.close()
    assert path.read_text() == "newer\n"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_whoever_opened_a_file_that_was_then_replaced_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the last owner may replace the file and end."""
    path = tmp_path / "file"
    path.write_text("old\n")
    lock = LockedFile._lock
    was_replaced = []

    def replaced_before(self: LockedFile, descriptor: int) -> None:
        if not was_replaced:
            was_replaced.append(True)
            (tmp_path / "other").write_text("new\n")
            os.replace(tmp_path / "other", path)
        lock(self, descriptor)

    monkeypatch.setattr(locked_file.LockedFile, "_lock", replaced_before)
    file = LockedFile(path)
    file.append(b"more\n")
    file.close()
    assert was_replaced
    assert path.read_text() == "new\nmore\n"


def test_kept_lines_and_contents_take_free_names(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old\n")
    (tmp_path / "file.1").symlink_to("nowhere")
    file = LockedFile(path)
    assert file.keep_lines([b"aside\n"]).name == "file.2"
    assert file.keep_contents().name == "file.3"
    file.replace([b"new\n"])
    file.close()
    assert (tmp_path / "file.2").read_text() == "aside\n"
    assert (tmp_path / "file.3").read_text() == "old\n"
    assert path.read_text() == "new\n"


def test_a_pipe_that_appears_at_the_last_moment_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setattr(locked_file, "refuse_special_file", lambda *_: None)
    with pytest.raises(ls.JobError, match="not a plain file"):
        LockedFile(path)
