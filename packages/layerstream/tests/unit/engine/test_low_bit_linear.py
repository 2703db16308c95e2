"""Linear layers with 8-bit weights: few rows and many give the same products but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerstream.engine import low_bit_linear
from layerstream.engine.low_bit_linear import Int8Linear


def a_linear(out_features: int, in_features: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(5)
    return (
        nn.Linear(in_features, out_features, bias=bias).to(torch.bfloat16).requires_grad_(requires_grad=False)
    )


@pytest.mark.parametrize("has_tiles", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_give_what_each_row_gives_alone(
    bias: bool, has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    monkeypatch.setattr(low_bit_linear, "CAST_WEIGHTS", 64 * 30)  # pieces of 30, 30, 30 and 6 rows
    exact = a_linear(96, 64, bias=bias)
    rounded = Int8Linear(exact.weight, exact.bias)
    inputs = torch.randn(2, 80, 64).to(torch.bfloat16)
    many = rounded(inputs)
    alone = torch.stack([torch.stack([rounded(row[None])[0] for row in one]) for one in inputs])
    assert many.shape == (2, 80, 96) and many.dtype == torch.bfloat16
    torch.testing.assert_close(many, alone, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(many, exact(inputs), rtol=5e-2, atol=5e-2)
