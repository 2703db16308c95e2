"""Profiles: the facts about a checkpoint, a model and a machine, as frozen data without torch or I/O.

Room: spec. The architecture room makes `ModelProfile` and `UnitRecipe`, `machine` makes `Machine`; planning
and streaming only read them. A dtype is torch's name without the `torch.` prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .serialize import JsonValue

HEAD_SLICE_ROWS = 64
"""A head's slices have a multiple of this many rows, so that kernels block them like the whole head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor of a checkpoint lies on disk.

    Attributes:
        name: its name in the file.
        dtype: torch's dtype name.
        shape: its shape, row-major.
        path: the safetensors file.
        offset: its first byte, counted from the start of the file.
        num_bytes: its length.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One stored tensor that lands whole, as one contiguous run, inside a model tensor.

    Attributes:
        source: the stored tensor; cast to the model tensor's dtype where the two differ.
        start_element: where it starts in the model tensor, in elements.
    """

    source: StoredTensor
    start_element: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecipe:
    """One tensor of the model and the stored tensors that it is made of.

    Attributes:
        name: its dotted name in the model.
        dtype: its dtype while the model runs.
        shape: its shape.
        num_bytes: its size in that dtype.
        pieces: the stored tensors it is made of; empty when a `Conversion` makes it.
        is_buffer: it is a persistent buffer, not a parameter.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    pieces: tuple[Piece, ...] = ()
    is_buffer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A layout change that does more than place pieces: it transposes, interleaves, dequantizes, ... weights.

    Attributes:
        targets: the names of the model tensors it makes.
        sources: the stored tensors it needs.
        convert: called with the stored tensors by name (torch tensors in their stored dtype); returns model
            tensors by name.
    """

    targets: tuple[str, ...]
    sources: tuple[StoredTensor, ...]
    convert: Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecipe:
    """Everything needed to make one unit's tensors from the checkpoint.

    Attributes:
        name: the unit's name: the module's path in the model, with the rows behind it for a slice.
        tensors: the tensors of the unit.
        conversions: how the tensors without pieces are made.
        slice_of: the name of the unit whose rows this one is a slice of; None for a whole unit.
    """

    name: str
    tensors: tuple[TensorRecipe, ...]
    conversions: tuple[Conversion, ...] = ()
    slice_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitProfile:
    """The sizes of one unit.

    Attributes:
        name: the module's path in the model.
        block: the index of the decoder block it belongs to; None for the head.
        weight_bytes: its tensors in the run dtype, which is what moves to the device.
        slot_bytes: the space it takes in a slot, including alignment.
        host_bytes: the space it takes in host memory, including alignment.
        read_bytes: what is read from the disk to make it; differs from `weight_bytes` when the dtype on disk
            does.
        num_parameters: its number of elements.
    """

    name: str
    block: int | None
    weight_bytes: int
    slot_bytes: int
    host_bytes: int
    read_bytes: int
    num_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationProfile:
    """How the memory other than weights grows, in bytes: a parabola in the number of tokens.

    It goes through three simulated forwards. The number of tokens is batch size x tokens in one forward.
    Logits are included as transformers' `generate()` computes them, for the last position only. The cache
    grows linearly.

    Attributes:
        fixed_bytes: what one forward takes at zero tokens.
        bytes_per_token: what each token in the forward adds at the peak.
        bytes_per_token_squared: what attention that holds the score matrix adds for each of batch x tokens x
            context.
        cache_bytes_per_token: KV cache of one token in all full-attention layers together.
        window_bytes_per_token: KV cache of one token in sliding-window layers, for at most `window_tokens`
            tokens.
        window_tokens: the sliding window; 0 without one.
        state_bytes: recurrent state of one sequence.
        cache_layer_share: the largest layer's share of the cache; growing a layer copies it once.
    """

    fixed_bytes: int
    bytes_per_token: float
    bytes_per_token_squared: float = 0.0
    cache_bytes_per_token: float = 0.0
    window_bytes_per_token: float = 0.0
    window_tokens: int = 0
    state_bytes: int = 0
    cache_layer_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """Linear layers of one shape in the decoder blocks.

    Attributes:
        rows: their outputs.
        columns: their inputs.
        count: how many there are.
    """

    rows: int
    columns: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile(JsonValue):
    """A model as numbers: everything that planning and simulation need.

    Attributes:
        name: its path or Hub id.
        model_type: transformers' name of the architecture.
        dtype: the run dtype.
        num_parameters: all parameters, ties counted once.
        blocks: the decoder blocks in visiting order, each as one unit.
        parts: the same weights in smaller units (children of blocks); empty when the blocks cannot be split.
        layers: the same weights in the smallest units (single layers); empty when the blocks cannot be split.
        head: the language-model head as a unit; None when it has no separate weight to stream.
        head_rows: vocabulary rows of the head when it is a plain linear layer and may be streamed in slices;
            0 otherwise.
        head_is_tied: the head's weight is the embedding's.
        embedding_bytes: the input embedding; 0 when it cannot be looked up row by row (then it is in
            `edge_bytes`).
        embedding_row_bytes: one row of the embedding.
        edge_bytes: everything else outside the blocks, always on the device.
        parts_rest_bytes: what stays on the device in addition when parts are the units (small tensors outside
            every part).
        layers_rest_bytes: the same when single layers are the units.
        conversion_bytes: host memory for layout conversions that do more than place tensors side by side.
        read_buffer_bytes: host memory of the reader threads: large when bytes are cast or moved on the way,
            else a few pages.
        loading_buffer_bytes: the same while weights that stay on an accelerator are loaded.
        hidden_size: the width of the residual stream.
        vocab_size: the number of tokens in the vocabulary.
        adapter_bytes: all adapters, always on the device.
        linears: the linear layers of the blocks, which a copy with fewer bits makes smaller.
        draft_refusal: why drafted tokens cannot be verified; empty if they can.
        activation: the memory other than weights.
    """

    name: str
    model_type: str
    dtype: str
    num_parameters: int
    blocks: tuple[UnitProfile, ...]
    parts: tuple[UnitProfile, ...] = ()
    layers: tuple[UnitProfile, ...] = ()
    head: UnitProfile | None = None
    head_rows: int = 0
    head_is_tied: bool = False
    embedding_bytes: int = 0
    embedding_row_bytes: int = 0
    edge_bytes: int = 0
    parts_rest_bytes: int = 0
    layers_rest_bytes: int = 0
    conversion_bytes: int = 0
    read_buffer_bytes: int = 32 * 1024**2
    loading_buffer_bytes: int = 8 * 1024**2
    hidden_size: int = 0
    vocab_size: int = 0
    adapter_bytes: int = 0
    linears: tuple[LinearShape, ...] = ()
    draft_refusal: str = ""
    activation: ActivationProfile

    @property
    def weight_bytes(self) -> int:
        """The size of all weights in the run dtype, ties counted once."""
        head = 0 if self.head is None or self.head_is_tied else self.head.weight_bytes
        return sum(unit.weight_bytes for unit in self.blocks) + self.embedding_bytes + self.edge_bytes + head


class HostPinning(Enum):
    """Which host memory a device's driver pins, so that copies from it are fast and asynchronous."""

    ALL = "all"
    """Any, where it is; devices that need no pinned memory count here too."""

    STAGING = "staging"
    """Staging buffers only: units in host memory pass through them."""

    ROUNDED = "rounded"
    """As `STAGING`, and each buffer is rounded up to a power of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine(JsonValue):
    """A machine as numbers, measured or assumed.

    Attributes:
        name: its name in reports.
        device: torch device string, such as `cpu` or `cuda:0`.
        device_memory_bytes: free memory on the compute device (on a CPU: the same as `host_memory_bytes`).
        host_memory_bytes: free host memory.
        disk_bytes_per_s: rate of sequential reads from a cold disk.
        copy_bytes_per_s: rate of copies from pinned host memory to the device.
        pageable_bytes_per_s: rate of copies from other host memory into pinned staging buffers.
        host_pinning: which host memory is pinned.
        memory_bytes_per_s: rate of reads of device memory; bounds a forward of few tokens.
        flops_per_s: rate of matrix multiplication in the run dtype; bounds a forward of many tokens.
        runtime_bytes: device memory that the runtime itself takes (context, workspaces, allocator slack).
        measured: False when a number is assumed, not measured.
    """

    name: str = "this machine"
    device: str = "cpu"
    device_memory_bytes: int
    host_memory_bytes: int
    disk_bytes_per_s: float = 2.0e9
    copy_bytes_per_s: float = 12.0e9
    pageable_bytes_per_s: float = 9.0e9
    host_pinning: HostPinning = HostPinning.ALL
    memory_bytes_per_s: float = 20.0e9
    flops_per_s: float = 2.0e11
    runtime_bytes: int = 0
    measured: bool = True

    @property
    def device_is_host(self) -> bool:
        """Whether device and host share one memory."""
        return self.device.split(":")[0] == "cpu"
