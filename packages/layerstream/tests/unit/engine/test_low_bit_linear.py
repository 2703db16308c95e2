"""Linear layers with 8-bit weights: many rows are multiplied in another way, with the same products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from layerstream.engine import low_bit_linear
from layerstream.engine.low_bit_linear import Int8Linear


@pytest.fixture
def exact() -> nn.Linear:
    """A linear layer whose rows differ in size, so that each needs its own scale."""
    torch.manual_seed(5)
    linear = nn.Linear(64, 96, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
    linear.weight *= torch.logspace(-1, 1, 96, dtype=torch.bfloat16)[:, None]
    return linear


@pytest.mark.parametrize(("has_tiles", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_give_what_each_row_gives_alone(
    exact: nn.Linear, bias: bool, has_tiles: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = Int8Linear(exact.weight, exact.bias if bias else None)
    inputs = torch.randn(2, 80, 64).to(torch.bfloat16)
    alone = torch.stack([rounded(row[None])[0] for row in inputs.flatten(0, 1)]).view(2, 80, 96)
    cast: list[tuple[torch.dtype, int]] = []
    multiply = functional.linear

    def recorded(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        cast.append((weight.dtype, len(weight)))
        return multiply(rows, weight)

    monkeypatch.setattr(low_bit_linear.functional, "linear", recorded)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    monkeypatch.setattr(low_bit_linear, "CAST_WEIGHTS", 64 * 30)
    many = rounded(inputs)
    monkeypatch.undo()
    assert cast == [(dtype, 30), (dtype, 30), (dtype, 30), (dtype, 6)]
    assert many.shape == (2, 80, 96) and many.dtype == torch.bfloat16
    sizes = alone.float().abs().amax(dim=(0, 1))
    assert ((many.float() - alone.float()).abs().amax(dim=(0, 1)) < 0.02 * sizes).all()
    plain = functional.linear(inputs, exact.weight, exact.bias if bias else None).float()
    assert ((many.float() - plain).abs().amax(dim=(0, 1)) < 0.03 * sizes).all()
