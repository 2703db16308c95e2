"""Learn which stored bytes make which tensor of the model.

Room: architecture. Runs transformers' own conversion mapping on meta tensors. It knows names, shapes and
dtypes and reads no weight. Nothing here is specific to one architecture.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from ..errors import CheckpointError, TensorMissingError, UnsupportedModelError
from ..spec.profiles import Conversion, Piece, StoredTensor, TensorRecipe
from ..spec.sizes import dtype_bytes
from . import compat
from .experts import direct_pieces

_MISMATCH = "config.json and the weights do not belong together"


class UnusedTensorWarning(UserWarning):
    """The checkpoint holds tensors that the model does not have; they are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """How every tensor of the model is made.

    Attributes:
        tensors: recipes by name in the model; a tied name has its own recipe with the same pieces.
        conversions: by the name of each tensor that a conversion makes.
        tied: by tied name, the name whose tensor it shares.
        self_made: names that no checkpoint provides and transformers initializes itself.
    """

    tensors: Mapping[str, TensorRecipe]
    conversions: Mapping[str, Conversion]
    tied: Mapping[str, str]
    self_made: frozenset[str]


@dataclass(slots=True)
class _Group:
    """The stored tensors that make one target or several, and their converter; None for a plain rename."""

    sources: list[tuple[str, StoredTensor]]
    converter: compat.WeightConverter | None


def learn_recipe(
    model: PreTrainedModel, stored: Mapping[str, StoredTensor], dtype: torch.dtype
) -> ModelRecipe:
    """Return the recipe of every parameter and persistent buffer of `model`.

    Args:
        model: a skeleton on the meta device, untied.
        stored: the checkpoint's tensors by name.
        dtype: the run dtype.

    Raises:
        TensorMissingError: the model needs tensors that the checkpoint does not hold.
        CheckpointError: a stored tensor's shape differs from the model's.

    Warns:
        UnusedTensorWarning: the checkpoint holds tensors that the model does not have.
    """
    state = model.state_dict(keep_vars=True)
    groups, unused = _group_by_target(model, stored, state)
    policy = compat.dtype_policy(model, dtype)
    dtypes = {name: policy(name) or tensor.dtype for name, tensor in state.items()}
    tensors: dict[str, TensorRecipe] = {}
    conversions: dict[str, Conversion] = {}
    for first, group in groups.items():
        if group.converter is None:
            tensors[first] = _renamed(first, group.sources[0][1], state[first], dtypes[first])
        else:
            _learn_converted(model, first, group, state, dtypes[first], tensors, conversions)
    tied = _resolve_ties(model, tensors, conversions)
    self_made = _check_complete(model, state, tensors)
    _warn_unused(model, unused)
    return ModelRecipe(tensors=tensors, conversions=conversions, tied=tied, self_made=self_made)


def _group_by_target(
    model: PreTrainedModel, stored: Mapping[str, StoredTensor], state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, _Group], list[str]]:
    renamings, converters = compat.weight_transforms(model)
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    groups: dict[str, _Group] = {}
    unused = []
    for key in sorted(stored, key=compat.natural_key):
        renamed, pattern = compat.rename_source_key(key, renamings, converters, prefix, state)
        if renamed not in state and key in state:
            # The key is already the model's own name; at most the prefix is missing.
            renamed, pattern = compat.rename_source_key(
                key, [], [], base_model_prefix=prefix, meta_state_dict=state
            )
        if renamed not in state:
            unused.append(key)
        elif pattern is None:
            groups[renamed] = _Group([(key, stored[key])], None)
        else:
            group = groups.setdefault(renamed, _Group([], by_pattern[pattern]))
            group.sources.append((pattern, stored[key]))
    return groups, unused


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor_recipe(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, pieces: tuple[Piece, ...]
) -> TensorRecipe:
    dtype_name = _dtype_name(dtype)
    return TensorRecipe(
        name=name,
        dtype=dtype_name,
        shape=tuple(tensor.shape),
        num_bytes=dtype_bytes(dtype_name, tensor.numel()),
        pieces=pieces,
        is_buffer=not isinstance(tensor, torch.nn.Parameter),
    )


def _renamed(name: str, source: StoredTensor, tensor: torch.Tensor, dtype: torch.dtype) -> TensorRecipe:
    _check_dtype(name, source, dtype)
    if source.shape != tuple(tensor.shape):
        raise CheckpointError(
            f"tensor {source.name!r} in {source.path} has shape {list(source.shape)}, but the model needs "
            f"{list(tensor.shape)} for {name!r}; {_MISMATCH}"
        )
    return _tensor_recipe(name, tensor, dtype, (Piece(source=source),))


def _check_dtype(name: str, source: StoredTensor, dtype: torch.dtype) -> None:
    """Refuse a cast that changes what the numbers mean: integers, or 8-bit floats without their scales."""
    if dtype.is_floating_point and source.dtype not in ("float64", "float32", "float16", "bfloat16"):
        raise CheckpointError(
            f"tensor {source.name!r} in {source.path} is stored as {source.dtype}, but {name!r} needs "
            f"{_dtype_name(dtype)}: the checkpoint is quantized or damaged"
        )


def _learn_converted(
    model: PreTrainedModel,
    first: str,
    group: _Group,
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    tensors: dict[str, TensorRecipe],
    conversions: dict[str, Conversion],
) -> None:
    for _, source in group.sources:
        _check_dtype(first, source, dtype)
    convert = _conversion_function(model, first, group, dtype)
    results = _convert_on_meta(convert, first, group, dtype)
    for name, tensor in results.items():
        if name not in state:
            raise UnsupportedModelError(
                f"converting {group.sources[0][1].name!r} gives {name!r}, which the model does not have"
            )
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"the tensors {', '.join(sorted(s.name for _, s in group.sources)[:3])}… make {name!r} "
                f"with shape {list(tensor.shape)}, but the model needs {list(state[name].shape)}; {_MISMATCH}"
            )
    shapes = [tuple(tensor.shape) for tensor in results.values()]
    pieces = direct_pieces(group.converter, group.sources, shapes)
    if pieces is not None:
        (name,) = results
        tensors[name] = _tensor_recipe(name, state[name], dtype, pieces)
        return
    conversion = Conversion(
        targets=tuple(results), sources=tuple(source for _, source in group.sources), convert=convert
    )
    for name in results:
        tensors[name] = _tensor_recipe(name, state[name], dtype, ())
        conversions[name] = conversion


def _convert_on_meta(
    convert: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    first: str,
    group: _Group,
    dtype: torch.dtype,
) -> Mapping[str, torch.Tensor]:
    """Run the conversion on shapes.

    Raises:
        TensorMissingError: the group has fewer tensors of one kind than of another.
        CheckpointError: the group cannot be converted for another reason.
    """
    sources = [source for _, source in group.sources]
    try:
        return convert(
            {source.name: torch.empty(source.shape, dtype=dtype, device="meta") for source in sources}
        )
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        shapes: dict[str, list[tuple[int, ...]]] = {}
        for pattern, source in group.sources:
            shapes.setdefault(pattern, []).append(source.shape)
        found = "; ".join(
            f"{len(of_pattern)} x {pattern} of shape {' and '.join(map(str, set(of_pattern)))}"
            for pattern, of_pattern in shapes.items()
        )
        if len({len(of_pattern) for of_pattern in shapes.values()}) > 1:
            raise TensorMissingError(
                f"{first!r} cannot be made: tensors are missing among {found}", names=(first,)
            ) from error
        raise CheckpointError(f"{first!r} cannot be made of {found}; {_MISMATCH}") from error


def _conversion_function(
    model: PreTrainedModel, first: str, group: _Group, dtype: torch.dtype
) -> Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]:
    """Return transformers' conversion of this group as a function from stored tensors to model tensors."""
    config, template = model.config, group.converter
    names = [(pattern, source.name) for pattern, source in group.sources]
    # `Split` looks up parameter shapes in the model, whose parameters may be views of a slot by the time we
    # convert.
    shapes = _ShapesOf(model)

    def convert(stored: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        converter = deepcopy(template)
        assert converter is not None
        for pattern, name in names:
            converter.add_tensor(first, name, pattern, lambda name=name: stored[name].to(dtype))
        results = converter.convert(first, model=shapes, config=config)
        return {name: value[0] if isinstance(value, list) else value for name, value in results.items()}

    return convert


class _ShapesOf:
    """Stands in for the model in a conversion: has the parameters' shapes as they were at learning time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self._state = model.state_dict(keep_vars=True)

    def get_parameter(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._state[name]
        return tensor

    get_parameter_or_buffer = get_parameter


def _resolve_ties(
    model: PreTrainedModel, tensors: dict[str, TensorRecipe], conversions: dict[str, Conversion]
) -> dict[str, str]:
    """Give every tied name that the checkpoint lacks the recipe of the tensor it shares.

    Returns:
        By tied name, the name whose tensor it shares.
    """
    groups: dict[str, set[str]] = {}
    for name, source in compat.tied_names(model).items():
        groups.setdefault(source, {source}).add(name)
    tied: dict[str, str] = {}
    for source, names in groups.items():
        # A tensor that is stored separately despite the flag stays separate: if the two are equal, so is
        # every result.
        present = [name for name in (source, *sorted(names - {source})) if name in tensors]
        if not present:
            continue
        for name in names - set(present):
            tensors[name] = replace(tensors[present[0]], name=name)
            tied[name] = present[0]
            if present[0] in conversions:
                conversions[name] = _renamed_conversion(conversions[present[0]], present[0], name)
    return tied


def _renamed_conversion(conversion: Conversion, old: str, new: str) -> Conversion:
    def convert(stored: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {new if name == old else name: value for name, value in conversion.convert(stored).items()}

    return replace(
        conversion, targets=tuple(new if t == old else t for t in conversion.targets), convert=convert
    )


def _check_complete(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor], tensors: Mapping[str, TensorRecipe]
) -> frozenset[str]:
    lacking = {
        name for name, tensor in state.items() if name not in tensors and isinstance(tensor, torch.Tensor)
    }
    may_lack, _ = compat.ignored_patterns(model)
    missing = sorted(name for name in lacking if not _matches(may_lack, name))
    if missing:
        raise TensorMissingError(
            f"the checkpoint lacks {len(missing)} of the {len(state)} tensors that the model needs: "
            f"{_some(missing)}; it is incomplete, or its config.json belongs to another model",
            names=tuple(missing),
        )
    return frozenset(lacking)


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _warn_unused(model: PreTrainedModel, unused: list[str]) -> None:
    _, may_be_extra = compat.ignored_patterns(model)
    extra = [name for name in unused if not _matches(may_be_extra, name)]
    if extra:
        warnings.warn(
            f"the checkpoint holds {len(extra)} tensors that this model does not have; they are not used: "
            f"{_some(extra)}",
            UnusedTensorWarning,
            stacklevel=4,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def recipe_of_shapes(model: PreTrainedModel, dtype: torch.dtype) -> ModelRecipe:
    """Return the recipe of a model without a checkpoint, as if one file held every tensor as it is used.

    It serves planning from a config alone; nothing can be read with it.
    """
    policy = compat.dtype_policy(model, dtype)
    tensors: dict[str, TensorRecipe] = {}
    tied = compat.tied_names(model)
    offset = 0
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in tied or not isinstance(tensor, torch.Tensor):
            continue
        recipe = _tensor_recipe(name, tensor, policy(name) or tensor.dtype, ())
        source = StoredTensor(
            name=name,
            dtype=recipe.dtype,
            shape=recipe.shape,
            path="",
            offset=offset,
            num_bytes=recipe.num_bytes,
        )
        tensors[name] = replace(recipe, pieces=(Piece(source=source),))
        offset += recipe.num_bytes
    shared = _resolve_ties(model, tensors, {})
    return ModelRecipe(tensors=tensors, conversions={}, tied=shared, self_made=frozenset())


def give_dtypes(model: PreTrainedModel, recipe: ModelRecipe) -> None:
    """Give the meta parameters of `model` the dtypes that their weights will have.

    Some models keep a few weights in fp32 and read a weight's dtype before the layer that owns it runs.
    """
    for name, tensor in recipe.tensors.items():
        path, _, attribute = name.rpartition(".")
        module, dtype = model.get_submodule(path), getattr(torch, tensor.dtype)
        place = module._buffers if attribute in module._buffers else module._parameters
        current = place[attribute]
        if current is not None and current.is_meta and current.dtype != dtype:
            meta = torch.empty(current.shape, dtype=dtype, device="meta")
            place[attribute] = (
                torch.nn.Parameter(meta, requires_grad=dtype.is_floating_point)
                if place is module._parameters
                else meta
            )
