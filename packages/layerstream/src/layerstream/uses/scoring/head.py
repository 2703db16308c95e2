"""A head in place of the language model's: any module, or a weight in a safetensors file.

Layer: uses. Knows what a head takes and gives; knows nothing of requests.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ...errors import CheckpointNotFoundError, PlanError, ShardCorruptError, TensorMissingError, first_line

Head = nn.Module | str | Path


def load_head(path: str | Path, *, device: torch.device | str = "cpu") -> nn.Linear:
    """Return a linear head from a safetensors file, in the dtype that it is stored in.

    Args:
        path: a file with one matrix of (outputs, hidden size), whatever its name, and perhaps one vector of (outputs,), the bias.
        device: where it will compute.

    Raises:
        CheckpointNotFoundError: no such file.
        ShardCorruptError: it is no safetensors file.
        TensorMissingError: it does not hold exactly one matrix.
        PlanError: shapes do not fit one another, or a value is not finite.
    """
    if not Path(path).is_file():
        raise CheckpointNotFoundError(
            f"no head at {path}: give a safetensors file with a weight of (outputs, hidden size)"
        )
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise ShardCorruptError(f"{path} is no safetensors file: {error}", path=str(path)) from error
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    vectors = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    if len(matrices) != 1 or len(vectors) > 1 or len(tensors) > len(matrices) + len(vectors):
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise TensorMissingError(
            f"a head is one matrix, and one vector if it has a bias; {path} holds {found}", names=("weight",)
        )
    (weight,) = matrices.values()
    return _linear(weight, vectors[0] if vectors else None, path)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, path: str | Path) -> nn.Linear:
    if not weight.is_floating_point() or (bias is not None and bias.shape[0] != weight.shape[0]):
        shape = None if bias is None else tuple(bias.shape)
        raise PlanError(
            f"the head in {path} has weight {tuple(weight.shape)} {weight.dtype} and bias {shape}: they do not fit"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (weight, bias) if tensor is not None):
        raise PlanError(f"the head in {path} holds values that are not finite")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight)
    if bias is not None:
        head.bias = nn.Parameter(bias.to(weight.dtype))
    return head.eval()


class ScoringHead:
    """A head that has been tried: it takes the model's last hidden states.

    Attributes:
        num_outputs: numbers that it makes of one token.
    """

    def __init__(self, head: Head, *, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Take a module as it is, or read it from a file, and try it on one row.

        Args:
            head: the module, or the path of a safetensors file.
            width: of the model's last hidden state.
            dtype: of the same; it is cast to the head's where that differs.
            device: of the model, where a head from a file goes.

        Raises:
            CheckpointError: the file is missing, broken or holds something else.
            PlanError: the head does not take such a row, or gives no row of numbers.
        """
        if not isinstance(head, (nn.Module, str, Path)):
            raise PlanError(
                f"a head is an nn.Module or the path of a safetensors file; got {type(head).__name__}"
            )
        self._module = head if isinstance(head, nn.Module) else load_head(head, device=device)
        first = next(
            (parameter for parameter in self._module.parameters() if parameter.is_floating_point()), None
        )
        self._dtype = dtype if first is None else first.dtype
        self._device = device if first is None else first.device
        try:
            with torch.no_grad():
                tried = self(torch.zeros(1, width, dtype=dtype, device=device))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise PlanError(
                f"the head does not take the model's last hidden states, rows of {width} numbers: {first_line(error)}"
            ) from error
        if (
            not isinstance(tried, torch.Tensor)
            or tried.ndim != 2
            or tried.shape[0] != 1
            or not tried.shape[1]
        ):
            shape = tuple(tried.shape) if isinstance(tried, torch.Tensor) else type(tried).__name__
            raise PlanError(f"the head makes {shape} of one row of {width} numbers: (1, outputs) is needed")
        self.num_outputs = int(tried.shape[1])

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (rows, outputs) for `rows` (rows, width)."""
        made: torch.Tensor = self._module(rows.to(device=self._device, dtype=self._dtype))
        return made
