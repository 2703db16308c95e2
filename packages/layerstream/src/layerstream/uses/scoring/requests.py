"""Scoring requests as tokens: a prefix and its suffixes.

Text is tokenized the way lm-evaluation-harness does it: prefix and suffix as one text, with special tokens
(BOS) once, in front. The suffix's tokens are those after the first n, where n is the number of tokens of the
prefix alone. White space at the end of the prefix moves to the front of its suffixes, because tokenizers join
a space with the word after it.

    whole    [BOS] The  capital  of  France  is  Paris  .
    prefix   [BOS] The  capital  of  France  is             <- runs once
    suffix                                       Paris  .   <- scored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ...errors import PlanError

Text = str | Sequence[int]
ScoringRequest = tuple[Text, Sequence[Text]] | tuple[Text, Sequence[Text], str | None]
"""A prefix and its suffixes, each text or token ids; the name of an adapter may follow.

`"base"` is the model without an adapter; without a name, the active one scores.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedScoring:
    """A request as tokens.

    Attributes:
        index: its place among the requests.
        prefix: the prefix's tokens.
        suffixes: the tokens of each suffix.
        adapter: the adapter to score with; None is the active one.
    """

    index: int
    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    adapter: str | None = None


class ScoringTokenizer:
    """Turns requests into tokens, and refuses what the model cannot take."""

    def __init__(
        self,
        config: PreTrainedConfig,
        vocab_size: int,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        feeds_last: bool,
    ) -> None:
        """Tokenize for the model of `config`.

        Args:
            config: the model's config.
            vocab_size: token ids must be below it.
            tokenizer: for text; None accepts token ids only.
            feeds_last: a suffix's last token is an input too, as a head needs it.
        """
        self._tokenizer, self._vocab_size, self._feeds_last = tokenizer, vocab_size, feeds_last
        config = config.get_text_config(decoder=True)
        self._max_tokens = getattr(config, "max_position_embeddings", None)
        candidates = (getattr(tokenizer, "bos_token_id", None), getattr(config, "bos_token_id", None))
        self._bos = next((token for token in candidates if isinstance(token, int)), None)

    def read(self, index: int, request: ScoringRequest) -> TokenizedScoring:
        """Return request number `index` as tokens.

        Raises:
            PlanError: it is malformed, a part of it has no tokens or too many, or it has text and there is no
                tokenizer.
        """
        where = f"request {index}"
        prefix, suffixes, adapter = _parts_of(request, where)
        if not suffixes:
            raise PlanError(f"{where} has no suffixes: give at least one")
        prefix_ids = self._tokenize_prefix(prefix, where)
        tokenized = TokenizedScoring(
            index=index,
            prefix=prefix_ids,
            suffixes=tuple(
                self._tokenize_suffix(prefix, prefix_ids, suffix, f"suffix {number} of {where}")
                for number, suffix in enumerate(suffixes)
            ),
            adapter=adapter,
        )
        self._check(tokenized, where)
        return tokenized

    def _tokenize_prefix(self, prefix: Text, where: str) -> tuple[int, ...]:
        if not len(prefix):
            if self._bos is None:
                raise PlanError(
                    f"the prefix of {where} is empty, and the model has no BOS token: give a prefix"
                )
            return (self._bos,)
        if not isinstance(prefix, str):
            return _as_ids(prefix, f"the prefix of {where}")
        return tuple(self._encode(prefix.rstrip(), where)) or self._tokenize_prefix("", where)

    def _tokenize_suffix(
        self, prefix: Text, prefix_ids: tuple[int, ...], suffix: Text, where: str
    ) -> tuple[int, ...]:
        if not len(suffix):
            raise PlanError(f"{where} is empty: there is nothing to score")
        if not isinstance(suffix, str):
            return _as_ids(suffix, where)
        if isinstance(prefix, str) and prefix.strip():
            ids = self._encode(prefix + suffix, where)[len(prefix_ids) :]
        else:
            ids = self._encode(suffix, where, special=False)
        if not ids:
            raise PlanError(
                f"{where} has no tokens of its own: the tokenizer joins {suffix!r} with the end of the prefix"
            )
        return tuple(ids)

    def _encode(self, text: str, where: str, *, special: bool = True) -> list[int]:
        if self._tokenizer is None:
            raise PlanError(f"{where} is text: pass a tokenizer, or token ids")
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _check(self, request: TokenizedScoring, where: str) -> None:
        largest = max(*request.prefix, *(max(suffix) for suffix in request.suffixes))
        if largest >= self._vocab_size:
            raise PlanError(f"{where} has token {largest}, but the vocabulary ends at {self._vocab_size - 1}")
        longest = len(request.prefix) + max(map(len, request.suffixes)) - (not self._feeds_last)
        if self._max_tokens is not None and longest > self._max_tokens:
            raise PlanError(
                f"{where} is {longest} tokens long with its longest suffix, "
                f"but the model has {self._max_tokens} positions: shorten it"
            )


def _parts_of(request: ScoringRequest, where: str) -> tuple[Text, Sequence[Text], str | None]:
    is_request = isinstance(request, Sequence) and not isinstance(request, str) and len(request) in (2, 3)
    if not is_request or isinstance(request[1], str):
        raise PlanError(f"{where} is not a pair of a prefix and a list of suffixes")
    adapter = request[2] if len(request) == 3 else None
    if adapter is not None and not isinstance(adapter, str):
        raise PlanError(f"the adapter of {where} must be a name; got {adapter!r}")
    return request[0], request[1], adapter


def _as_ids(ids: Sequence[int], where: str) -> tuple[int, ...]:
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise PlanError(f"{where} is neither text nor a sequence of token ids (integers from 0)")
    return tuple(ids)
