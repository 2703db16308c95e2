"""Tokens as texts and bytes, for vocabularies of the common kinds."""

from __future__ import annotations

import math

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from layerstream.server.chances import TokenTexts, chat_chances, completion_chances
from layerstream.uses.serving.events import TokenChance


def tokenizer_of(vocabulary: list[str], decoder) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(vocabulary)}, unk_token="?"))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_byte_level_pieces_have_their_bytes():
    texts = TokenTexts(tokenizer_of(["?", "hi", "Ġhi", "Ã", "©"], decoders.ByteLevel()))
    assert [texts.text(token) for token in (1, 2)] == ["hi", " hi"]
    assert texts.utf8(2) == list(b" hi")
    # the two halves of é
    assert texts.utf8(3) + texts.utf8(4) == list("é".encode())


def test_sentencepiece_pieces_keep_their_space_and_have_their_bytes():
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = TokenTexts(tokenizer_of(["?", "▁hi", "hi", "<0xC3>", "<0xA9>"], decoder))
    assert [texts.text(token) for token in (1, 2)] == [" hi", "hi"]
    assert texts.utf8(3) + texts.utf8(4) == list("é".encode())


def test_unknown_bytes_are_none():
    texts = TokenTexts(tokenizer_of(["?", "\N{REPLACEMENT CHARACTER}"], decoders.Fuse()))
    assert texts.utf8(1) is None


def test_infinity_becomes_the_least_value_that_json_has():
    texts = TokenTexts(tokenizer_of(["?", "a", "b"], decoders.Fuse()))
    chance = TokenChance(token=1, logprob=-math.inf, top=((1, -math.inf), (2, math.nan)))
    entry = chat_chances([chance], texts, 2)[0]
    assert [entry.logprob, *(top.logprob for top in entry.top_logprobs)] == [-9999.0] * 3
    columns = completion_chances([chance], texts, 2, 0)
    assert columns.token_logprobs == [-9999.0]
    assert columns.top_logprobs == [{"a": -9999.0, "b": -9999.0}]


def test_tokens_with_one_text_are_one_entry_with_the_larger_chance():
    texts = TokenTexts(tokenizer_of(["?", "a", "b"], decoders.Fuse()))
    texts._texts = {1: "same", 2: "same"}
    chance = TokenChance(token=1, logprob=-3.0, top=((2, -1.0), (1, -3.0)))
    assert completion_chances([chance], texts, 2, 0).top_logprobs == [{"same": -1.0}]


def test_offsets_count_characters_from_where_the_answer_begins():
    texts = TokenTexts(tokenizer_of(["?", "abc", "d"], decoders.Fuse()))
    chances = [TokenChance(token=token, logprob=-1.0) for token in (1, 2, 1)]
    assert completion_chances(chances, texts, 0, 10).text_offset == [10, 13, 14]
    assert completion_chances([], texts, 0, 10).text_offset == []
