"""Record which operators torch dispatches in one small prefill and one decode step.

Their names show which kernels actually compute attention and quantized matmuls. Runs in the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..variants.loaded import Loaded
from .chunk_reader import ChunkReader
from .device_kernels import recorded_kernels

_NAME_PARTS = ("attention", "mm", "linear", "gemv", "gemm", "dequant", "bitsandbytes", "softmax")
"""Parts of the names of operators that compute attention and matrix products."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).removesuffix(".default")
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def kernel_facts(loaded: Loaded, prompt_ids: torch.Tensor) -> dict[str, Any]:
    """Return counts of attention and matmul operators in a prefill of `prompt_ids` and in one decode step.

    `attention_kernel` summarizes the prefill's attention. On an accelerator the kernels behind the operators
    are named too, if torch can profile it. Compiled attention (flex) cannot be traced.

    Args:
        loaded: the variant.
        prompt_ids: int64, shape [1, tokens].
    """
    if loaded.model.config._attn_implementation == "flex_attention":
        return {"attention_kernel": "flex_attention, compiled"}
    prefill, decode, reader = _Recorder(), _Recorder(), ChunkReader(loaded.model)
    device = loaded.model.device
    with loaded.context():
        with recorded_kernels(device) as prefill_kernels, prefill:
            reader.read(prompt_ids)
        with recorded_kernels(device) as decode_kernels, decode:
            reader.read(prompt_ids[:, -1:])
    kernels = {"prefill_device_kernels": prefill_kernels, "decode_device_kernels": decode_kernels}
    return {
        "attention_kernel": _attention(prefill.counts),
        "prefill_operators": _relevant(prefill.counts),
        "decode_operators": _relevant(decode.counts),
        **{name: dict(sorted(counts.items())) for name, counts in kernels.items() if counts},
    }


def _attention(counts: dict[str, int]) -> str:
    fused = [name for name in counts if "attention" in name]
    return ", ".join(fused) or "matmul and softmax"


def _relevant(counts: dict[str, int]) -> dict[str, int]:
    return {
        name: count for name, count in sorted(counts.items()) if any(part in name for part in _NAME_PARTS)
    }
