"""What all tests of the package share: a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *[f"w{index}" for index in range(127)]]


def save_tiny_llama(directory: Path, *, num_blocks: int = 5, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random Llama with `num_blocks` blocks and a word-level tokenizer; several shards, no weight at its default."""
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=160,
        vocab_size=len(WORDS),
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    model.save_pretrained(directory, max_shard_size="100KB")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of five blocks in several shards, fp32, untied."""
    return save_tiny_llama(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


@pytest.fixture(scope="session")
def tied_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the head tied to the embedding."""
    return save_tiny_llama(tmp_path_factory.mktemp("checkpoints") / "tied-llama", tied=True)
