"""When a copy of a model at a URL is whole: all its files are of one listing of its source."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from kit.url_copies import ask_each_time, change, same_files
from kit.web_folder import WebFolder

import layerstream as ls
from layerstream.checkpoint import url_copy
from layerstream.checkpoint.copy_record import RECORD_NAME, CopyRecord, part_of
from layerstream.checkpoint.remote import RemoteFile
from layerstream.errors import CheckpointNotFoundError, FetchError

pytestmark = pytest.mark.enable_socket

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _own_cache_and_no_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own; servers are asked each time, and tried again at once."""
    ask_each_time(monkeypatch, tmp_path / "cache", (0.0, 0.0))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a copy goes."""
    return tmp_path / "copy"


def leave_a_part(web: WebFolder, shared: Path, target: Path, num_bytes: int) -> None:
    """Leave what a copy leaves that was killed after `num_bytes` of the weights."""
    ls.fetch(web.address, target)
    (target / WEIGHTS).unlink()
    file = url_copy.open_remote(web.address).look(WEIGHTS)
    assert file is not None
    CopyRecord(target).begin(file)
    part_of(target / WEIGHTS).write_bytes((shared / WEIGHTS).read_bytes()[:num_bytes])
    web.requests.clear()


def test_a_copy_serves_when_its_server_is_away(web: WebFolder, target: Path) -> None:
    ls.fetch(web.address, target)
    web.refuses = 503
    with pytest.warns(UserWarning, match="copy of an earlier time"):
        assert ls.fetch(web.address, target) == target


def test_a_server_that_tells_no_sizes_serves_whole_copies_only(
    web: WebFolder, shared: Path, tiny_llama_dir: Path
) -> None:
    web.tells_sizes = False
    with pytest.raises(FetchError, match=r"does not say how large .*/model\.safetensors is; .*fetch"):
        ls.plan(web.address, budget="min", device="cpu")
    with pytest.raises(FetchError, match="does not say how large"):
        ls.load(web.address, budget="min", device="cpu")
    assert same_files(ls.fetch(web.address), shared)
    with ls.load(web.address, budget="min", device="cpu") as streamed:
        assert streamed.plan.ledger == ls.plan(tiny_llama_dir, budget="min", device="cpu").ledger


def test_local_files_only_copies_nothing(web: WebFolder, target: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="local_files_only"):
        ls.fetch(web.address, target, local_files_only=True)
    ls.fetch(web.address, target)
    web.requests.clear()
    assert ls.fetch(web.address, target, local_files_only=True) == target
    assert not web.requests


def test_an_unfinished_copy_does_not_pass_for_a_whole_one(web: WebFolder, shared: Path, target: Path) -> None:
    leave_a_part(web, shared, target, 300_000)
    with pytest.raises(CheckpointNotFoundError, match="no whole copy"):
        ls.fetch(web.address, target, local_files_only=True)


def change_all(shared: Path) -> None:
    """Put another model into the folder: another config, another tokenizer's settings, other weights."""
    for name in ("config.json", "generation_config.json"):
        change(shared / name, (shared / name).read_bytes() + b"\n")
    change(shared / WEIGHTS, (shared / WEIGHTS).read_bytes()[:-4] + b"\1\2\3\4")


def assert_not_whole(web: WebFolder, target: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no whole copy"):
        ls.fetch(web.address, target, local_files_only=True)
    web.refuses = 503
    with pytest.raises(FetchError, match="503"):
        ls.fetch(web.address, target)
    web.refuses = 0


def test_a_new_config_beside_old_weights_is_no_whole_copy(web: WebFolder, shared: Path, target: Path) -> None:
    ls.fetch(web.address, target)
    change_all(shared)
    place = url_copy.place_of(web.address, ls.LoadOptions(), target)
    url_copy.copy_checkpoint(place, weights=False)
    assert_not_whole(web, target)
    ls.fetch(web.address, target)
    assert same_files(target, shared)
    assert ls.fetch(web.address, target, local_files_only=True) == target


def test_a_disk_without_room_for_new_weights_leaves_no_whole_copy(
    web: WebFolder, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ls.fetch(web.address, target)
    change_all(shared)
    usage = shutil.disk_usage(target)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
        with pytest.raises(FetchError, match="too full"):
            ls.fetch(web.address, target)
    assert_not_whole(web, target)


class Killed(BaseException):
    """Stands for the end of the process: nothing handles it."""


@pytest.mark.parametrize("num_files", [1, 2])
def test_a_copy_killed_between_two_files_is_no_whole_copy(
    num_files: int, web: WebFolder, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ls.fetch(web.address, target)
    change_all(shared)
    finished = []

    def finish(record: CopyRecord, file: RemoteFile) -> None:
        real(record, file)
        finished.append(file.name)
        if len(finished) == num_files:
            raise Killed

    real = CopyRecord.finish
    with monkeypatch.context() as patch:
        patch.setattr(CopyRecord, "finish", finish)
        with pytest.raises(Killed):
            ls.fetch(web.address, target)
    assert WEIGHTS not in finished
    assert_not_whole(web, target)
    # Without its weights, the copy serves once all its small files are new.
    place = url_copy.place_of(web.address, ls.LoadOptions(), target)
    with nullcontext() if num_files == 2 else pytest.raises(CheckpointNotFoundError):
        assert url_copy.copy_checkpoint(place, weights=False, local_only=True) == target


def test_two_variants_in_one_folder_are_both_whole(web: WebFolder, shared: Path, target: Path) -> None:
    shutil.copy2(shared / WEIGHTS, shared / "model.fp16.safetensors")
    ls.fetch(web.address, target, variant="fp16")
    ls.fetch(web.address, target)
    for variant in (None, "fp16"):
        assert ls.fetch(web.address, target, variant=variant, local_files_only=True) == target


def test_a_copy_killed_before_it_removed_a_file_is_no_whole_copy(
    web: WebFolder, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ls.fetch(web.address, target)
    (shared / "generation_config.json").unlink()

    def die(_record: CopyRecord, _name: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CopyRecord, "remove", die)
        with pytest.raises(Killed):
            ls.fetch(web.address, target)
    assert_not_whole(web, target)
    ls.fetch(web.address, target)
    assert not (target / "generation_config.json").exists()
    assert ls.fetch(web.address, target, local_files_only=True) == target


@pytest.mark.parametrize("note", ["[]", "{}", '{"files": 1, "parts": {}, "listed": {}}', "x"])
def test_a_broken_note_only_means_that_all_is_copied_again(
    note: str, web: WebFolder, shared: Path, target: Path
) -> None:
    ls.fetch(web.address, target)
    (target / RECORD_NAME).write_text(note)
    with pytest.raises(CheckpointNotFoundError, match="no whole copy"):
        ls.fetch(web.address, target, local_files_only=True)
    ls.fetch(web.address, target)
    assert same_files(target, shared)
