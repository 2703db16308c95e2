"""The rows of a job: numbers, ids, digests, and the files that are none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from kit.job_files import LINES

import layerstream as ls
from layerstream.cli.jobs import read_rows


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_rows_have_numbers_ids_and_errors(rows_path: Path) -> None:
    rows = read_rows(rows_path)
    assert [(row.number, row.id) for row in rows] == [(1, "a"), (3, 3), (4, 4), (5, 5), (6, {"deep": 1})]
    assert [row.error is None for row in rows] == [True, True, False, False, True]
    assert rows[1].fields == {"prompt": "Ünïcödé"}


def test_a_file_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ls.JobError, match="cannot read the rows"):
        read_rows(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/full"])
def test_rows_from_a_device_are_refused_and_not_read(path: str) -> None:
    with pytest.raises(
        ls.JobError, match=f"the rows {path}: this is a device, not a plain file; save the rows"
    ):
        read_rows(Path(path))


def test_rows_from_a_folder_a_pipe_or_a_socket_are_refused_and_nothing_waits(tmp_path: Path) -> None:
    pipe, address = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        for path, kind in ((tmp_path, "a directory"), (pipe, "a pipe"), (address, "a socket")):
            with pytest.raises(ls.JobError, match=f"this is {kind}"):
                read_rows(path)
