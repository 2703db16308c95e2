"""Step `peers`: accelerate's CPU offload and disk offload beside layerstream, on a part of the 7B shape.

accelerate keeps the edges on the device and brings each block there in every forward.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from common import drop_page_cache, median
from forwards import decode_seconds
from transformers import AutoModelForCausalLM

import layerstream as ls

from .child import Case, Child, NotHereError
from .lines import Found, Row
from .models import PEERS, ensure, shape_of
from .sweeps import WORKLOAD, device_bytes, host_bytes, ratio_row

EDGES = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
TIERS = {"cpu": ("from host", 1.0), "disk": ("from disk", 0.0)}


def cases(child: Child) -> Iterator[Case]:
    """Yield accelerate with the blocks on the CPU, and on disk."""
    for tier in TIERS:
        yield f"{tier} offload", 4.0 if child.is_accelerator else 1.0, lambda tier=tier: measure(child, tier)


def measure(child: Child, tier: str) -> Found:
    """Take turns between accelerate and layerstream with the blocks in the same place."""
    if importlib.util.find_spec("accelerate") is None:
        raise NotHereError("accelerate is not installed")
    if tier == "cpu" and not child.is_accelerator:
        raise NotHereError("the blocks are on the CPU already")
    path = ensure(child, PEERS)
    name, share = TIERS[tier]
    device = device_bytes(child, path, WORKLOAD)
    host: int | str = host_bytes(child, path, device, WORKLOAD, share) if share else "min"
    with child.load(path, ls.MemoryBudget(device=device, host=host), WORKLOAD) as streamed:
        offloaded = load_offloaded(child, path, tier)
        models = {"accelerate": offloaded, "layerstream": streamed}
        seconds: dict[str, list[float]] = {each: [] for each in models}
        for _ in range(2 if tier == "disk" and child.is_accelerator else 3):
            for each, model in models.items():
                # after the prefill, accelerate would read from the page cache, and not from the disk
                seconds[each].append(
                    decode_seconds(model, batch_size=1, steps=2, before_step=lambda: drop_page_cache(path))
                )
    blocks = shape_of(child, PEERS).num_blocks
    ours_s, theirs_s = median(seconds["layerstream"]), median(seconds["accelerate"])
    row: Row = ratio_row(
        f"accelerate's {tier} offload / layerstream {name}, {blocks} blocks", ours_s, theirs_s
    )
    return Found(rows=(row,), figures={"seconds": seconds, "blocks": blocks})


def load_offloaded(child: Child, path: Path, tier: str) -> AutoModelForCausalLM:
    """Return accelerate's model, edges on the device and every block in `tier`."""
    blocks = {f"model.layers.{block}": tier for block in range(shape_of(child, PEERS).num_blocks)}
    device = child.torch_device
    edges = dict.fromkeys(EDGES, "cpu" if device.type == "cpu" else device.index or 0)
    return AutoModelForCausalLM.from_pretrained(
        path, dtype="auto", device_map=edges | blocks, offload_folder=child.work / "offload"
    ).eval()
