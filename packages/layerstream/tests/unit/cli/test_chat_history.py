"""A conversation: its turns, what is left out when the context is full, and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from layerstream.cli.chat_history import Conversation, Message
from layerstream.errors import PlanError


def count_letters(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def talk_of(num_turns: int, system: str | None = None) -> Conversation:
    """Return a talk whose turns have four letters each."""
    talk = Conversation(system)
    for number in range(num_turns):
        talk.ask(f"q{number}")
        talk.answer(f"a{number}")
    return talk


def test_messages_stand_in_turn_below_the_system_message() -> None:
    assert talk_of(1, "s").messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "a0"},
    ]


def test_the_system_message_may_change_and_go() -> None:
    talk = talk_of(1)
    talk.system = "new"
    assert talk.sent[0] == {"role": "system", "content": "new"}
    talk.system = None
    assert talk.sent == talk_of(1).sent


@pytest.mark.parametrize(
    ("most", "num_left_out", "first"),
    [(100, 0, "q0"), (10, 0, "q0"), (9, 1, "q1"), (5, 2, "q2"), (2, 2, "q2")],
)
def test_the_oldest_turns_are_left_out_until_the_rest_fits(most: int, num_left_out: int, first: str) -> None:
    talk = talk_of(2)
    talk.ask("q2")
    assert talk.fit(count_letters, most) == num_left_out
    assert talk.sent[0] == {"role": "user", "content": first}
    assert len(talk.messages) == 5, "the whole conversation can still be saved"
    assert talk.fit(count_letters, most) == 0, "they are reported once"


def test_the_system_message_is_never_left_out() -> None:
    talk = talk_of(3, "sys")
    talk.ask("q3")
    assert talk.fit(count_letters, 5) == 3
    assert [message["content"] for message in talk.sent] == ["sys", "q3"]


def test_a_message_that_is_too_long_alone_leaves_out_nothing() -> None:
    talk = talk_of(2)
    talk.ask("x" * 50)
    with pytest.raises(PlanError, match="it has 50 tokens, and there is room for 40"):
        talk.fit(count_letters, 40)
    talk.take_back()
    assert talk.sent == talk_of(2).sent


def test_a_question_that_is_taken_back_leaves_an_empty_rest_in_order() -> None:
    talk = talk_of(1)
    talk.ask("q1")
    talk.fit(count_letters, 2)
    talk.take_back()
    talk.ask("q2")
    assert [message["content"] for message in talk.sent] == ["q2"]


def test_reset_forgets_all_but_the_system_message() -> None:
    talk = talk_of(3, "s")
    talk.ask("q")
    talk.fit(count_letters, 3)
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "s"}]
    talk.ask("new")
    assert [message["content"] for message in talk.sent] == ["s", "new"]


def test_it_is_saved_as_messages_and_nothing_is_overwritten(tmp_path: Path) -> None:
    talk, path = talk_of(1, "schön \ud800"), tmp_path / "talk.json"
    talk.save(path)
    saved = path.read_bytes()
    assert json.loads(saved)["messages"][1:] == talk.messages[1:]
    assert "schön" in saved.decode()
    with pytest.raises(PlanError, match="is there already"):
        Conversation().save(path)
    assert path.read_bytes() == saved


def test_a_file_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot write "):
        Conversation().save(tmp_path / "absent" / "talk.json")
