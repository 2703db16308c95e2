"""Whatever is done to a store, in any order and with restarts in between, the numbers and the files agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from kit.batch_stores import StoreKit, folder_in_memory

from layerstream.server.batches.errors import BatchApiError
from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.values import PendingLine

TERMINAL = {"completed", "failed", "expired", "cancelled"}


class StoreMachine(RuleBasedStateMachine):
    """Compares a store with a dictionary of the first result of every line."""

    batches = Bundle("batches")
    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.folder = folder_in_memory()
        self.kit = StoreKit(Path(self.folder.name) / "batches")
        self.kit.reopen(BatchSettings(most_lines=6, expires_after_s=100))
        self.names: dict[str, list[str]] = {}
        self.first_results: dict[tuple[int, str], int] = {}
        self.ended: dict[str, str] = {}

    def teardown(self) -> None:
        self.kit.store.close()
        self.folder.cleanup()

    @rule(target=batches, num_lines=st.integers(0, 7))
    def create(self, num_lines: int) -> str:
        names = [f"line-{number}" for number in range(num_lines)]
        batch = self.kit.new_batch(self.kit.input_bytes([self.kit.line(name) for name in names]))
        self.names[batch.id] = names
        return batch.id

    @rule(batch_id=batches)
    def validate(self, batch_id: str) -> None:
        store = self.kit.store.batches
        is_waiting = store.get(batch_id).status == "validating"
        store.validate(store.get(batch_id))
        if is_waiting:
            is_good = 1 <= len(self.names[batch_id]) <= 6
            assert store.get(batch_id).status == ("in_progress" if is_good else "failed")

    @rule(target=taken, limit=st.integers(1, 5))
    def take(self, limit: int) -> Any:
        return multiple(*self.kit.store.lines.pending(limit))

    @rule(line=taken, status=st.sampled_from([200, 400, 500]))
    def answer(self, line: PendingLine, status: int) -> None:
        self._note(line, status, self.kit.store.lines.answer(line, status, {"of": line.custom_id}))

    @rule(line=consumes(taken))
    def fail(self, line: PendingLine) -> None:
        self._note(line, 0, self.kit.store.lines.fail(line, "server_error", "broken"))

    @rule(batch_id=batches)
    def cancel(self, batch_id: str) -> None:
        before = self.kit.store.batches.get(batch_id)
        try:
            after = self.kit.store.batches.cancel(batch_id)
        except BatchApiError:
            assert before.status in TERMINAL | {"finalizing"}
        else:
            assert after.status in {"cancelling", "cancelled"}

    @rule(seconds=st.integers(1, 60))
    def pass_time(self, seconds: int) -> None:
        self.kit.clock.now_s += seconds

    @rule(batch_id=batches)
    def end(self, batch_id: str) -> None:
        store = self.kit.store
        before = store.batches.get(batch_id)
        for _ in range(2):  # the second time, it changes nothing
            store.ending.end(before)
        after = store.batches.get(batch_id)
        assert (after.status in TERMINAL) == (
            before.status in TERMINAL or before.takes_no_line(self.kit.clock())
        )

    @rule()
    def restart(self) -> None:
        self.kit.reopen()

    @invariant()
    def numbers_and_files_agree(self) -> None:
        store = self.kit.store
        found, _ = store.batches.page(limit=1_000)
        assert {batch.id for batch in found} == set(self.names)
        for batch in found:
            results = {
                name: status
                for (number, name), status in self.first_results.items()
                if number == batch.number
            }
            num_good = sum(status == 200 for status in results.values())
            assert batch.completed == num_good
            assert batch.total == (0 if batch.in_progress_at is None else len(self.names[batch.id]))
            if batch.status not in TERMINAL:
                assert batch.failed == len(results) - num_good
                assert batch.output_file_id is None and batch.error_file_id is None
                continue
            assert self.ended.setdefault(batch.id, batch.status) == batch.status
            assert batch.completed + batch.failed == batch.total
            self._check_files(batch.output_file_id, batch.error_file_id, batch.total, results)
        named = {stored.id for stored in store.files.page(limit=10_000)[0]}
        assert self.kit.names_on_disk() == named

    def _note(self, line: PendingLine, status: int, is_first: bool) -> None:
        key = (line.batch, line.custom_id)
        if is_first:
            assert key not in self.first_results
            self.first_results[key] = status
        else:
            # there was a result, or the end of the batch has given it one
            batches, _ = self.kit.store.batches.page(limit=1_000)
            (batch,) = (each for each in batches if each.number == line.batch)
            assert key in self.first_results or batch.status in TERMINAL

    def _check_files(
        self, output_id: str | None, error_id: str | None, total: int, results: dict[str, int]
    ) -> None:
        output, errors = self.kit.results(output_id), self.kit.results(error_id)
        assert [each["custom_id"] for each in output] == sorted(
            name for name, status in results.items() if status == 200
        )
        failed = [each["custom_id"] for each in errors]
        assert failed == sorted(failed)
        assert set(failed) | {each["custom_id"] for each in output} == {
            f"line-{number}" for number in range(total)
        }
        assert len(failed) + len(output) == total


TestCallsInAnyOrder = StoreMachine.TestCase
TestCallsInAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
