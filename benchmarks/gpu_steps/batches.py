"""Step `batches`: 32 and 96 sequences in one sweep from host memory, against one."""

from __future__ import annotations

from collections.abc import Iterator

from common import median
from forwards import PROMPT_TOKENS, decode_seconds

import layerstream as ls

from .child import Case, Child
from .lines import Found, Row
from .models import SEVEN_B, ensure
from .sweeps import device_bytes, facts_of, host_bytes

BATCHES = (1, 32, 96)
WORKLOAD = ls.Workload(batch_size=max(BATCHES), prompt_tokens=PROMPT_TOKENS, new_tokens=16)
STEPS = 6


def cases(child: Child) -> Iterator[Case]:
    """Yield one case for each batch size, on one loaded model."""
    if all(f"batch of {size}" in child.skip for size in BATCHES):
        return
    path = ensure(child, SEVEN_B)
    device = device_bytes(child, path, WORKLOAD)
    host = host_bytes(child, path, device, WORKLOAD, 1.0) if child.has_two_tiers else "min"
    with child.load(path, ls.MemoryBudget(device=device, host=host), WORKLOAD) as streamed:
        rates: dict[int, float] = {}
        for size in BATCHES:
            yield f"batch of {size}", 1.0, lambda size=size: measure(child, streamed, size, rates)


def measure(child: Child, streamed: ls.StreamedModel, size: int, rates: dict[int, float]) -> Found:
    """Time decode sweeps of one batch size."""
    decode_seconds(streamed, batch_size=size, steps=1)
    seconds = [decode_seconds(streamed, batch_size=size, steps=STEPS) for _ in range(3)]
    rates[size] = size / median(seconds)
    where = "from host" if child.has_two_tiers else "streamed"
    ratio = f", {rates[size] / rates[1]:.1f}x of one sequence" if size > 1 and 1 in rates else ""
    row = Row(
        what=f"7B shape {where}, {size} sequence{'s' if size > 1 else ''} in a sweep",
        found=f"{rates[size]:.1f} tokens/s{ratio}",
        note=f"{median(seconds):.4f} s a sweep",
    )
    return Found(rows=(row,), figures={"sweep_s": seconds, **facts_of(streamed.plan, streamed.report())})
