"""Check on the user's own machine that streamed units compute what resident copies of them compute.

One short forward is recorded: the inputs and outputs of some units. Afterwards, while no forward runs and the
slots are free, each of them is computed again by a resident copy, one copy at a time in the memory of the
slots, and compared bit for bit.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._pytree import tree_iter, tree_map
from transformers import PreTrainedModel

from .. import __version__
from ..errors import VerificationError
from ..spec.plans import PlacementPlan
from ..spec.profiles import UnitRecipe
from ..spec.verification import UnitVerification, VerificationReport
from ..streaming.absent_weight import AbsentWeight
from .replica_builder import ReplicaParts
from .resident_copy import ResidentCopy, StoredWeights, whole_of

MAX_UNITS = 16
"""The most units of the decoder that are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedUnit:
    """A streamed unit that is checked.

    Attributes:
        name: its module path.
        module: the module whose input and output are compared.
        slices: its recipe; several if it is streamed in vocabulary slices.
        absent: by the name of each tensor, the absent weight in its place.
        is_head: it is the head.
    """

    name: str
    module: nn.Module
    slices: tuple[UnitRecipe, ...]
    absent: Mapping[str, AbsentWeight]
    is_head: bool

    @property
    def is_complete(self) -> bool:
        """Whether no weight inside the module is streamed with another unit, so that a copy stands alone."""
        own = {id(weight) for weight in self.absent.values()}
        state = (*self.module.parameters(), *self.module.buffers())
        return all(id(tensor) in own for tensor in state if isinstance(tensor, AbsentWeight))

    @property
    def kind(self) -> tuple[object, ...]:
        """What units of one kind have in common: their classes, settings and the shapes of their weights."""
        shapes = tuple((t.name.removeprefix(self.name), t.shape) for t in self.slices[0].tensors)
        return (shapes, *(_traits(path, inner) for path, inner in self.module.named_modules()))


def _traits(path: str, module: nn.Module) -> tuple[object, ...]:
    """Return a module's class and its settings; numbers are left out, as each block has its own index."""
    settings = [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, (str, bool)) and not name.startswith("_")
    ]
    return path, type(module).__qualname__, tuple(sorted(settings))


@dataclass(slots=True, kw_only=True)
class RecordedCall:
    """One call of a unit's module in the streamed forward.

    Attributes:
        unit: the unit.
        copy: the module's structure, as it was before the forward.
        thread: the thread that runs the forward; calls in others are not recorded.
        inputs: the arguments; None if there was no call.
        output: the output, in memory of its own.
    """

    unit: CheckedUnit
    copy: ResidentCopy
    thread: int = field(default_factory=threading.get_ident)
    inputs: tuple[Any, Any] | None = None
    output: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the first call of the module inside this context, outside all hooks that are there."""
        module = self.unit.module
        before = module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        after = module.register_forward_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.inputs is None and threading.get_ident() == self.thread:
            self.inputs = tree_map(_KeptTensor.of, (args, kwargs))

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if self.output is None and threading.get_ident() == self.thread:
            self.output = tree_map(_clone, output)

    def arguments(self) -> tuple[Any, Any]:
        """Return the arguments as they were when the call began."""
        arguments: tuple[Any, Any] = tree_map(_KeptTensor.restored, self.inputs)
        return arguments


@dataclass(slots=True, kw_only=True)
class _KeptTensor:
    """A tensor as it was: itself, or a copy if it was written to since. Kernels depend on addresses."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor

    @classmethod
    def of(cls, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return cls(tensor=value, version=value._version, copy=value.clone())

    @staticmethod
    def restored(value: Any) -> Any:
        if not isinstance(value, _KeptTensor):
            return value
        return value.tensor if value.tensor._version == value.version else value.copy


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


# -- which units are checked -------------------------------------------------------------------------------


def choose_units(parts: ReplicaParts, plan: PlacementPlan) -> list[CheckedUnit]:
    """Return the streamed units to check: the first, a middle and the last, one of each kind, and the head.

    Empty when no unit is streamed.
    """
    units = [unit for unit in _streamed_units(parts, plan) if unit.is_complete]
    decoder = [unit for unit in units if not unit.is_head]
    positions = dict.fromkeys((0, len(decoder) // 2, len(decoder) - 1) if decoder else ())
    kinds: dict[tuple[object, ...], int] = {}
    for position, unit in enumerate(decoder):
        kinds.setdefault(unit.kind, position)
    positions |= dict.fromkeys(kinds.values())
    chosen = sorted(list(positions)[:MAX_UNITS])
    return [decoder[position] for position in chosen] + [unit for unit in units if unit.is_head]


def _streamed_units(parts: ReplicaParts, plan: PlacementPlan) -> list[CheckedUnit]:
    if parts.stream is None or parts.hooks is None:
        return []
    blocks = {placement.name: placement.block for placement in plan.units}
    recipes = [unit.source.unit for unit in parts.stream.units]
    units = []
    for name, group in groupby(enumerate(recipes), key=lambda entry: entry[1].slice_of or entry[1].name):
        indices, slices = zip(*group, strict=True)
        absent = parts.hooks.absent_weights(indices[0])
        is_sliced = slices[0].slice_of is not None
        units.append(
            CheckedUnit(
                name=name,
                module=_holder(parts.model, absent) if is_sliced else parts.model.get_submodule(name),
                slices=slices,
                absent=absent,
                is_head=blocks[name] is None,
            )
        )
    return units


def _holder(model: nn.Module, absent: Mapping[str, AbsentWeight]) -> nn.Module:
    """Return the linear layer with the weights of a sliced head; an adapter may have put a layer around it.

    A tied embedding holds the same weight, and is no linear layer.
    """
    weights = {id(weight) for weight in absent.values()}
    return next(
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and {id(tensor) for tensor in module._parameters.values()} & weights
    )


# -- the streamed forward ----------------------------------------------------------------------------------


def record_calls(parts: ReplicaParts, plan: PlacementPlan, num_tokens: int) -> list[RecordedCall]:
    """Run one forward of `num_tokens` fixed token ids without a cache; return the calls of chosen units.

    Units that the forward did not call are left out.
    """
    calls = [RecordedCall(unit=unit, copy=ResidentCopy(unit.module)) for unit in choose_units(parts, plan)]
    if calls:
        _run_recorded(parts.model, calls, _token_ids(parts.model, num_tokens).to(parts.runtime.device))
    return [call for call in calls if call.inputs is not None]


def _run_recorded(model: PreTrainedModel, calls: Sequence[RecordedCall], ids: torch.Tensor) -> None:
    parameters = inspect.signature(type(model).forward).parameters
    keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as listening:
        for call in calls:
            listening.enter_context(call.listening())
        model(input_ids=ids, use_cache=False, **keep)


def _token_ids(model: PreTrainedModel, num_tokens: int) -> torch.Tensor:
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    # 0 is often padding
    return (torch.arange(num_tokens) % (vocabulary - 1) + 1).unsqueeze(0)


# -- the resident copies -----------------------------------------------------------------------------------


def compare_calls(
    parts: ReplicaParts, plan: PlacementPlan, calls: Sequence[RecordedCall]
) -> list[UnitVerification]:
    """Compute each call again with a resident copy, one after another, and compare.

    The slots must be free: a copy takes at most the memory of two.
    """
    free_bytes = plan.num_slots * plan.slot_bytes
    with parts.runtime.current(), torch.inference_mode(False), torch.no_grad():
        return [_compare(parts, plan.devices[parts.index], call, free_bytes) for call in calls]


def _compare(parts: ReplicaParts, device: str, call: RecordedCall, free_bytes: int) -> UnitVerification:
    unit = call.unit
    whole = whole_of(unit.slices)
    # With slots for slices, the whole head may be too large: then each slice is compared.
    is_whole = len(unit.slices) == 1 or sum(tensor.num_bytes for tensor in whole.tensors) <= free_bytes
    results, start = [], 0
    for recipe in (whole,) if is_whole else unit.slices:
        rows = None if is_whole else slice(start, start + recipe.tensors[0].shape[0])
        weights = StoredWeights(parts.runtime).load(recipe, rows)
        by_place = {id(unit.absent[name]): weight for name, weight in weights.items()}
        args, kwargs = call.arguments()
        expected = call.copy.run(by_place, args, kwargs)
        actual = call.output if rows is None else call.output[..., rows]
        results.append(_difference(expected, actual))
        start = 0 if rows is None else rows.stop
        del weights, by_place, expected
    sizes = [result.largest for result in results]
    return UnitVerification(
        unit=unit.name,
        device=device,
        num_values=sum(result.num_values for result in results),
        num_finite=sum(result.num_finite for result in results),
        num_different=sum(result.num_different for result in results),
        largest_difference=None if None in sizes else max(size for size in sizes if size is not None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """How two outputs differ; see `UnitVerification`."""

    num_values: int
    num_finite: int
    num_different: int
    largest: float | None


def _difference(expected: Any, actual: Any) -> _Difference:
    targets, tensors = _tensors(expected), _tensors(actual)
    num_values = sum(tensor.numel() for tensor in tensors)
    if [(t.shape, t.dtype) for t in targets] != [(t.shape, t.dtype) for t in tensors]:
        return _Difference(num_values=num_values, num_finite=0, num_different=num_values, largest=None)
    num_finite, num_different, largest = 0, 0, 0.0
    for target, tensor in zip(targets, tensors, strict=True):
        are_finite = (target.isfinite() & tensor.isfinite()).reshape(-1)
        num_finite += int(are_finite.sum())
        are_different = _bits(target) != _bits(tensor)
        if not bool(are_different.any()):
            continue
        num_different += int(are_different.sum())
        distances = (target.double() - tensor.double()).abs().reshape(-1)
        is_known = bool(are_finite[are_different].all())
        largest = max(largest, float(distances[are_different].max()) if is_known else float("inf"))
    return _Difference(
        num_values=num_values,
        num_finite=num_finite,
        num_different=num_different,
        largest=None if largest == float("inf") else largest,
    )


def _tensors(output: Any) -> list[torch.Tensor]:
    """Return the tensors in an output, on the CPU: not every device has all dtypes of the comparison."""
    return [leaf.cpu() for leaf in tree_iter(output) if isinstance(leaf, torch.Tensor)]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values' bits as integers: NaN equals itself then, and -0.0 is not 0.0."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().reshape(-1).view(kinds[tensor.element_size()])


def refuse_difference(report: VerificationReport) -> None:
    """Do nothing if everything that was checked is equal.

    Raises:
        VerificationError: a unit differs; with the report.
    """
    if report.is_equal:
        return
    first, *others = report.different
    more = f" ({len(report.different)} of {len(report.units)} units failed)" if others else ""
    meaning = (
        "Results would not be exact on this machine"
        if any(unit.num_different for unit in report.different)
        else "This does not show whether results are exact on this machine"
    )
    versions = (
        f"layerstream {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    raise VerificationError(
        f"the verification of {report.model_name} in {report.dtype} failed: {first.unit} on {first.device}, "
        f"streamed against a resident copy: {first.explain()}{more}. {meaning}. Please report it, with the "
        f"hardware and {versions}. Another budget streams other units; without verify, the model is loaded "
        "without this check",
        report=report,
        unit=first.unit,
        device=first.device,
        num_different=first.num_different,
        largest_difference=first.largest_difference,
    )
