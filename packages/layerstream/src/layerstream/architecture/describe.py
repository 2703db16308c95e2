"""Describe a model as plain numbers and as recipes of units, for planning and for streaming.

Room: architecture. This is its last step: it turns modules into names and bytes, and returns no module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from transformers import PreTrainedModel

from ..checkpoint.reader import CHUNK_BYTES, READER_THREADS, loading_chunk_bytes
from ..spec.plans import Granularity
from ..spec.profiles import (
    HEAD_SLICE_ROWS,
    ActivationProfile,
    ModelProfile,
    StoredTensor,
    TensorRecipe,
    UnitProfile,
    UnitRecipe,
)
from ..spec.sizes import KIB, MIB, dtype_bytes
from .blocks import find_blocks, find_head, find_row_tables
from .linears import linear_shapes
from .meta_forward import ForwardMemory, measure_forward
from .recipe import ModelRecipe
from .shared_prefix import why_not_shared
from .weight_usage import WeightUsage

_PROMPT_TOKENS = (64, 128, 256)
_EDGE_BYTES = 64 * KIB
"""Allowance for a reader thread whose reads land in place: it buffers only the pages at a read's edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnits:
    """The model's tensors, sorted into units that can be streamed.

    Attributes:
        streamed: by granularity, the units of the blocks in visiting order.
        blocks_of: by unit name, the index of its block.
        head: the head's unit; None when the head cannot be a unit.
        head_rows: rows of the head when it may be visited in slices; else 0.
        head_is_tied: the head shares its weight with a row table.
        row_tables: embeddings that may be looked up row by row.
        edges: by granularity, everything that is neither in a unit nor in a row table nor in the head.
    """

    streamed: Mapping[Granularity, tuple[UnitRecipe, ...]]
    blocks_of: Mapping[str, int]
    head: UnitRecipe | None
    head_rows: int
    head_is_tied: bool
    row_tables: tuple[TensorRecipe, ...]
    edges: Mapping[Granularity, UnitRecipe]

    def head_slices(self, count: int) -> tuple[UnitRecipe, ...]:
        """Return the head's unit cut into `count` vocabulary slices, or fewer when the rows run out.

        One slice is the whole head.
        """
        if self.head is None or count == 1:
            return () if self.head is None else (self.head,)
        rows = -(-self.head_rows // count // HEAD_SLICE_ROWS) * HEAD_SLICE_ROWS
        starts = range(0, self.head_rows, rows)
        return tuple(_slice_rows(self.head, start, min(rows, self.head_rows - start)) for start in starts)


def sort_into_units(model: PreTrainedModel, recipe: ModelRecipe, usage: WeightUsage | None) -> ModelUnits:
    """Sort every tensor of the model into blocks, smaller units, head, row tables and edges.

    Args:
        model: the skeleton.
        recipe: how its tensors are made.
        usage: what a forward calls and where it reads each weight; None when it could not run on shapes (then
            blocks are the only units, and no table is looked up row by row).

    Raises:
        BlocksNotFoundError: there is nothing to stream.
    """
    block_paths = tuple(path for path, _ in find_blocks(model))
    blocks = tuple(_unit(path, _moving_with(path, recipe, usage), recipe) for path in block_paths)
    in_blocks = {tensor.name for unit in blocks for tensor in unit.tensors}
    tables = () if usage is None else _row_tables(model, recipe, block_paths, usage)
    head = _head_unit(model, recipe, in_blocks, usage)
    head_weight = None if head is None else f"{head.name}.weight"
    in_units = in_blocks | {t.name for t in tables} | ({t.name for t in head.tensors} if head else set())
    outside = [tensor for name, tensor in recipe.tensors.items() if name not in in_units]
    streamed, edges = {Granularity.BLOCK: blocks}, {Granularity.BLOCK: _unit("", outside, recipe)}
    for granularity, units in _finer_units(recipe, blocks, usage).items():
        covered = {tensor.name for unit in units for tensor in unit.tensors}
        rest = [tensor for unit in blocks for tensor in unit.tensors if tensor.name not in covered]
        streamed[granularity], edges[granularity] = units, _unit("", outside + rest, recipe)
    blocks_of = {
        unit.name: _block_of(unit.name, block_paths) for units in streamed.values() for unit in units
    }
    return ModelUnits(
        streamed=streamed,
        blocks_of=blocks_of,
        head=head,
        head_rows=_sliceable_rows(model, head),
        head_is_tied=head_weight is not None
        and any(_same_source(recipe.tensors[head_weight], table) for table in tables),
        row_tables=tables,
        edges=edges,
    )


def _moving_with(path: str, recipe: ModelRecipe, usage: WeightUsage | None) -> list[TensorRecipe]:
    """Return the tensors under `path` that are needed only while that module runs."""
    under = [tensor for name, tensor in recipe.tensors.items() if name.startswith(f"{path}.")]
    return [tensor for tensor in under if usage is None or usage.moves_with(tensor.name, path)]


def _unit(name: str, tensors: Iterable[TensorRecipe], recipe: ModelRecipe) -> UnitRecipe:
    chosen = tuple(tensors)
    converted = {tensor.name for tensor in chosen if not tensor.pieces}
    conversions = {id(recipe.conversions[target]): recipe.conversions[target] for target in converted}
    return UnitRecipe(name=name, tensors=chosen, conversions=tuple(conversions.values()))


def _block_of(name: str, block_paths: tuple[str, ...]) -> int:
    return next(
        index for index, path in enumerate(block_paths) if name == path or name.startswith(f"{path}.")
    )


def _row_tables(
    model: PreTrainedModel, recipe: ModelRecipe, block_paths: tuple[str, ...], usage: WeightUsage
) -> tuple[TensorRecipe, ...]:
    paths = [
        path for path in find_row_tables(model, block_paths) if usage.values_move_with(f"{path}.weight", path)
    ]
    weights = [recipe.tensors[f"{path}.weight"] for path in paths if f"{path}.weight" in recipe.tensors]
    return tuple(tensor for tensor in weights if len(tensor.pieces) == 1)


def _head_unit(
    model: PreTrainedModel, recipe: ModelRecipe, in_blocks: set[str], usage: WeightUsage | None
) -> UnitRecipe | None:
    path = find_head(model)
    tensors = _moving_with(path, recipe, usage) if path else []
    if not path or not tensors or any(tensor.name in in_blocks for tensor in tensors):
        return None
    return _unit(path, tensors, recipe)


def _sliceable_rows(model: PreTrainedModel, head: UnitRecipe | None) -> int:
    """Return the rows of a head that is a plain linear layer of whole stored tensors; 0 for any other."""
    if head is None or any(len(tensor.pieces) != 1 for tensor in head.tensors):
        return 0
    module = model.get_submodule(head.name)
    names = {tensor.name.rpartition(".")[2] for tensor in head.tensors}
    is_plain = type(module).__name__ == "Linear" and names <= {"weight", "bias"}
    return module.weight.shape[0] if is_plain else 0


def _same_source(one: TensorRecipe, other: TensorRecipe) -> bool:
    return one.pieces == other.pieces and one.dtype == other.dtype


def _slice_rows(head: UnitRecipe, start: int, rows: int) -> UnitRecipe:
    tensors = []
    for tensor in head.tensors:
        piece = tensor.pieces[0]
        width = prod(tensor.shape[1:])
        source = _rows_of(piece.source, start, rows)
        tensors.append(
            replace(
                tensor,
                shape=(rows, *tensor.shape[1:]),
                num_bytes=dtype_bytes(tensor.dtype, rows * width),
                pieces=(replace(piece, source=source),),
            )
        )
    name = f"{head.name}[{start}:{start + rows}]"
    return UnitRecipe(name=name, tensors=tuple(tensors), slice_of=head.name)


def _rows_of(source: StoredTensor, start: int, rows: int) -> StoredTensor:
    row_bytes = source.num_bytes // source.shape[0]
    return replace(
        source,
        shape=(rows, *source.shape[1:]),
        offset=source.offset + start * row_bytes,
        num_bytes=rows * row_bytes,
    )


def _finer_units(
    recipe: ModelRecipe, blocks: tuple[UnitRecipe, ...], usage: WeightUsage | None
) -> dict[Granularity, tuple[UnitRecipe, ...]]:
    """Split blocks into parts and single layers, where these are called in the middle of their block."""
    if usage is None:
        return {}
    finer = {}
    for granularity, depth in ((Granularity.PART, 1), (Granularity.LAYER, None)):
        units = [unit for block in blocks for unit in _split(recipe, block, usage, depth)]
        covered = sum(tensor.num_bytes for unit in units for tensor in unit.tensors)
        total = sum(tensor.num_bytes for block in blocks for tensor in block.tensors)
        largest = max((_weight_bytes(unit) for unit in units), default=0)
        # The rest stays on the device permanently, so splitting must be worth it.
        if covered >= 0.98 * total and largest < max(_weight_bytes(block) for block in blocks):
            finer[granularity] = tuple(units)
    return finer


def _split(recipe: ModelRecipe, block: UnitRecipe, usage: WeightUsage, depth: int | None) -> list[UnitRecipe]:
    """Return the units within one block in calling order; small ones are left out and stay resident."""
    chosen, seen = [], set()
    floor = _weight_bytes(block) // 256
    counts = Counter(path for path in usage.calls if path.startswith(f"{block.name}."))
    for path in counts:
        inner = path[len(block.name) + 1 :]
        tensors = [
            t
            for t in _moving_with(path, recipe, usage)
            if depth is not None or "." not in t.name[len(path) + 1 :]
        ]
        tensors = [tensor for tensor in tensors if tensor.name not in seen]
        if counts[path] != 1 or (depth is not None and inner.count(".") >= depth) or not tensors:
            continue
        unit = _unit(path, tensors, recipe)
        # A conversion that also makes tensors of another unit cannot be split.
        whole = all(target in {t.name for t in tensors} for c in unit.conversions for target in c.targets)
        if whole and _weight_bytes(unit) >= floor:
            chosen.append(unit)
            seen |= {tensor.name for tensor in tensors}
    return chosen


def _weight_bytes(unit: UnitRecipe) -> int:
    return sum(tensor.num_bytes for tensor in unit.tensors)


def measure_forwards(model: PreTrainedModel, chunk_tokens: int | None = None) -> tuple[ForwardMemory, ...]:
    """Return the memory of a forward at three prompt lengths; empty when it cannot run without values.

    Args:
        model: the skeleton.
        chunk_tokens: the chunk of chunked prefill, if any; the prompts are then longer than one chunk.
    """
    lengths = _PROMPT_TOKENS if chunk_tokens is None else tuple(n * chunk_tokens for n in (2, 3, 4))
    forwards = []
    for num_tokens in lengths:
        memory = measure_forward(model, num_tokens)
        if memory is None:
            return ()
        forwards.append(memory)
    return tuple(forwards)


def describe_model(
    model: PreTrainedModel,
    units: ModelUnits,
    forwards: tuple[ForwardMemory, ...],
    *,
    name: str,
    dtype: str,
    slot_bytes: Callable[[UnitRecipe], int],
    host_bytes: Callable[[UnitRecipe], int],
) -> ModelProfile:
    """Return the model as numbers.

    Args:
        model: the skeleton.
        units: its tensors in units.
        forwards: the memory of forwards at three prompt lengths, or none (then the memory other than weights
            is estimated from the config's widths).
        name: path or Hub id.
        dtype: the run dtype.
        slot_bytes: returns the space that a unit takes in a slot, including alignment.
        host_bytes: returns the space that it takes in host memory, including alignment.
    """

    def profile(unit: UnitRecipe) -> UnitProfile:
        return _unit_profile(unit, units.blocks_of.get(unit.name), slot_bytes(unit), host_bytes(unit))

    config = model.config.get_text_config(decoder=True)
    edges = {granularity: slot_bytes(unit) for granularity, unit in units.edges.items()}
    edge_bytes = edges[Granularity.BLOCK]
    parameters = {id(p): p.numel() for p in model.parameters()}
    tied = (
        sum(prod(t.shape) for t in units.head.tensors if t.name.endswith(".weight"))
        if units.head and units.head_is_tied
        else 0
    )
    block_bytes = sum(_weight_bytes(unit) for unit in units.streamed[Granularity.BLOCK])
    return ModelProfile(
        name=name,
        model_type=model.config.model_type,
        dtype=dtype,
        num_parameters=sum(parameters.values()) - tied,
        blocks=tuple(profile(unit) for unit in units.streamed[Granularity.BLOCK]),
        parts=tuple(profile(unit) for unit in units.streamed.get(Granularity.PART, ())),
        layers=tuple(profile(unit) for unit in units.streamed.get(Granularity.LAYER, ())),
        head=None if units.head is None else profile(units.head),
        head_rows=units.head_rows,
        head_is_tied=units.head_is_tied,
        embedding_bytes=sum(table.num_bytes for table in units.row_tables),
        embedding_row_bytes=sum(table.num_bytes // table.shape[0] for table in units.row_tables),
        edge_bytes=edge_bytes,
        parts_rest_bytes=edges.get(Granularity.PART, edge_bytes) - edge_bytes,
        layers_rest_bytes=edges.get(Granularity.LAYER, edge_bytes) - edge_bytes,
        conversion_bytes=_conversion_bytes(units),
        read_buffer_bytes=READER_THREADS * (CHUNK_BYTES if _needs_read_buffers(units) else _EDGE_BYTES),
        loading_buffer_bytes=READER_THREADS * loading_chunk_bytes(block_bytes),
        hidden_size=getattr(config, "hidden_size", 0),
        vocab_size=getattr(config, "vocab_size", 0) or 0,
        linears=linear_shapes(model, units.streamed[Granularity.BLOCK]),
        draft_refusal=why_not_shared(model) or "",
        activation=fit_activation(forwards) if forwards else _assume_activation(config, units),
    )


def _unit_profile(unit: UnitRecipe, block: int | None, slot_bytes: int, host_bytes: int) -> UnitProfile:
    pieces = [piece.source for tensor in unit.tensors for piece in tensor.pieces]
    sources = {source.name: source for c in unit.conversions for source in c.sources}
    return UnitProfile(
        name=unit.name,
        block=block,
        weight_bytes=_weight_bytes(unit),
        slot_bytes=slot_bytes,
        host_bytes=host_bytes,
        read_bytes=sum(source.num_bytes for source in (*pieces, *sources.values())),
        num_parameters=sum(prod(tensor.shape) for tensor in unit.tensors),
    )


def _all_units(units: ModelUnits) -> list[UnitRecipe]:
    return [unit for streamed in units.streamed.values() for unit in streamed] + list(units.edges.values())


def _needs_read_buffers(units: ModelUnits) -> bool:
    """Return whether a tensor is not stored as it is used, so that its bytes pass through reader buffers."""
    tensors = [tensor for unit in _all_units(units) for tensor in unit.tensors] + list(units.row_tables)
    return any(len(t.pieces) != 1 or t.pieces[0].source.dtype != t.dtype for t in tensors)


def _conversion_bytes(units: ModelUnits) -> int:
    """Return what the largest conversion holds at once: its sources and its results."""
    conversions = [conversion for unit in _all_units(units) for conversion in unit.conversions]
    return max((2 * sum(source.num_bytes for source in c.sources) for c in conversions), default=0)


def fit_activation(forwards: tuple[ForwardMemory, ...]) -> ActivationProfile:
    """Fit a parabola through the memory at three lengths, weights and cache excluded."""
    x0, x1, x2 = (memory.num_tokens for memory in forwards)
    y0, y1, y2 = (memory.peak_bytes - memory.cache_bytes - memory.window_bytes for memory in forwards)
    slope01, slope12 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    square = max(0.0, (slope12 - slope01) / (x2 - x0))
    slope = max(0.0, slope12 - square * (x1 + x2))
    _, middle, longest = forwards
    cache_bytes_per_token = (longest.cache_bytes - middle.cache_bytes) / (x2 - x1)
    total_cache_bytes = longest.cache_bytes + longest.window_bytes
    return ActivationProfile(
        fixed_bytes=max(0, round(y2 - slope * x2 - square * x2 * x2)),
        bytes_per_token=slope,
        bytes_per_token_squared=square,
        cache_bytes_per_token=cache_bytes_per_token,
        window_bytes_per_token=longest.window_bytes / x2,
        window_tokens=longest.window_tokens,
        state_bytes=max(0, round(longest.cache_bytes - cache_bytes_per_token * x2)),
        cache_layer_share=longest.largest_layer_bytes / total_cache_bytes if total_cache_bytes else 1.0,
    )


def _assume_activation(config: object, units: ModelUnits) -> ActivationProfile:
    """Estimate from the config's widths: per token 8 residual streams, 4 inner widths, keys and values."""
    element_bytes = dtype_bytes(units.streamed[Granularity.BLOCK][0].tensors[0].dtype)
    hidden = _width(config, "hidden_size")
    inner = max(*(_width(config, name) for name in ("intermediate_size", "ffn_dim", "n_inner")), 4 * hidden)
    experts = max(1, _width(config, "num_experts_per_tok"))
    layers = len(units.streamed[Granularity.BLOCK])
    return ActivationProfile(
        fixed_bytes=2 * MIB + 8 * _width(config, "vocab_size"),
        bytes_per_token=float(element_bytes * (8 * hidden + 4 * inner * experts)),
        cache_bytes_per_token=float(2 * hidden * element_bytes * layers),
        cache_layer_share=1 / layers,
    )


def _width(config: object, name: str) -> int:
    """Return a number of the config; the largest where it has one for each layer, 0 where it has none."""
    value = getattr(config, name, 0)
    if isinstance(value, (list, tuple)):
        return max(value, default=0)
    return value if isinstance(value, int) else 0
