"""The ledger: what a configuration takes of device and host memory, line by line, in bytes.

Room: planning (pure: no torch, no I/O). Knows sizes; does not know time, nor which configuration is best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..spec.options import Workload
from ..spec.plans import Granularity, LedgerLine, PlacementPlan, Residency
from ..spec.profiles import ActivationProfile, Machine, ModelProfile, UnitProfile
from .candidates import Configuration

CARRIED_WIDTHS = {Granularity.BLOCK: 4, Granularity.PART: 6}
"""Tensors of the residual stream's width that a suspended forward holds: at a block's entry the stream and its rotary tables, at a
part's entry what the residual connection adds back too. Between single layers it may hold anything up to the peak."""


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
    """Return the bytes of activations at the peak of the prefill, where the most tokens are in one forward."""
    prompt = workload.prompt_tokens
    tokens = workload.batch_size * prompt
    linear = activation.bytes_per_token * tokens
    return math.ceil(activation.fixed_bytes + linear + activation.bytes_per_token_squared * tokens * prompt)


def weight_copies(machine: Machine, replicas: int) -> int:
    """Return how often one device holds what its `replicas` replicas hold: on a CPU all look into the same memory."""
    return 1 if machine.device_is_host else replicas


def device_lines(
    profile: ModelProfile,
    workload: Workload,
    machine: Machine,
    configuration: Configuration,
    resident_bytes: int,
    *,
    replicas: int = 1,
) -> tuple[LedgerLine, ...]:
    """Return the device lines of a configuration.

    Args:
        profile: the model as numbers.
        workload: what will be run.
        machine: the machine; on a CPU device the read buffers count here.
        configuration: how the model is arranged.
        resident_bytes: room for the decoder's units that stay on the device.
        replicas: how often the workload runs on this device at the same time, each time with activations and a cache of its own.

    Returns:
        The lines in bytes, without those of 0.
    """
    # a tied head on the device is the embedding there, or lies in the edges
    head = (
        profile.head.slot_bytes
        if profile.head and configuration.head_on_device and not profile.head_is_tied
        else 0
    )
    activation = profile.activation
    rest = {Granularity.PART: profile.parts_rest_bytes, Granularity.LAYER: profile.layers_rest_bytes}.get(
        configuration.granularity, 0
    )
    copies = weight_copies(machine, replicas)
    return _lines(
        "device",
        {
            "edges (norms, buffers)": copies * (profile.edge_bytes + rest),
            "input embedding": copies * profile.embedding_bytes
            if configuration.embedding is Residency.DEVICE
            else 0,
            "output head": copies * head,
            "resident blocks": copies * resident_bytes,
            "slots": copies * configuration.num_slots * configuration.slot_bytes,
            "KV cache": replicas * cache_bytes(activation, workload),
            "KV cache growth": replicas * cache_growth_bytes(activation, workload),
            "activations": replicas * activation_bytes(activation, workload),
            "read buffers": profile.read_buffer_bytes if machine.device_is_host else 0,
            "conversion": profile.conversion_bytes if machine.device_is_host else 0,
            "runtime and allocator": machine.runtime_bytes,
        },
    )


def host_lines(
    profile: ModelProfile,
    machine: Machine,
    configuration: Configuration,
    num_staging: int,
    host_unit_bytes: int,
) -> tuple[LedgerLine, ...]:
    """Return the host lines of a configuration; none on a CPU device, where all memory is the device's.

    Args:
        profile: the model as numbers.
        machine: the machine.
        configuration: how the model is arranged.
        num_staging: pinned buffers between disk and slots, each as large as a slot.
        host_unit_bytes: room for the units that live in host memory (a tied head beside a host embedding counts 0).
    """
    if machine.device_is_host:
        return ()
    return _lines(
        "host",
        {
            "input embedding": profile.embedding_bytes if configuration.embedding is Residency.HOST else 0,
            "blocks in host memory": host_unit_bytes,
            "staging": num_staging * configuration.slot_bytes,
            "read buffers": profile.read_buffer_bytes,
            "conversion": profile.conversion_bytes,
        },
    )


def total_bytes(lines: Iterable[LedgerLine]) -> int:
    """Return the sum of `lines`."""
    return sum(line.num_bytes for line in lines)


def all_unit_bytes(units: Sequence[UnitProfile]) -> int:
    """Return the room that all of `units` need together, alignment included."""
    return sum(unit.slot_bytes for unit in units)


def _lines(where: str, sizes: dict[str, int]) -> tuple[LedgerLine, ...]:
    return tuple(
        LedgerLine(purpose=purpose, where=where, num_bytes=size) for purpose, size in sizes.items() if size
    )


def room_bytes(plan: PlacementPlan) -> int:
    """Return what a plan's budget leaves on each device beside weights, slots and buffers; replicas of one device share it."""
    tokens = ("KV cache", "KV cache growth", "activations")
    fixed = sum(
        line.num_bytes for line in plan.ledger.lines if line.where == "device" and line.purpose not in tokens
    )
    return (plan.ledger.device_budget_bytes - fixed) // plan.devices.count(plan.devices[0])
