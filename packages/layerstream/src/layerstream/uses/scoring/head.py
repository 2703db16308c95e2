"""A scoring head in place of the language model's own: any module, or a weight in a safetensors file."""

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
        path: a file with one matrix (outputs, hidden size), under any name, and optionally one vector
            (outputs,), the bias.
        device: where it will compute.

    Raises:
        CheckpointNotFoundError: there is no such file.
        ShardCorruptError: it is not a safetensors file.
        TensorMissingError: it does not hold exactly one matrix.
        PlanError: the shapes do not fit each other, or a value is not finite.
    """
    if not Path(path).is_file():
        raise CheckpointNotFoundError(
            f"no head at {path}: give a safetensors file with a weight (outputs, hidden size)"
        )
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise ShardCorruptError(f"{path} is not a safetensors file: {error}", path=str(path)) from error
    matrices = [tensor for tensor in tensors.values() if tensor.ndim == 2]
    vectors = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    if len(matrices) != 1 or len(vectors) > 1 or len(tensors) > len(matrices) + len(vectors):
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise TensorMissingError(
            f"a head is one matrix, and one vector if it has a bias; {path} holds {found}", names=("weight",)
        )
    return _linear(matrices[0], vectors[0] if vectors else None, path)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, path: str | Path) -> nn.Linear:
    if not weight.is_floating_point() or (bias is not None and bias.shape[0] != weight.shape[0]):
        shape = None if bias is None else tuple(bias.shape)
        raise PlanError(
            f"the head in {path} has weight {tuple(weight.shape)} {weight.dtype} and bias {shape}: "
            "give a floating-point weight, and a bias with one value per output"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (weight, bias) if tensor is not None):
        raise PlanError(f"the head in {path} holds values that are not finite")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight)
    if bias is not None:
        head.bias = nn.Parameter(bias.to(weight.dtype))
    return head.eval()


class ScoringHead:
    """A head that is known to accept the model's last hidden states.

    Attributes:
        num_outputs: the number of outputs per token.
    """

    def __init__(self, head: Head, *, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Use a module as it is, or read it from a file, and try it on one row.

        Args:
            head: the module, or the path of a safetensors file.
            width: the size of the model's last hidden state.
            dtype: the dtype of the same; cast to the head's dtype if that differs.
            device: the model's device; a head from a file is put there.

        Raises:
            CheckpointError: the file is missing, broken or holds something else.
            PlanError: the head does not accept such a row, or does not return a row of outputs.
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
        self.num_outputs = self._try_on(torch.zeros(1, width, dtype=dtype, device=device))

    def _try_on(self, row: torch.Tensor) -> int:
        width = row.shape[-1]
        try:
            with torch.no_grad():
                output = self(row)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise PlanError(
                "the head does not accept the model's last hidden states, "
                f"rows of {width} numbers: {first_line(error)}"
            ) from error
        is_tensor = isinstance(output, torch.Tensor)
        if not is_tensor or output.ndim != 2 or output.shape[0] != 1 or not output.shape[1]:
            found = tuple(output.shape) if is_tensor else type(output).__name__
            raise PlanError(
                f"the head returns {found} for one row of {width} numbers: (1, outputs) is needed"
            )
        return int(output.shape[1])

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (rows, outputs) for `rows` (rows, width)."""
        outputs: torch.Tensor = self._module(rows.to(device=self._device, dtype=self._dtype))
        return outputs
