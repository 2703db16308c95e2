"""Tokens and their chances as OpenAI shows them: in chats as entries, in completions as columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate

from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import Logprobs
from transformers import PreTrainedTokenizerBase

from ..uses.serving.events import TokenChance

_LEAST = -9999.0
"""OpenAI's value for a token that is very unlikely; JSON has no infinity."""

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece vocabularies write bytes."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_VISIBLE_BYTES = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN_BYTES = tuple(byte for byte in range(256) if byte not in _VISIBLE_BYTES)
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE_BYTES} | {
    chr(256 + number): byte for number, byte in enumerate(_HIDDEN_BYTES)
}
"""How byte-level vocabularies write bytes: visible ones as themselves, the others from 256 on.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), its published encoder.
"""


class TokenTexts:
    """Tokens as texts and bytes; remembers what it has looked up."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use a tokenizer."""
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """Return a token's text as it stands inside an answer."""
        if token not in self._texts:
            text = str(self._tokenizer.decode([token]))
            # decoding drops the space that a text would begin with
            has_space = self._piece(token).startswith("\N{LOWER ONE EIGHTH BLOCK}")
            self._texts[token] = f" {text}" if has_space and not text.startswith(" ") else text
        return self._texts[token]

    def utf8(self, token: int) -> list[int] | None:
        """Return a token's bytes, which may be a part of a character; None if they are unknown."""
        text, piece = self.text(token), self._piece(token)
        if _BROKEN not in text:
            return list(text.encode("utf-8", "replace"))
        if match := _BYTE_PIECE.fullmatch(piece):
            return [int(match[1], 16)]
        return [_BYTE_OF[character] for character in piece] if set(piece) <= set(_BYTE_OF) else None

    def _piece(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token) or "")


def chat_chances(
    chances: Sequence[TokenChance], texts: TokenTexts, num_top: int
) -> list[ChatCompletionTokenLogprob]:
    """Return one entry for each token."""
    return [
        ChatCompletionTokenLogprob(
            token=texts.text(chance.token),
            bytes=texts.utf8(chance.token),
            logprob=_finite(chance.logprob),
            top_logprobs=[
                TopLogprob(token=texts.text(token), bytes=texts.utf8(token), logprob=_finite(logprob))
                for token, logprob in chance.top[:num_top]
            ],
        )
        for chance in chances
    ]


def completion_chances(
    chances: Sequence[TokenChance], texts: TokenTexts, num_top: int, offset: int
) -> Logprobs:
    """Return the columns of a completion's tokens.

    Args:
        chances: the tokens.
        texts: their texts.
        num_top: how many likeliest tokens to name at each place; the token itself is always among them.
        offset: where the first token's text begins.
    """
    tokens = [texts.text(chance.token) for chance in chances]
    offsets = list(accumulate(map(len, tokens), initial=offset))[: len(tokens)]
    return Logprobs(
        tokens=tokens,
        token_logprobs=[_finite(chance.logprob) for chance in chances],
        top_logprobs=[_top(chance, texts, num_top) for chance in chances],
        text_offset=offsets,
    )


def prompt_chances(
    first: int, chances: Sequence[TokenChance], texts: TokenTexts, num_top: int, length: int
) -> Logprobs:
    """Return the columns of a prompt's tokens; the first token has no chance, and null stands for it.

    Args:
        first: the first token.
        chances: the others.
        texts: their texts.
        num_top: how many likeliest tokens to name at each place.
        length: how many characters the prompt has. Its last token ends there; tokens before its text, such as
            one that begins every prompt, have the offset 0.
    """
    later = completion_chances(chances, texts, num_top, 0)
    tokens = [texts.text(first), *(later.tokens or [])]
    begin = length - sum(map(len, tokens))
    offsets = list(accumulate(map(len, tokens), initial=begin))[: len(tokens)]
    # the type knows no null
    return Logprobs.model_construct(
        tokens=tokens,
        token_logprobs=[None, *(later.token_logprobs or [])],
        top_logprobs=[None, *(later.top_logprobs or [])],
        text_offset=[max(0, offset) for offset in offsets],
    )


def joined(first: Logprobs, second: Logprobs) -> Logprobs:
    """Return the columns of two texts that follow each other."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return Logprobs.model_construct(**{name: getattr(first, name) + getattr(second, name) for name in names})


def _top(chance: TokenChance, texts: TokenTexts, num_top: int) -> dict[str, float]:
    """Return the likeliest tokens by their texts; of tokens with one text, the likeliest counts."""
    top: dict[str, float] = {}
    for token, logprob in (*chance.top[:num_top], (chance.token, chance.logprob)):
        text = texts.text(token)
        top[text] = max(top.get(text, _LEAST), _finite(logprob))
    return top


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST
