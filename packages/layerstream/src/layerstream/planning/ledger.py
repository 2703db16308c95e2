"""Compute the ledger: how much device and host memory a configuration takes, line by line, in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..spec.options import Workload
from ..spec.plans import Granularity, LedgerKind, LedgerLine, MemoryTier, PlacementPlan, Residency
from ..spec.profiles import ActivationProfile, Machine, ModelProfile, UnitProfile
from .candidates import PAGE_BYTES, Configuration

CARRIED_WIDTHS = {Granularity.BLOCK: 4, Granularity.PART: 6}
"""Tensors of the residual stream's width that a suspended forward holds.

At the entry of a block they are the stream and its rotary tables; at the entry of a part, also what the
residual connection adds back. Between single layers it may hold anything up to the peak.
"""

WORKLOAD_KINDS = frozenset({LedgerKind.KV_CACHE, LedgerKind.KV_CACHE_GROWTH, LedgerKind.ACTIVATIONS})
"""Lines that depend on the workload; batches and scoring divide this memory by their own plans."""


def cache_bytes(activation: ActivationProfile, workload: Workload) -> int:
    """Return the bytes of the KV cache and recurrent state of all sequences at the longest context."""
    context = workload.context_tokens
    per_sequence = context * activation.cache_bytes_per_token + activation.state_bytes
    per_sequence += min(context, activation.window_tokens) * activation.window_bytes_per_token
    return math.ceil(workload.batch_size * per_sequence)


def cache_growth_bytes(activation: ActivationProfile, workload: Workload) -> int:
    """Return the bytes of the second copy that exists while the largest layer's cache grows."""
    return math.ceil(activation.cache_layer_share * cache_bytes(activation, workload))


def activation_bytes(activation: ActivationProfile, workload: Workload) -> int:
    """Return the bytes of activations at the peak of the prefill, the forward with the most tokens."""
    prompt = workload.prompt_tokens
    return forward_activation_bytes(activation, rows=workload.batch_size, tokens=prompt, context=prompt)


def forward_activation_bytes(activation: ActivationProfile, *, rows: int, tokens: int, context: int) -> int:
    """Return the bytes of activations at the peak of a forward whose tokens attend to `context` tokens."""
    linear = activation.bytes_per_token * rows * tokens
    squared = activation.bytes_per_token_squared * rows * tokens * context
    return math.ceil(activation.fixed_bytes + linear + squared)


def weight_copies(machine: Machine, replicas_per_device: int) -> int:
    """Return how many copies of the weights one device holds: on a CPU, all replicas use the same memory."""
    return 1 if machine.device_is_host else replicas_per_device


def device_lines(
    profile: ModelProfile,
    workload: Workload,
    machine: Machine,
    configuration: Configuration,
    resident_bytes: int,
    *,
    replicas_per_device: int = 1,
    draft_bytes: int = 0,
    prefix_bytes: int = 0,
) -> tuple[LedgerLine, ...]:
    """Return the device lines of a configuration.

    Args:
        profile: the model as numbers.
        workload: what will be run.
        machine: the machine; on a CPU device the read buffers count here.
        configuration: how the model is arranged.
        resident_bytes: the size of the decoder units that stay on the device.
        replicas_per_device: how many replicas run the workload on this device at once, each with its own
            activations and cache.
        draft_bytes: what a draft model takes, with its cache and activations.
        prefix_bytes: what a service's prefix cache may take; on an accelerator it is in host memory.

    Returns:
        The lines that are not 0.
    """
    # a tied head on the device is the embedding there, or part of the edges
    head_bytes = 0
    if profile.head and configuration.head_on_device and not profile.head_is_tied:
        head_bytes = profile.head.slot_bytes
    rest_bytes = {
        Granularity.PART: profile.parts_rest_bytes,
        Granularity.LAYER: profile.layers_rest_bytes,
    }.get(configuration.granularity, 0)
    embedding_bytes = profile.embedding_bytes if configuration.embedding is Residency.DEVICE else 0
    weights = {
        LedgerKind.EDGES: profile.edge_bytes + rest_bytes,
        LedgerKind.EMBEDDING: embedding_bytes,
        LedgerKind.HEAD: head_bytes,
        LedgerKind.RESIDENT_BLOCKS: resident_bytes,
        LedgerKind.SLOTS: configuration.num_slots * configuration.slot_bytes,
    }
    per_replica = {
        LedgerKind.ADAPTERS: profile.adapter_bytes,
        LedgerKind.KV_CACHE: cache_bytes(profile.activation, workload),
        LedgerKind.KV_CACHE_GROWTH: cache_growth_bytes(profile.activation, workload),
        LedgerKind.ACTIVATIONS: activation_bytes(profile.activation, workload),
    }
    copies = weight_copies(machine, replicas_per_device)
    sizes = {kind: copies * size for kind, size in weights.items()}
    sizes |= {kind: replicas_per_device * size for kind, size in per_replica.items()}
    sizes[LedgerKind.DRAFT] = draft_bytes
    if machine.device_is_host:
        sizes |= {LedgerKind.PREFIX_CACHE: prefix_bytes} | _reader_sizes(profile)
    sizes[LedgerKind.RUNTIME] = machine.runtime_bytes
    return _lines(MemoryTier.DEVICE, sizes)


def host_lines(
    profile: ModelProfile,
    machine: Machine,
    configuration: Configuration,
    num_staging: int,
    host_unit_bytes: int,
    *,
    prefix_bytes: int = 0,
) -> tuple[LedgerLine, ...]:
    """Return the host lines of a configuration; none on a CPU device, where all memory is device memory.

    Args:
        profile: the model as numbers.
        machine: the machine.
        configuration: how the model is arranged.
        num_staging: staging buffers between disk and slots.
        host_unit_bytes: the size of the units that live in host memory (0 for a head tied to an embedding
            there).
        prefix_bytes: what a service's prefix cache may take.
    """
    if machine.device_is_host:
        return ()
    once_loaded = {
        LedgerKind.EMBEDDING: _host_embedding_bytes(profile, configuration),
        LedgerKind.HOST_BLOCKS: host_unit_bytes,
        LedgerKind.STAGING: num_staging * configuration.staging_bytes,
        LedgerKind.PREFIX_CACHE: prefix_bytes,
    }
    sizes = once_loaded | _reader_sizes(profile)
    # The buffers that load the weights of the device are gone before any of this is taken.
    loading_bytes = profile.loading_buffer_bytes - sum(once_loaded.values())
    sizes[LedgerKind.READ_BUFFERS] = max(profile.read_buffer_bytes, loading_bytes)
    return _lines(MemoryTier.HOST, sizes)


def fixed_host_bytes(profile: ModelProfile, configuration: Configuration, prefix_bytes: int = 0) -> int:
    """Return the host memory beside that of units and staging buffers, once everything is loaded."""
    readers = sum(_reader_sizes(profile).values())
    return _host_embedding_bytes(profile, configuration) + readers + prefix_bytes


def _host_embedding_bytes(profile: ModelProfile, configuration: Configuration) -> int:
    # It begins and ends anywhere within a page of its file.
    is_there = configuration.embedding is Residency.HOST
    return profile.embedding_bytes + 2 * PAGE_BYTES if is_there else 0


def total_bytes(lines: Iterable[LedgerLine]) -> int:
    """Return the sum of `lines`."""
    return sum(line.num_bytes for line in lines)


def all_unit_bytes(units: Sequence[UnitProfile]) -> int:
    """Return the slot bytes that all of `units` take, alignment included."""
    return sum(unit.slot_bytes for unit in units)


def all_host_bytes(units: Sequence[UnitProfile]) -> int:
    """Return the host memory that all of `units` take, alignment included."""
    return sum(unit.host_bytes for unit in units)


def room_bytes(plan: PlacementPlan) -> int:
    """Return what a plan's budget leaves to each replica after weights, slots and buffers."""
    fixed_bytes = total_bytes(
        line
        for line in plan.ledger.lines
        if line.where is MemoryTier.DEVICE and line.kind not in WORKLOAD_KINDS
    )
    replicas_per_device = max(map(plan.devices.count, plan.devices))
    return (plan.ledger.device_budget_bytes - fixed_bytes) // replicas_per_device


def _reader_sizes(profile: ModelProfile) -> dict[LedgerKind, int]:
    return {
        LedgerKind.READ_BUFFERS: profile.read_buffer_bytes,
        LedgerKind.CONVERSION: profile.conversion_bytes,
    }


def _lines(where: MemoryTier, sizes: dict[LedgerKind, int]) -> tuple[LedgerLine, ...]:
    return tuple(LedgerLine(kind=kind, where=where, num_bytes=size) for kind, size in sizes.items() if size)
