"""The errors that layerstream raises, in one tree.

Room: spec. Every error a user can meet is a `LayerstreamError`. A message says what was requested, what was
found (numbers with units) and what to do; the numbers are also fields, so that a program need not parse
prose. Errors survive pickling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; the name of its type when it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class LayerstreamError(Exception):
    """Any failure that layerstream itself reports."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and fields, so that keyword-only fields survive a process boundary."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[LayerstreamError], args: tuple[Any, ...], fields: dict[str, Any]) -> LayerstreamError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class CheckpointError(LayerstreamError):
    """A checkpoint's files cannot be used as they are."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such directory, Hub id or file, or the Hub cannot be reached."""


class ShardCorruptError(CheckpointError, ValueError):
    """A file of weights is truncated, too long, or has a wrong header.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        """Store the message and `path`."""
        super().__init__(message)
        self.path = path


class TensorMissingError(CheckpointError, KeyError):
    """The model needs tensors that the checkpoint does not hold, or the index names a missing file.

    Attributes:
        names: the missing tensors' names.
    """

    def __init__(self, message: str, *, names: tuple[str, ...] = ()) -> None:
        """Store the message and `names`."""
        super().__init__(message)
        self.names = names

    def __str__(self) -> str:
        """Return the message itself; KeyError would quote it."""
        return str(self.args[0]) if self.args else ""


class UnsupportedFormatError(CheckpointError):
    """The checkpoint is pickled, quantized, or not in the safetensors format."""


class FetchError(CheckpointError, OSError):
    """A checkpoint cannot be copied to this machine: the server, its driver or the disk fails.

    Attributes:
        needed_bytes: what is still to come, if the disk is too full for it; 0 if space is not the reason.
        free_bytes: what is free there.
    """

    def __init__(self, message: str, *, needed_bytes: int = 0, free_bytes: int = 0) -> None:
        """Store the message and the numbers."""
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ConversionError(CheckpointError, OSError):
    """A converted checkpoint cannot be written: the folder is in use, or the disk is full.

    Attributes:
        needed_bytes: the free space that would do; 0 if space is not the reason.
    """

    def __init__(self, message: str, *, needed_bytes: int = 0) -> None:
        """Store the message and `needed_bytes`."""
        super().__init__(message)
        self.needed_bytes = needed_bytes


class ModelError(LayerstreamError):
    """The model's architecture cannot be streamed."""


class BlocksNotFoundError(ModelError):
    """No list of decoder blocks was found in the model."""


class UnsupportedModelError(ModelError):
    """The model is unknown, needs remote code that was not allowed, or an operation would break streaming."""


class AdapterError(ModelError, ValueError):
    """An adapter cannot be used: peft is missing, its files are broken, or it belongs to another model."""


class PlanError(LayerstreamError, ValueError):
    """No plan can meet the request: a bad size, an unknown device or dtype, an impossible workload."""


class BudgetTooSmallError(PlanError, MemoryError):
    """The budget is too small for any plan.

    Attributes:
        needed_bytes: the smallest budget that would work.
        budget_bytes: the budget that was given.
        where: the memory that is too small, `"device"` or `"host"`.
    """

    def __init__(self, message: str, *, needed_bytes: int, budget_bytes: int, where: str = "device") -> None:
        """Store the message and the numbers."""
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.where = where


class UnsupportedOptionError(PlanError, TypeError):
    """A keyword is unknown, or is one of `from_pretrained` that has no meaning here.

    Attributes:
        names: the keywords.
    """

    def __init__(self, message: str, *, names: tuple[str, ...] = ()) -> None:
        """Store the message and `names`."""
        super().__init__(message)
        self.names = names


class WorkloadExceededError(PlanError, MemoryError):
    """A forward or a `generate()` is larger than planned and does not fit the budget. Nothing was computed.

    Both sizes have the keys `batch_size`, `prompt_tokens` and `context_tokens`.

    Attributes:
        needed_bytes: what it would take, weights included.
        budget_bytes: what it may take.
        asked: its size.
        planned: the size that the model was loaded for.
    """

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int,
        budget_bytes: int,
        asked: Mapping[str, int],
        planned: Mapping[str, int],
    ) -> None:
        """Store the message, the numbers and the sizes."""
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.asked = dict(asked)
        self.planned = dict(planned)


class StreamError(LayerstreamError):
    """Moving the weights failed."""


class ReadFailedError(StreamError, OSError):
    """A file could not be read.

    Attributes:
        path: the file.
        offset: the place in it, in bytes.
    """

    def __init__(self, message: str, *, path: str = "", offset: int = 0) -> None:
        """Store the message and the place."""
        super().__init__(message)
        self.path = path
        self.offset = offset


class PinningError(StreamError):
    """The driver refused to pin host memory."""


class StreamClosedError(StreamError):
    """The streamed model was used after `close()`."""


class ReplicaStoppedError(StreamError):
    """The work on this device was stopped because the work on another device failed at the same time."""


class VerificationError(LayerstreamError):
    """A streamed unit does not compute what a resident copy of it computes on this machine.

    Attributes:
        report: the `VerificationReport` with every unit that was checked.
        unit: the first unit that differs.
        device: the device that it ran on.
        num_different: how many of its values differ.
        largest_difference: between two of them; None where that is not a finite number.
    """

    def __init__(
        self,
        message: str,
        *,
        report: Any,
        unit: str,
        device: str,
        num_different: int,
        largest_difference: float | None,
    ) -> None:
        """Store the message, the report and the first difference."""
        super().__init__(message)
        self.report = report
        self.unit = unit
        self.device = device
        self.num_different = num_different
        self.largest_difference = largest_difference


class ServiceError(LayerstreamError):
    """A service cannot take a request."""


class QueueFullError(ServiceError):
    """The queue of a service is full.

    Attributes:
        waiting: the requests in it.
        eta_s: estimated seconds until there is room.
    """

    def __init__(self, message: str, *, waiting: int, eta_s: float) -> None:
        """Store the message and the figures."""
        super().__init__(message)
        self.waiting = waiting
        self.eta_s = eta_s


class ServiceClosedError(ServiceError):
    """A service was asked after `close()`."""


class ScoreError(LayerstreamError, ArithmeticError):
    """A score is not a number."""


class JobError(LayerstreamError, OSError):
    """The rows of a job cannot be read, or its results cannot be written."""
