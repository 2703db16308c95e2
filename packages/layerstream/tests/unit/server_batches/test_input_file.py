"""An input file is read as hostile input: every mistake is found, with its line, and none stops the check."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.server.batches.input_file import InputCheck, check_input, read_body
from layerstream.server.batches.settings import BatchSettings

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}


def check(contents: bytes, **limits: int) -> InputCheck:
    return check_input(io.BytesIO(contents), endpoint=CHAT, settings=BatchSettings(**limits))


def as_bytes(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def without(name: str) -> bytes:
    return as_bytes({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("contents", "code", "param", "line"),
    [
        (b"", "empty_file", None, None),
        (b"\n  \n\n", "empty_file", None, None),
        (b"{\n", "invalid_json_line", None, 1),
        (b"\xff\xfe{}\n", "invalid_json_line", None, 1),
        (b"[1, 2]\n", "invalid_json_line", None, 1),
        (b"[" * 100_000 + b"\n", "invalid_json_line", None, 1),
        (b'{"custom_id": NaN}\n', "invalid_json_line", None, 1),
        (b"1" * 10_000 + b"\n", "invalid_json_line", None, 1),
        (without("custom_id"), "missing_required_parameter", "custom_id", 1),
        (without("method"), "missing_required_parameter", "method", 1),
        (without("url"), "missing_required_parameter", "url", 1),
        (without("body"), "missing_required_parameter", "body", 1),
        (as_bytes(GOOD | {"custom_id": 7}), "invalid_custom_id", "custom_id", 1),
        (as_bytes(GOOD | {"custom_id": ""}), "invalid_custom_id", "custom_id", 1),
        (as_bytes(GOOD | {"custom_id": "x" * 513}), "invalid_custom_id", "custom_id", 1),
        (as_bytes(GOOD | {"custom_id": "\ud800"}), "invalid_custom_id", "custom_id", 1),
        (as_bytes(GOOD | {"method": "GET"}), "invalid_method", "method", 1),
        (as_bytes(GOOD | {"url": "/v1/completions"}), "url_mismatch", "url", 1),
        (as_bytes(GOOD | {"url": ["\ud800"]}), "url_mismatch", "url", 1),
        (as_bytes(GOOD | {"body": "hello"}), "invalid_body", "body", 1),
        (as_bytes(GOOD | {"body": {"stream": True}}), "invalid_body", "body.stream", 1),
        (as_bytes(GOOD, GOOD), "duplicate_custom_id", "custom_id", 2),
    ],
)
def test_each_mistake_has_its_code_and_its_line(
    contents: bytes, code: str, param: str | None, line: int | None
) -> None:
    (error,) = check(contents).errors
    assert (error.code, error.param, error.line) == (code, param, line)
    error.message.encode()


def test_a_good_file_gives_its_lines_with_their_places() -> None:
    contents = b"\n" + as_bytes(GOOD) + b"   \r\n" + as_bytes(GOOD | {"custom_id": "b"}).rstrip()
    found = check(contents)
    assert found.errors == ()
    assert [(line.number, line.custom_id) for line in found.lines] == [(2, "a"), (4, "b")]
    for line in found.lines:
        raw = contents[line.offset : line.offset + line.num_bytes]
        assert read_body(raw) == GOOD["body"]
        assert json.loads(raw)["custom_id"] == line.custom_id


def test_a_byte_order_mark_at_the_beginning_is_no_mistake() -> None:
    contents = b"\xef\xbb\xbf" + as_bytes(GOOD)
    (line,) = check(contents).lines
    assert read_body(contents[line.offset : line.offset + line.num_bytes]) == GOOD["body"]


def test_all_mistakes_of_a_file_are_listed_in_order() -> None:
    contents = (
        b"{\n" + as_bytes(GOOD) + without("body") + as_bytes(GOOD | {"custom_id": "c", "method": "PUT"})
    )
    assert [(error.line, error.code) for error in check(contents).errors] == [
        (1, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_method"),
    ]


def test_an_id_of_a_line_with_another_mistake_is_taken_too() -> None:
    contents = as_bytes(GOOD | {"method": "PUT"}, GOOD)
    assert [error.code for error in check(contents).errors] == ["invalid_method", "duplicate_custom_id"]
    assert "line 1" in check(contents).errors[1].message


def test_the_list_of_mistakes_ends_at_its_limit() -> None:
    assert [error.line for error in check(b"{\n" * 50, most_errors=3).errors] == [1, 2, 3]


def test_one_request_too_many_is_refused_and_as_many_as_allowed_are_not() -> None:
    lines = [GOOD | {"custom_id": str(number)} for number in range(3)]
    assert len(check(as_bytes(*lines), most_lines=3).lines) == 3
    (error,) = check(as_bytes(*lines), most_lines=2).errors
    assert (error.code, error.line) == ("too_many_tasks", None)
    assert "2" in error.message


def test_a_line_that_is_too_long_is_skipped_and_the_next_one_is_still_found() -> None:
    long = as_bytes(GOOD | {"custom_id": "x", "body": {"text": "y" * 5_000_000}})
    contents = as_bytes(GOOD) + long + as_bytes(GOOD | {"custom_id": "b"})
    found = check(contents, most_line_bytes=1_000)
    assert [(error.code, error.line) for error in found.errors] == [("line_too_long", 2)]
    last = found.lines[-1]
    assert (last.number, contents[last.offset :]) == (3, as_bytes(GOOD | {"custom_id": "b"}))


def test_a_line_of_exactly_the_most_bytes_is_good() -> None:
    contents = as_bytes(GOOD)
    assert len(check(contents, most_line_bytes=len(contents)).lines) == 1
    assert check(contents, most_line_bytes=len(contents) - 1).errors[0].code == "line_too_long"


@given(st.binary(max_size=300))
def test_any_bytes_give_lines_or_errors_and_never_raise(contents: bytes) -> None:
    found = check(contents)
    assert bool(found.errors) != bool(found.lines)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_lines = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.text(st.characters(), max_size=3) | _values,
        "method": st.just("POST") | _values,
        "url": st.just(CHAT) | _values,
        "body": st.dictionaries(st.text(max_size=3), _values, max_size=2) | _values,
    },
)


@given(st.lists(_lines, max_size=6))
def test_a_line_is_good_or_has_one_error_and_good_lines_can_be_read_again(
    lines: list[dict[str, Any]],
) -> None:
    contents = as_bytes(*lines)
    found = check(contents)
    numbers = [error.line for error in found.errors] + [line.number for line in found.lines]
    assert sorted(number or 0 for number in numbers) == (list(range(1, len(lines) + 1)) or [0])
    for line in found.lines:
        raw = contents[line.offset : line.offset + line.num_bytes]
        assert read_body(raw) == lines[line.number - 1]["body"]
