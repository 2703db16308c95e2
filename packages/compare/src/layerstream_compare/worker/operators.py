"""Which kernels really run: the operators of one small prefill and one decode step, as torch dispatches them.

Worker's side. It knows torch's dispatcher; attention and quantized products show there by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..variants.loaded import Loaded

_TELLING = ("attention", "mm", "linear", "gemv", "gemm", "dequant", "bitsandbytes", "softmax")
"""Parts of operator names that say how attention and matrix products are computed."""


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
    """Return the telling operators of a prefill of `prompt_ids`, shape [1, tokens], and of one decode step, with their counts.

    `attention_kernel` sums up the prefill's attention. Compiled attention (flex) is not looked into.
    """
    if loaded.model.config._attn_implementation == "flex_attention":
        return {"attention_kernel": "flex_attention, compiled"}
    prefill, decode = _Recorder(), _Recorder()
    with loaded.context(), torch.no_grad():
        with prefill:
            outputs = loaded.model(prompt_ids, use_cache=True)
        with decode:
            loaded.model(prompt_ids[:, -1:], past_key_values=outputs.past_key_values, use_cache=True)
    return {
        "attention_kernel": _attention(prefill.counts),
        "prefill_operators": _telling(prefill.counts),
        "decode_operators": _telling(decode.counts),
    }


def _attention(counts: dict[str, int]) -> str:
    fused = [name for name in counts if "attention" in name]
    return ", ".join(fused) or "matmul and softmax"


def _telling(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if any(part in name for part in _TELLING)}
