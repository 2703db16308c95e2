"""Linear layers with 8-bit and 4-bit weights, made from ordinary ones. Room: engine.

They are for drafts, whose tokens are verified: small and fast matters more than the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import PlanError
from ..planning.drafting import CAST_WEIGHTS, has_bitsandbytes
from ..spec.options import OwnCopy

_MANY_ROWS = 64
"""From so many rows on, it is faster to cast the weight and multiply in floating point.

torch's int8 kernel takes about as long for each further row. Measured on a CPU with AMX, as it is and held
to AVX2 (docs/lab-notes.md).
"""


class Int8Linear(nn.Module):
    """A linear layer with a weight of 8-bit integers and one scale per row.

    Attributes:
        weight: `[out, in]`, int8.
        scales: `[out]`, in the dtype of the inputs.
        bias: `[out]`, or None.
    """

    weight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Round `weight`, `[out, in]`, to 8 bits."""
        super().__init__()
        exact = weight.to(torch.float32)
        scales = exact.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        rounded = (exact / scales[:, None]).round().to(torch.int8)
        self.register_buffer("weight", rounded, persistent=False)
        self.register_buffer("scales", scales.to(weight.dtype), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = weight.shape

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs, `[..., out]`, of inputs `[..., in]`."""
        if inputs.device.type == "cpu":
            rows = inputs.reshape(-1, self.in_features)
            multiply = self._multiply_few if len(rows) < _MANY_ROWS else self._multiply_many
            outputs = multiply(rows).view(*inputs.shape[:-1], self.out_features)
        else:
            outputs = functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scales
        return outputs if self.bias is None else outputs + self.bias

    def _multiply_few(self, rows: torch.Tensor) -> torch.Tensor:
        products: torch.Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        return products

    def _multiply_many(self, rows: torch.Tensor) -> torch.Tensor:
        """Cast the weight piece by piece: to the dtype of `rows` if the CPU has AMX, else to float32.

        The pieces bound the memory, which the ledger counts. There are no gradients.
        """
        dtype = rows.dtype if torch.cpu._is_amx_tile_supported() else torch.float32
        cast_rows, products = rows.to(dtype), rows.new_empty(len(rows), self.out_features)
        size = max(1, CAST_WEIGHTS // self.in_features)
        for weight, scales, part in zip(
            self.weight.split(size), self.scales.split(size), products.split(size, dim=1), strict=True
        ):
            torch.mul(functional.linear(cast_rows, weight.to(dtype)), scales, out=part)
        return products


LinearMaker = Callable[[torch.Tensor, torch.Tensor | None], nn.Module]
"""Makes a linear layer from a weight `[out, in]` and a bias."""


def linear_maker(kind: OwnCopy) -> LinearMaker:
    """Return what makes linear layers of `kind`.

    Raises:
        PlanError: bitsandbytes is missing.
    """
    if kind is OwnCopy.INT8:
        return Int8Linear
    if not has_bitsandbytes():
        raise PlanError(
            "draft='nf4' needs bitsandbytes: run `pip install 'layerstream[nf4]'`, or give draft='int8'"
        )
    return _nf4_linear


def _nf4_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    from bitsandbytes.nn import modules  # noqa: PLC0415 - an optional extra

    rows, columns = weight.shape
    low_bit: Any = modules  # bitsandbytes has no types
    linear: nn.Module = low_bit.Linear4bit(
        columns, rows, bias=bias is not None, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
    )
    # bitsandbytes quantizes when it moves the weight to a device
    linear.weight = low_bit.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=False, module=linear
    ).to(weight.device)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
