"""A batch goes from state to state, and every line of it gets one result."""

from __future__ import annotations

import pytest
from kit.batch_stores import StoreKit

from layerstream.server.batches.errors import BatchApiError
from layerstream.server.batches.objects import batch_object
from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.values import StoredBatch


def answer_next(kit: StoreKit, status: int = 200) -> bool:
    (line,) = kit.store.lines.pending(1)
    return kit.store.lines.answer(line, status, {"echo": kit.store.lines.read_body(line)})


def end(kit: StoreKit, batch: StoredBatch) -> StoredBatch:
    kit.store.ending.end(kit.store.batches.get(batch.id))
    return kit.store.batches.get(batch.id)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": "\udfff"}}, "metadata"),
    ],
)
def test_a_batch_with_a_bad_value_is_refused_and_not_created(
    kit: StoreKit, changes: dict[str, object], param: str
) -> None:
    with pytest.raises(BatchApiError) as refused:
        kit.new_batch(b"", **changes)
    assert refused.value.param == param
    assert kit.store.batches.page(limit=9) == ([], False)


def test_outputs_of_a_batch_are_no_inputs_of_another(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    answer_next(kit)
    output = end(kit, batch).output_file_id
    with pytest.raises(BatchApiError, match="purpose 'batch_output'"):
        kit.new_batch(b"", input_file_id=output)


def test_too_many_open_batches_are_refused_until_one_has_ended(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_open_batches=1))
    batch = kit.running_batch("a")
    with pytest.raises(BatchApiError) as refused:
        kit.new_batch(b"")
    assert refused.value.status == 429
    answer_next(kit)
    end(kit, batch)
    kit.new_batch(b"")


def test_a_bad_input_fails_the_batch_with_all_its_mistakes(kit: StoreKit) -> None:
    batch = kit.new_batch(kit.input_bytes([kit.line("a"), kit.line("a"), kit.line("b", method="GET")]))
    assert batch.status == "validating"
    kit.store.batches.validate(batch)
    batch = kit.store.batches.get(batch.id)
    assert (batch.status, batch.is_open, batch.total) == ("failed", False, 0)
    assert [(error.line, error.code) for error in batch.errors] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_method"),
    ]
    assert kit.store.lines.pending(9) == []
    assert kit.store.batches.open() == []


def test_an_input_that_was_removed_by_hand_fails_its_batch(kit: StoreKit) -> None:
    batch = kit.new_batch(b"")
    kit.store.files.path(batch.input_file_id).unlink()
    kit.store.batches.validate(batch)
    assert [error.code for error in kit.store.batches.get(batch.id).errors] == ["file_not_found"]


def test_an_input_is_checked_once(kit: StoreKit) -> None:
    batch = kit.running_batch("a", "b")
    kit.store.batches.validate(batch)
    assert kit.store.batches.get(batch.id) == batch
    assert len(kit.store.lines.pending(9)) == 2


def test_a_batch_that_was_cancelled_while_its_input_was_checked_gets_no_lines(kit: StoreKit) -> None:
    batch = kit.new_batch(kit.input_bytes([kit.line("a")]))
    kit.store.batches.cancel(batch.id)
    kit.store.batches.validate(batch)
    assert kit.store.lines.pending(9) == []
    assert end(kit, batch).status == "cancelled"


def test_lines_come_in_order_from_the_oldest_batch(kit: StoreKit) -> None:
    kit.running_batch("a", "b")
    kit.running_batch("c")
    assert [line.custom_id for line in kit.store.lines.pending(9)] == ["a", "b", "c"]
    assert [line.custom_id for line in kit.store.lines.pending(2)] == ["a", "b"]


def test_a_second_result_of_a_line_changes_nothing(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    (line,) = kit.store.lines.pending(1)
    assert kit.store.lines.answer(line, 200, {"first": True})
    assert not kit.store.lines.answer(line, 500, {"second": True})
    assert not kit.store.lines.fail(line, "code", "message")
    batch = end(kit, batch)
    assert (batch.total, batch.completed, batch.failed) == (1, 1, 0)
    (result,) = kit.results(batch.output_file_id)
    assert result["response"]["body"] == {"first": True}
    assert not kit.store.lines.answer(line, 200, {"after the end": True})


def test_the_usage_of_a_batch_is_that_of_its_answers(kit: StoreKit) -> None:
    batch = kit.running_batch("a", "b", "c")
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    for body in ({"usage": usage}, {"usage": usage | {"prompt_tokens_details": None}}, {}):
        (line,) = kit.store.lines.pending(1)
        kit.store.lines.answer(line, 200, body)
        assert not kit.store.lines.answer(line, 200, {"usage": usage}), "a second result counts nothing"
    kit.reopen()
    ended = batch_object(end(kit, batch))
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens, ended.usage.total_tokens) == (20, 8, 28)
    assert ended.usage.input_tokens_details.cached_tokens == 3
    assert ended.usage.output_tokens_details.reasoning_tokens == 0


def test_answers_and_errors_are_two_files_in_the_order_of_the_input(kit: StoreKit) -> None:
    batch = kit.running_batch(*"abcd")
    lines = kit.store.lines.pending(9)
    kit.clock.now_s += 5
    for line, status in ((lines[3], 200), (lines[2], 400), (lines[0], 200)):
        kit.store.lines.answer(line, status, {"text": "é\ud800", "of": line.custom_id})
    assert end(kit, batch).status == "in_progress"
    kit.store.lines.fail(lines[1], "server_error", "broken")
    kit.clock.now_s += 5
    batch = end(kit, batch)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 4, 2, 2)
    assert batch.in_progress_at == batch.created_at == int(kit.clock.now_s) - 10
    assert batch.finalizing_at == batch.completed_at == int(kit.clock.now_s)
    output, errors = kit.results(batch.output_file_id), kit.results(batch.error_file_id)
    assert [result["custom_id"] for result in output] == ["a", "d"]
    assert [result["custom_id"] for result in errors] == ["b", "c"]
    assert output[0]["response"]["status_code"] == 200
    assert output[0]["response"]["body"] == {"text": "é\ud800", "of": "a"}
    assert (errors[0]["response"], errors[0]["error"]) == (
        None,
        {"code": "server_error", "message": "broken"},
    )
    assert (errors[1]["response"]["status_code"], errors[1]["error"]) == (400, None)
    assert len({result["id"] for result in output + errors}) == 4
    kinds = {each.id: (each.name, each.purpose) for each in kit.store.files.page(limit=9)[0]}
    assert kinds[str(batch.output_file_id)] == (f"{batch.id}_output.jsonl", "batch_output")
    assert kinds[str(batch.error_file_id)] == (f"{batch.id}_error.jsonl", "batch_output")


def test_a_batch_without_errors_has_no_file_of_errors(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    answer_next(kit)
    batch = end(kit, batch)
    assert batch.error_file_id is None
    assert kit.names_on_disk() == {batch.input_file_id, batch.output_file_id}


def test_more_lines_than_one_read_of_results_holds_are_all_written(kit: StoreKit) -> None:
    names = [f"line-{number}" for number in range(451)]
    batch = kit.running_batch(*names)
    for line in kit.store.lines.pending(1_000):
        kit.store.lines.answer(line, 200, {})
    assert [result["custom_id"] for result in kit.results(end(kit, batch).output_file_id)] == names


def test_an_expired_batch_gives_its_open_lines_an_error(kit: StoreKit) -> None:
    batch = kit.running_batch("a", "b")
    answer_next(kit)
    kit.clock.now_s = batch.expires_at - 0.5
    assert end(kit, batch).status == "in_progress"
    kit.clock.now_s = batch.expires_at
    assert kit.store.lines.pending(9) == []
    batch = end(kit, batch)
    assert (batch.status, batch.completed, batch.failed) == ("expired", 1, 1)
    assert batch.expired_at == batch.expires_at == batch.created_at + BatchSettings().expires_after_s
    assert [result["custom_id"] for result in kit.results(batch.output_file_id)] == ["a"]
    (error,) = kit.results(batch.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("b", "batch_expired")


def test_a_batch_whose_last_line_was_answered_in_time_is_completed(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    answer_next(kit)
    kit.clock.now_s = batch.expires_at + 1
    assert end(kit, batch).status == "completed"


def test_a_cancelled_batch_keeps_its_answers_and_takes_no_more_lines(kit: StoreKit) -> None:
    batch = kit.running_batch("a", "b", "c")
    line_in_flight = kit.store.lines.pending(1)[0]
    batch = kit.store.batches.cancel(batch.id)
    assert (batch.status, batch.cancelling_at) == ("cancelling", int(kit.clock.now_s))
    assert kit.store.batches.cancel(batch.id) == batch
    assert kit.store.lines.pending(9) == []
    assert kit.store.lines.answer(line_in_flight, 200, {})
    batch = end(kit, batch)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("cancelled", 3, 1, 2)
    assert [result["error"]["code"] for result in kit.results(batch.error_file_id)] == ["batch_cancelled"] * 2
    assert kit.store.batches.cancel(batch.id) == batch


def test_a_batch_that_has_ended_cannot_be_cancelled(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    answer_next(kit)
    batch = end(kit, batch)
    with pytest.raises(BatchApiError, match="is completed") as refused:
        kit.store.batches.cancel(batch.id)
    assert refused.value.status == 409
    assert kit.store.batches.get(batch.id) == batch


def test_pages_of_batches_follow_one_another_the_newest_first(kit: StoreKit) -> None:
    ids = [kit.new_batch(b"").id for _ in range(3)]
    first, has_more = kit.store.batches.page(limit=2)
    assert ([each.id for each in first], has_more) == ([ids[2], ids[1]], True)
    second, has_more = kit.store.batches.page(limit=2, after=ids[1])
    assert ([each.id for each in second], has_more) == ([ids[0]], False)
    with pytest.raises(BatchApiError, match="no batch 'batch_none'"):
        kit.store.batches.page(limit=2, after="batch_none")


def test_a_batch_ends_once(kit: StoreKit) -> None:
    batch = kit.running_batch("a")
    answer_next(kit)
    ended = end(kit, batch)
    kit.store.ending.end(batch)  # as it was before
    kit.store.ending.end(ended)
    assert kit.store.batches.get(batch.id) == ended
    assert len(kit.results(ended.output_file_id)) == 1


def test_a_disk_that_refuses_an_output_leaves_the_batch_to_be_ended_again(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = kit.running_batch("a", "b")
    answer_next(kit)
    answer_next(kit, status=400)
    before = kit.names_on_disk()
    published = []

    def refuse_the_second(descriptor: int) -> None:
        published.append(descriptor)
        if len(published) > 2:  # the first file and its folder
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("layerstream.server.batches.folder.os.fsync", refuse_the_second)
        with pytest.raises(OSError, match="No space left"):
            end(kit, batch)
    assert kit.names_on_disk() == before
    assert kit.store.batches.get(batch.id).status == "finalizing"
    batch = end(kit, batch)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 1, 1)
    assert len(kit.results(batch.output_file_id)) == len(kit.results(batch.error_file_id)) == 1


def test_the_next_lines_are_found_without_reading_those_that_have_results(kit: StoreKit) -> None:
    kit.running_batch("a")
    with kit.store._database.transaction() as rows:
        statements: list[str] = []
        rows.set_trace_callback(statements.append)
    kit.store.lines.pending(1)
    with kit.store._database.transaction() as rows:
        rows.set_trace_callback(None)
        (query,) = [each for each in statements if each.startswith("SELECT")]
        plan = " ".join(row["detail"] for row in rows.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "batches_by_status" in plan
    assert "pending_lines" in plan


@pytest.mark.parametrize("name", BatchSettings.__slots__)
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be more than 0, not 0"):
        BatchSettings(**{name: 0})
