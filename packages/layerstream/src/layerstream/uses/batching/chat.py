"""Conversations as tokens: the tokenizer's own chat template, for models that read text only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import PlanError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""One turn: a `role`, and a `content`: text or parts of type `text`. Templates may know more keys."""


def check_messages(messages: object) -> None:
    """Refuse what is not a conversation.

    Raises:
        PlanError: the messages are not a list of turns with a role and text.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise PlanError(
            'messages must be a list of turns such as {"role": "user", "content": "..."}; '
            f"got {messages!r:.60}"
        )
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PlanError(f"each of the messages needs a role and a content; got {message!r:.60}")
        _check_content(message)


def _check_content(message: Message) -> None:
    content = message.get("content")
    # A turn that calls tools may have no text.
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    if not isinstance(content, Sequence) or not content:
        raise PlanError(f"the content of a message is text or a list of text parts; got {content!r:.60}")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PlanError(
                f'a part of a message must be {{"type": "text", "text": "..."}}, because only text can be '
                f"read; got {kind or part!r:.60}"
            )


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the model answers.

    They are those of `tokenizer.apply_chat_template(messages, add_generation_prompt=True)`. The parts of a
    content become one text, line by line, since most templates of text models take a text only.

    Raises:
        PlanError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise PlanError(
            "this checkpoint's tokenizer has no chat template: give a prompt in place of messages"
        )
    turns = [_with_text(message) for message in messages]
    try:
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    except Exception as error:  # a template is the checkpoint's own program
        raise PlanError(f"the chat template refuses these messages: {first_line(error)}") from error
    ids: list[int] = encoded["input_ids"]
    return ids


def _with_text(message: Message) -> dict[str, Any]:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    return {**message, "content": "\n".join(part["text"] for part in content)}
