"""Models from URLs: copied once, on from where a copy stopped, checked; errors say what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
from kit.url_copies import ask_each_time, change, same_files
from kit.web_folder import WebFolder
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.checkpoint import url_copy
from layerstream.checkpoint.copy_record import CopyRecord, part_of
from layerstream.errors import (
    CheckpointNotFoundError,
    FetchError,
    PlanError,
    ShardCorruptError,
    UnsupportedFormatError,
)

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


def split_into_shards(folder: Path) -> None:
    """Replace the single file by two, with an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def test_a_web_folder_is_copied_whole(web: WebFolder, shared: Path, target: Path) -> None:
    assert ls.fetch(web.address, target) == target
    assert same_files(target, shared)
    assert not list(target.glob("*.part"))


def test_shards_of_an_index_are_copied(web: WebFolder, shared: Path, target: Path) -> None:
    split_into_shards(shared)
    ls.fetch(web.address, target)
    assert same_files(target, shared)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_other_storages_are_copied_through_fsspec(scheme: str, shared: Path, target: Path) -> None:
    url = f"file://{shared}"
    if scheme == "memory":
        url = f"memory://{shared.name}"
        fsspec.filesystem("memory").put(str(shared), url, recursive=True)
    try:
        ls.fetch(url, target)
        assert same_files(target, shared)
    finally:
        fsspec.filesystem("memory").store.clear()


def test_without_a_folder_the_copy_is_in_the_cache_under_a_name_made_of_the_url(
    web: WebFolder, shared: Path, tmp_path: Path
) -> None:
    directory = ls.fetch(web.address + "/")
    assert directory.parent == tmp_path / "cache" / "layerstream" / "models"
    assert directory.name.startswith("http-models-tiny-")
    assert ls.fetch(web.address) == directory
    assert same_files(directory, shared)


def test_what_is_there_is_not_copied_again(web: WebFolder, target: Path) -> None:
    ls.fetch(web.address, target)
    web.requests.clear()
    ls.fetch(web.address, target)
    assert {method for method, _, _ in web.requests} == {"HEAD"}


def test_within_a_minute_the_server_is_not_even_asked(
    web: WebFolder, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_copy, "_COUNTS_FOR_S", 60.0)
    ls.fetch(web.address, target)
    web.requests.clear()
    ls.fetch(web.address, target)
    assert not web.requests


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    web: WebFolder, shared: Path, target: Path
) -> None:
    web.breaks_after = 256 * 1024
    ls.fetch(web.address, target)
    assert same_files(target, shared)
    assert web.bodies_of(WEIGHTS) == list(range(0, (shared / WEIGHTS).stat().st_size, web.breaks_after))


def test_a_server_that_ignores_ranges_is_read_from_the_start(
    web: WebFolder, shared: Path, target: Path
) -> None:
    leave_a_part(web, shared, target, 300_000)
    web.takes_ranges = False
    ls.fetch(web.address, target)
    assert same_files(target, shared)


def test_a_server_without_head_is_asked_for_a_single_byte(web: WebFolder, shared: Path, target: Path) -> None:
    web.takes_head = False
    ls.fetch(web.address, target)
    assert same_files(target, shared)


def leave_a_part(web: WebFolder, shared: Path, target: Path, num_bytes: int) -> None:
    """Leave what a copy leaves that was killed after `num_bytes` of the weights."""
    ls.fetch(web.address, target)
    (target / WEIGHTS).unlink()
    file = url_copy.open_remote(web.address).look(WEIGHTS)
    assert file is not None
    CopyRecord(target).begin(file)
    part_of(target / WEIGHTS).write_bytes((shared / WEIGHTS).read_bytes()[:num_bytes])
    web.requests.clear()


def test_a_part_of_an_earlier_copy_is_completed(web: WebFolder, shared: Path, target: Path) -> None:
    leave_a_part(web, shared, target, 300_000)
    ls.fetch(web.address, target)
    assert web.bodies_of(WEIGHTS) == [300_000]
    assert same_files(target, shared)


def test_a_part_of_another_boot_is_not_trusted(
    web: WebFolder, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_part(web, shared, target, 300_000)
    monkeypatch.setattr("layerstream.checkpoint.copy_record._boot_id", lambda: "another")
    ls.fetch(web.address, target)
    assert web.bodies_of(WEIGHTS) == [0]


def test_a_part_of_a_file_that_has_changed_is_started_anew(
    web: WebFolder, shared: Path, target: Path
) -> None:
    leave_a_part(web, shared, target, 300_000)
    change(shared / WEIGHTS, (shared / WEIGHTS).read_bytes()[:-4] + b"\1\2\3\4")
    ls.fetch(web.address, target)
    assert web.bodies_of(WEIGHTS) == [0]
    assert same_files(target, shared)


def test_a_changed_file_is_copied_anew_and_the_others_are_not(
    web: WebFolder, shared: Path, target: Path
) -> None:
    ls.fetch(web.address, target)
    web.requests.clear()
    change(shared / WEIGHTS, (shared / WEIGHTS).read_bytes()[:-4] + b"\1\2\3\4")
    ls.fetch(web.address, target)
    assert same_files(target, shared)
    assert [file for method, file, _ in web.requests if method == "GET"] == [WEIGHTS]


def test_a_single_file_that_gave_way_to_shards_is_removed(web: WebFolder, shared: Path, target: Path) -> None:
    ls.fetch(web.address, target)
    split_into_shards(shared)
    ls.fetch(web.address, target)
    assert not (target / WEIGHTS).exists()
    assert same_files(target, shared)


def test_a_file_that_changes_during_the_copy_is_refused(web: WebFolder, shared: Path, target: Path) -> None:
    def swap(name: str, place: int) -> None:
        if name == WEIGHTS and place > 100_000:
            change(shared / WEIGHTS, b"another")

    web.before_piece = swap
    with pytest.raises(FetchError, match="changed while it was copied"):
        ls.fetch(web.address, target)
    assert not (target / WEIGHTS).exists()
    assert not part_of(target / WEIGHTS).exists()


@pytest.mark.parametrize("kept_bytes", [100_000, 5])
def test_a_truncated_file_is_refused_by_its_header(
    kept_bytes: int, web: WebFolder, shared: Path, target: Path
) -> None:
    change(shared / WEIGHTS, (shared / WEIGHTS).read_bytes()[:kept_bytes])
    with pytest.raises(ShardCorruptError, match=WEIGHTS) as caught:
        ls.fetch(web.address, target)
    assert web.address in str(caught.value)
    assert not part_of(target / WEIGHTS).exists()


def test_a_broken_header_is_refused(web: WebFolder, shared: Path, target: Path) -> None:
    data = bytearray((shared / WEIGHTS).read_bytes())
    data[20:40] = b"x" * 20
    change(shared / WEIGHTS, bytes(data))
    with pytest.raises(ShardCorruptError, match="header"):
        ls.fetch(web.address, target)


def test_a_disk_without_room_is_reported_with_numbers_before_anything_is_copied(
    web: WebFolder, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(FetchError, match=r"97\.7 KiB are free") as caught:
        ls.fetch(web.address, target)
    assert caught.value.needed_bytes > caught.value.free_bytes == 100_000
    assert web.bodies_of(WEIGHTS) == []


def test_a_disk_that_fills_up_during_the_copy_leaves_what_is_there(
    web: WebFolder, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write_until_full(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_size > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:65536])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_until_full)
        with pytest.raises(FetchError, match="too full") as caught:
            ls.fetch(web.address, target)
    assert caught.value.needed_bytes > 0
    part_bytes = part_of(target / WEIGHTS).stat().st_size
    assert part_bytes > 200_000
    web.requests.clear()
    ls.fetch(web.address, target)
    assert web.bodies_of(WEIGHTS) == [part_bytes]
    assert same_files(target, shared)


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EDQUOT, "quota"), (errno.EIO, "cannot write"), (errno.EROFS, "cannot write")]
)
def test_what_the_disk_refuses_is_not_asked_of_the_server_again(
    number: int, said: str, web: WebFolder, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_size > 200_000:
            raise OSError(number, os.strerror(number))
        return real(descriptor, data[:65536])

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(FetchError, match=said) as caught:
        ls.fetch(web.address, target)
    assert (caught.value.needed_bytes > 0) == (number == errno.EDQUOT)
    assert web.bodies_of(WEIGHTS) == [0]


def test_a_folder_that_is_no_checkpoint_is_refused(web: WebFolder, shared: Path, target: Path) -> None:
    (shared / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        ls.fetch(web.address, target)
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        ls.fetch(f"file://{shared}", target)


def test_weights_of_another_format_are_refused(shared: Path, target: Path) -> None:
    (shared / WEIGHTS).rename(shared / "pytorch_model.bin")
    with pytest.raises(UnsupportedFormatError, match="convert"):
        ls.fetch(f"file://{shared}", target)


@pytest.mark.parametrize("name", ["../outside.safetensors", "absent.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(name: str, shared: Path, target: Path) -> None:
    (shared / WEIGHTS).unlink()
    (shared / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointNotFoundError, match="names"):
        ls.fetch(f"file://{shared}", target)


@pytest.mark.parametrize(("status", "kind"), [(403, CheckpointNotFoundError), (500, FetchError)])
def test_a_server_that_refuses_is_quoted(
    status: int, kind: type[Exception], web: WebFolder, target: Path
) -> None:
    web.refuses = status
    with pytest.raises(kind, match=str(status)):
        ls.fetch(web.address, target)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@host/model",
        "https://secret@host/model",
        "HTTPS://secret@host/model",
        "s3://key:secret@bucket/model",
        "https://host/model?token=secret",
        "https://host/model/model.safetensors",
    ],
)
def test_urls_with_secrets_and_of_single_files_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        ls.fetch(url)
    assert "secret" not in str(caught.value)


def test_a_subfolder_is_copied_below_the_directory(tmp_path: Path, shared: Path, target: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    shared.rename(above / "inner")
    assert ls.fetch(f"file://{above}", target, subfolder="inner") == target
    assert same_files(target / "inner", above / "inner")


def test_directories_are_returned_as_they_are_and_take_no_folder(shared: Path, target: Path) -> None:
    assert ls.fetch(shared) == shared
    with pytest.raises(PlanError, match="leave out the folder"):
        ls.fetch(shared, target)
