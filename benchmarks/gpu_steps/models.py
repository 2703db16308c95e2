"""Step `models`: write the random models of the later steps, and say how large they are here.

Shapes shrink to what the card, the host memory, the disk and the time allow. A step that finds its model
missing writes it, so that each step also runs alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

import torch
from kit.tiny_llama import VOCAB_SIZE, tiny_tokenizer
from random_llama import LLAMA_70B, TINY, LlamaShape, write_llama

from layerstream.machine import free_host_bytes

from .child import Case, Child, shown_bytes
from .lines import Found, Row

LLAMA_7B = LlamaShape(
    hidden_size=4096,
    intermediate_size=11008,
    num_blocks=32,
    num_heads=32,
    num_kv_heads=32,
    dtype="float16",
)
# 1.0 billion parameters; the tokenizer of the test kit has 128 tokens
LLAMA_1B = LlamaShape(
    hidden_size=2048,
    intermediate_size=5632,
    num_blocks=22,
    num_heads=32,
    num_kv_heads=4,
    vocab_size=VOCAB_SIZE,
    dtype="float16",
)
# 27 MB: more than loading takes, so that host memory and disk can share it
STAND_IN = LlamaShape(
    hidden_size=384, intermediate_size=1056, num_blocks=8, num_heads=6, num_kv_heads=3, vocab_size=512
)
# 0.7 GB of holes: memory of which a ledger can be right or wrong
STAND_IN_70B = replace(LLAMA_1B, num_blocks=8, dtype="bfloat16")
FULL_MINUTES = 5.0
"""From here on the 7B shape is whole."""

SEVEN_B, SEVENTY_B, ONE_B, PEERS = "7B shape", "70B shape", "1B shape", "7B shape, first blocks"


def cases(child: Child) -> Iterator[Case]:
    """Yield one case for each model."""
    for name in (SEVEN_B, ONE_B, SEVENTY_B):
        yield name, 0.0, lambda name=name: write(child, name)


def write(child: Child, name: str) -> Found:
    """Write one model and say how fast that was."""
    start_s = monotonic()
    ensure(child, name)
    seconds, shape = monotonic() - start_s, shape_of(child, name)
    whole = whole_shape(name)
    note = f"{shape.num_blocks} of {whole.num_blocks} blocks, {shape.dtype}"
    if shape.hidden_size != whole.hidden_size:
        note = f"a small model stands for it: {shape.num_blocks} blocks of hidden size {shape.hidden_size}"
    if name == SEVENTY_B:
        note += "; holes that take no disk"
    rate = f" at {shown_bytes(shape.weight_bytes / seconds)}/s" if name == SEVEN_B else ""
    row = Row(what=f"{name} written", found=f"{shown_bytes(shape.weight_bytes)}{rate}", note=note)
    return Found(rows=(row,), figures={"weight_bytes": shape.weight_bytes, "seconds": seconds})


def ensure(child: Child, name: str) -> Path:
    """Return the directory of a model; it is written if it is not there."""
    directory = directory_of(child, name)
    if not directory.exists():
        for left in child.work.glob(f"{directory.name}.*"):
            # by a process that was ended in the middle of it
            shutil.rmtree(left)
        unfinished = directory.with_name(f"{directory.name}.{os.getpid()}")
        if name == PEERS:
            take_first_blocks(ensure(child, SEVEN_B), unfinished, shape_of(child, name))
        else:
            write_llama(unfinished, shape_of(child, name), sparse=name == SEVENTY_B, repeats=True)
        if name == ONE_B:
            tiny_tokenizer().save_pretrained(unfinished)
        unfinished.rename(directory)
    return directory


def directory_of(child: Child, name: str) -> Path:
    """Return where a model is, or will be."""
    return child.work / name.replace(" ", "-").replace(",", "")


def whole_shape(name: str) -> LlamaShape:
    """Return the shape as it is where everything fits."""
    return {SEVEN_B: LLAMA_7B, PEERS: LLAMA_7B, SEVENTY_B: LLAMA_70B, ONE_B: LLAMA_1B}[name]


def shape_of(child: Child, name: str) -> LlamaShape:
    """Return the shape of a model on this machine, in this time; once it is written, the shape it has."""
    shape = whole_shape(name) if child.is_judged else stand_in(child, name)
    written = directory_of(child, name) / "config.json"
    if written.exists():
        return replace(shape, num_blocks=json.loads(written.read_text())["num_hidden_layers"])
    return replace(shape, num_blocks=num_blocks_of(child, name, shape))


def stand_in(child: Child, name: str) -> LlamaShape:
    """Return the small shape that stands for a model where speed and memory are not judged."""
    if name == ONE_B:
        return replace(TINY, vocab_size=VOCAB_SIZE)
    if child.is_quick:
        return TINY
    return STAND_IN_70B if name == SEVENTY_B else STAND_IN


def num_blocks_of(child: Child, name: str, shape: LlamaShape) -> int:
    """Return how many blocks a model gets."""
    if not child.is_judged:
        return {SEVEN_B: 8, SEVENTY_B: 8, ONE_B: 4, PEERS: 4}[name]
    share = min(1.0, child.minutes / FULL_MINUTES)
    if name == SEVENTY_B:
        # 24 blocks and the edges would fit into 15 GB and 25 GB; a sweep of all takes half a minute
        return max(28, min(shape.num_blocks, int(8 * child.minutes)))
    if name == PEERS:
        # accelerate takes seconds for a few blocks; links go to whole shards, of four blocks each
        most = max(4, int(8 * child.minutes / FULL_MINUTES) // 4 * 4)
        return min(shape_of(child, SEVEN_B).num_blocks, most)
    if name == ONE_B:
        return shape.num_blocks
    edge_bytes = replace(shape, num_blocks=0).weight_bytes
    most_bytes = min(
        # it is on the card twice at once, for the comparison with everything resident
        0.4 * device_memory_bytes(child.torch_device),
        0.6 * free_host_bytes(),
        0.8 * shutil.disk_usage(child.work).free,
        share * shape.weight_bytes,
    )
    block_bytes = (shape.weight_bytes - edge_bytes) // shape.num_blocks
    return max(2, min(shape.num_blocks, int((most_bytes - edge_bytes) // block_bytes)))


def device_memory_bytes(device: torch.device) -> int:
    """Return the memory of the whole device; of the host where torch does not say."""
    module = torch.get_device_module(device)
    if not hasattr(module, "get_device_properties"):
        return free_host_bytes()
    return int(module.get_device_properties(device).total_memory)


def take_first_blocks(source: Path, target: Path, shape: LlamaShape) -> None:
    """Make a shallower model of another's shards, by links."""
    write_llama(target, shape, sparse=True)
    shards = {path.name.split("-of-")[0]: path for path in source.glob("*.safetensors")}
    last = max(shards)
    names = sorted(target.glob("*.safetensors"))
    for number, path in enumerate(names):
        found = shards[last] if number == len(names) - 1 else shards[path.name.split("-of-")[0]]
        path.unlink()
        # a checkpoint's files may not lead out of it, so no symbolic links
        path.hardlink_to(found)
