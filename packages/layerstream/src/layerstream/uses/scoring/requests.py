"""What is asked, as tokens: a prefix and its suffixes.

Layer: uses. Knows tokenizers and what a model can take; runs nothing.

A text suffix is tokenized the way lm-evaluation-harness does it: prefix and suffix as one text, special tokens (BOS) once, at the
front; the suffix' tokens are what is left behind as many tokens as the prefix has alone. White space at the end of the prefix goes
to the front of its suffixes, since tokenizers join a space with the word behind it.

    whole    [BOS] The  capital  of  France  is  Paris  .
    prefix   [BOS] The  capital  of  France  is             <- run once
    suffix                                       Paris  .   <- scored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ...errors import PlanError

Text = str | Sequence[int]
ScoringRequest = tuple[Text, Sequence[Text]]
"""A prefix and its suffixes, each text or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedScoring:
    """A request as tokens.

    Attributes:
        index: its place among those given.
        prefix: the prefix' tokens.
        suffixes: the tokens of each suffix.
    """

    index: int
    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]


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
        """Read for the model of `config`; `feeds_last` says that a suffix' last token is an input too, as it is for a head."""
        self._tokenizer, self._feeds_last = tokenizer, feeds_last
        config = config.get_text_config(decoder=True)
        self._most_tokens = getattr(config, "max_position_embeddings", None)
        self._vocabulary = vocab_size
        begins = (getattr(tokenizer, "bos_token_id", None), getattr(config, "bos_token_id", None))
        self._bos = next((each for each in begins if isinstance(each, int)), None)

    def read(self, index: int, request: ScoringRequest) -> TokenizedScoring:
        """Return request `index` as tokens.

        Raises:
            PlanError: it is no request, a part of it has no tokens or too many, or text meets no tokenizer.
        """
        where = f"request {index}"
        prefix, suffixes = _as_pair(request, where)
        if not suffixes:
            raise PlanError(f"{where} has no suffixes: give at least one")
        ids = self._prefix(prefix, where)
        prepared = TokenizedScoring(
            index=index,
            prefix=ids,
            suffixes=tuple(
                self._suffix(prefix, ids, suffix, f"suffix {place} of {where}")
                for place, suffix in enumerate(suffixes)
            ),
        )
        self._check(prepared, where)
        return prepared

    def _prefix(self, prefix: Text, where: str) -> tuple[int, ...]:
        if not len(prefix):
            if self._bos is None:
                raise PlanError(
                    f"the prefix of {where} is empty, and the model has no token for a beginning: give a prefix"
                )
            return (self._bos,)
        if not isinstance(prefix, str):
            return _as_ids(prefix, f"the prefix of {where}")
        return tuple(self._encode(prefix.rstrip(), where)) or self._prefix("", where)

    def _suffix(self, prefix: Text, prefix_ids: tuple[int, ...], suffix: Text, where: str) -> tuple[int, ...]:
        if not len(suffix):
            raise PlanError(f"{where} is empty: there is nothing to score")
        if not isinstance(suffix, str):
            return _as_ids(suffix, where)
        if isinstance(prefix, str) and prefix.strip():
            moved = prefix[len(prefix.rstrip()) :]
            ids = self._encode(prefix.rstrip() + moved + suffix, where)[len(prefix_ids) :]
        else:
            ids = self._encode(suffix, where, special=False)
        if not ids:
            raise PlanError(
                f"{where} has no tokens of its own: the tokenizer joins {suffix!r} with the end of the prefix"
            )
        return tuple(ids)

    def _encode(self, text: str, where: str, *, special: bool = True) -> list[int]:
        if self._tokenizer is None:
            raise PlanError(f"{where} is text: give a tokenizer, or token ids")
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _check(self, request: TokenizedScoring, where: str) -> None:
        largest = max(*request.prefix, *(max(suffix) for suffix in request.suffixes))
        if largest >= self._vocabulary:
            raise PlanError(f"{where} has token {largest}, but the vocabulary ends at {self._vocabulary - 1}")
        longest = len(request.prefix) + max(map(len, request.suffixes)) - (not self._feeds_last)
        if self._most_tokens is not None and longest > self._most_tokens:
            raise PlanError(
                f"{where} is {longest} tokens long with its longest suffix, but the model has {self._most_tokens} positions: "
                "shorten it"
            )


def _as_pair(request: ScoringRequest, where: str) -> tuple[Text, Sequence[Text]]:
    if (
        isinstance(request, str)
        or not isinstance(request, Sequence)
        or len(request) != 2
        or isinstance(request[1], str)
    ):
        raise PlanError(f"{where} is no pair of a prefix and a list of suffixes")
    return request[0], request[1]


def _as_ids(ids: Sequence[int], where: str) -> tuple[int, ...]:
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise PlanError(f"{where} is neither text nor a sequence of token ids (ints from 0 up)")
    return tuple(ids)
