"""The store keeps what it says it keeps, has one owner, and serves files page by page."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kit.batch_stores import StoreKit

from layerstream.server.batches.errors import BatchApiError, BatchStoreError
from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.store import BatchStore
from layerstream.server.batches.values import StoredBatch

LOCKED_BY_ANOTHER = "another server uses this folder"


def answer_next(kit: StoreKit, status: int = 200) -> bool:
    (line,) = kit.store.lines.pending(1)
    return kit.store.lines.answer(line, status, {"echo": kit.store.lines.read_body(line)})


def end(kit: StoreKit, batch: StoredBatch) -> StoredBatch:
    kit.store.ending.end(kit.store.batches.get(batch.id))
    return kit.store.batches.get(batch.id)


def test_a_file_is_on_disk_under_its_id_and_under_no_name_of_the_client(kit: StoreKit) -> None:
    stored = kit.upload(b"text", name="../../escape.jsonl")
    assert kit.names_on_disk() == {stored.id}
    assert stored.name == "../../escape.jsonl"
    assert kit.store.files.path(stored.id).read_bytes() == b"text"
    assert stored.num_bytes == 4


def test_a_file_that_is_not_kept_leaves_nothing(kit: StoreKit) -> None:
    with pytest.raises(RuntimeError), kit.store.files.new_file() as new:
        new.write(b"half")
        raise RuntimeError("the client is gone")
    assert kit.names_on_disk() == set()


def test_files_and_batches_are_there_after_the_store_is_opened_again(kit: StoreKit) -> None:
    batch = kit.new_batch(b"", metadata={"who": "me"})
    kit.reopen()
    assert kit.store.batches.get(batch.id) == batch
    assert kit.store.files.get(batch.input_file_id).num_bytes == 0
    assert batch.metadata == {"who": "me"}


def test_what_a_killed_server_has_left_is_removed_and_nothing_else(kit: StoreKit) -> None:
    stored = kit.upload(b"text")
    folder = kit.folder / "files"
    for name in ("file-" + "0" * 32, "file-" + "1" * 32 + ".part", "mine.txt"):
        (folder / name).write_bytes(b"")
    kit.reopen()
    assert kit.names_on_disk() == {stored.id, "mine.txt"}


def test_a_second_server_on_the_folder_is_refused_until_the_first_is_closed(kit: StoreKit) -> None:
    with pytest.raises(BatchStoreError, match=LOCKED_BY_ANOTHER):
        BatchStore(kit.folder)
    program = (
        "import sys; from pathlib import Path; from layerstream.server.batches.store import BatchStore\n"
        "BatchStore(Path(sys.argv[1])).close()"
    )
    command = [sys.executable, "-c", program, str(kit.folder)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert LOCKED_BY_ANOTHER in refused.stderr
    kit.store.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_a_database_of_the_first_version_is_carried_over(kit: StoreKit) -> None:
    batch = kit.new_batch(b"")
    kit.store.close()
    with closing(sqlite3.connect(kit.folder / "batches.sqlite")) as database:
        for column in ("input_tokens", "cached_tokens", "output_tokens"):
            database.execute(f"ALTER TABLE batches DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 1")
        database.commit()
    kit.reopen()
    assert kit.store.batches.get(batch.id) == batch


def test_a_database_of_another_version_is_refused_and_not_changed(kit: StoreKit) -> None:
    kit.store.close()
    path = kit.folder / "batches.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(BatchStoreError, match="version 7, this layerstream knows versions 1 to 2"):
        BatchStore(kit.folder)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (7,)
    database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "batches.sqlite").write_bytes(b"no database at all " * 100)
    for _ in range(2):  # the lock is released, so the reason stays the same
        with pytest.raises(BatchStoreError, match="file is not a database"):
            BatchStore(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BatchStoreError, match="give a folder that can be written"):
        BatchStore(tmp_path / "file")


def test_only_the_owner_can_read_prompts_and_answers(kit: StoreKit) -> None:
    kit.running_batch("a")
    for path in kit.folder.rglob("*"):
        if path.is_file() and path.name != "lock":
            assert path.stat().st_mode & 0o077 == 0, path.name
    assert (kit.folder / "files").stat().st_mode & 0o077 == 0


def test_every_transaction_waits_for_the_disk(kit: StoreKit) -> None:
    with kit.store._database.transaction() as rows:
        assert rows.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert rows.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_transaction_that_raises_changes_nothing(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    with pytest.raises(RuntimeError), kit.store._database.transaction() as rows:
        rows.execute("UPDATE batches SET status = 'failed'")
        raise RuntimeError
    assert kit.store.batches.get(batch.id) == batch


def test_pages_of_files_follow_one_another_even_after_a_deleted_one(kit: StoreKit) -> None:
    ids = [kit.upload(b"").id for _ in range(5)]
    files = kit.store.files
    first, has_more = files.page(limit=2)
    assert ([each.id for each in first], has_more) == ([ids[4], ids[3]], True)
    files.delete(ids[3])
    second, has_more = files.page(limit=3, after=ids[3])
    assert ([each.id for each in second], has_more) == ([ids[2], ids[1], ids[0]], False)
    oldest_first, _ = files.page(limit=9, is_newest_first=False, after=ids[1])
    assert [each.id for each in oldest_first] == [ids[2], ids[4]]
    assert files.page(limit=9, purpose="batch_output") == ([], False)


@pytest.mark.parametrize("file_id", ["file-none", "../lock", "\ud800", "", "a\0b"])
def test_a_file_that_does_not_exist_is_not_found(kit: StoreKit, file_id: str) -> None:
    for ask in (kit.store.files.get, kit.store.files.path, kit.store.files.delete):
        with pytest.raises(BatchApiError) as refused:
            ask(file_id)
        assert (refused.value.status, refused.value.code) == (404, "file_not_found")
        refused.value.message.encode()


def test_too_many_files_are_refused_and_their_bytes_removed(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_files=1))
    stored = kit.upload(b"first")
    with pytest.raises(BatchApiError, match="delete some"):
        kit.upload(b"second")
    assert kit.names_on_disk() == {stored.id}
    kit.store.files.delete(stored.id)
    assert kit.names_on_disk() == set()
    kit.upload(b"third")


def test_a_file_is_kept_while_a_batch_reads_it(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    with pytest.raises(BatchApiError, match=batch.id) as refused:
        kit.store.files.delete(batch.input_file_id)
    assert refused.value.status == 409
    answer_next(kit)
    end(kit, batch)
    kit.store.files.delete(batch.input_file_id)
    assert kit.store.batches.get(batch.id).input_file_id == batch.input_file_id
