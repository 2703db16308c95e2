"""A tiny checkpoint for real runs of every variant, with matrix sizes that bitsandbytes supports."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, INTERMEDIATE, BLOCKS, VOCABULARY, KEYS = 64, 128, 2, 128, 32
LINEAR_SHAPES = (
    (HIDDEN, HIDDEN),
    (KEYS, HIDDEN),
    (KEYS, HIDDEN),
    (HIDDEN, HIDDEN),
    (INTERMEDIATE, HIDDEN),
    (INTERMEDIATE, HIDDEN),
)
"""Rows and columns of q, k, v, o, gate and up; down is the transpose of up."""

SHAPES = (*LINEAR_SHAPES, (HIDDEN, INTERMEDIATE))
QUANTIZED_ELEMENTS = BLOCKS * sum(rows * columns for rows, columns in SHAPES)
NORM_ELEMENTS = HIDDEN * (2 * BLOCKS + 1)
VOCABULARY_ELEMENTS = VOCABULARY * HIDDEN

CHAT_TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}> {% endif %}"
)


def save_tiny_model(
    directory: Path, *, tied: bool = False, dtype: torch.dtype = torch.float16, keys: int = 2
) -> Path:
    """Write a random 2-block Llama and a character tokenizer; return `directory`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=keys,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).eval().to(dtype).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable character."""
    characters = ["<pad>", "<s>", "</s>", "<unk>", "\n", *(chr(code) for code in range(32, 127))]
    tokenizer = Tokenizer(
        models.WordLevel({character: index for index, character in enumerate(characters)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
