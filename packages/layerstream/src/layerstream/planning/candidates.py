"""List the configurations of one model that are worth considering.

Decides which combinations of unit size, slots, embedding and head make sense, not whether they fit or what
they cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..spec.plans import Granularity, Residency
from ..spec.profiles import HEAD_SLICE_ROWS, ModelProfile, UnitProfile
from ..spec.sizes import align_up, rounded_up

SLOT_COUNTS = (2, 3)
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to arrange a model, before units fill the memory that is left.

    Attributes:
        granularity: the size of a unit.
        num_slots: device buffers for streamed units; 0 when every unit stays on the device.
        slot_bytes: the size of one slot; 0 without slots.
        staging_bytes: the size of one staging buffer; 0 without slots.
        embedding: where the input embedding's rows are looked up; None when it is not row-addressable.
        head_on_device: the whole head stays on the device.
        head_slices: the number of vocabulary slices in which a streamed head is visited.
    """

    granularity: Granularity
    num_slots: int
    slot_bytes: int
    staging_bytes: int
    embedding: Residency | None
    head_on_device: bool
    head_slices: int = 1


def units_at(profile: ModelProfile, granularity: Granularity) -> tuple[UnitProfile, ...]:
    """Return the decoder's units of one size in visiting order; empty if the model has none."""
    return {
        Granularity.BLOCK: profile.blocks,
        Granularity.PART: profile.parts,
        Granularity.LAYER: profile.layers,
    }[granularity]


def visited_units(profile: ModelProfile, granularity: Granularity) -> tuple[UnitProfile, ...]:
    """Return every unit that a sweep visits, in order: the decoder's units of one size, then the head."""
    head = () if profile.head is None else (profile.head,)
    return units_at(profile, granularity) + head


def head_slice_bytes(head: UnitProfile, rows: int, slices: int) -> int:
    """Return the bytes that a slot needs for one of `slices` vocabulary slices of a head of `rows` rows.

    A slice may begin and end anywhere within a page of the file, so both ends are extended to whole pages.
    """
    if slices == 1:
        return head.slot_bytes
    slice_rows = min(rows, align_up(-(-rows // slices), HEAD_SLICE_ROWS))
    return align_up(-(-head.slot_bytes * slice_rows // rows), PAGE_BYTES) + PAGE_BYTES


def choose_head_slices(profile: ModelProfile, largest_bytes: int) -> int:
    """Return the fewest slices, a power of two, with which the head fits a slot of `largest_bytes`.

    A head that cannot be sliced, or that slicing would not make smaller, gives 1.
    """
    if profile.head is None or not profile.head_rows:
        return 1
    slices = 1
    while (
        head_slice_bytes(profile.head, profile.head_rows, slices) > largest_bytes
        and slices * 2 * HEAD_SLICE_ROWS <= profile.head_rows
    ):
        slices *= 2
    # a slice smaller than a page can take more memory than the whole head
    return (
        slices if head_slice_bytes(profile.head, profile.head_rows, slices) < profile.head.slot_bytes else 1
    )


def enumerate_configurations(
    profile: ModelProfile,
    *,
    device_is_host: bool,
    allow_sliced_head: bool = False,
    rounds_staging: bool = False,
) -> Iterator[Configuration]:
    """Yield every sensible configuration of `profile`: first without slots, then from coarse to fine units.

    Args:
        profile: the model as numbers.
        device_is_host: whether the device is the CPU, which has no host memory apart from its own.
        allow_sliced_head: slice a head on an accelerator too, where a slice may run another kernel than the
            whole head and round differently. On the CPU slices are exact, and always considered.
        rounds_staging: whether each staging buffer is rounded up to a power of two.
    """
    may_slice = device_is_host or allow_sliced_head
    for embedding, head_on_device in _edge_choices(profile, device_is_host):
        if head_on_device or profile.head is None:
            yield Configuration(
                granularity=Granularity.BLOCK,
                num_slots=0,
                slot_bytes=0,
                staging_bytes=0,
                embedding=embedding,
                head_on_device=head_on_device,
            )
    for granularity in Granularity:
        units = units_at(profile, granularity)
        if units:
            for configuration in _streamed_configurations(
                profile, granularity, units, device_is_host, may_slice
            ):
                yield _with_rounded_staging(configuration) if rounds_staging else configuration


def _streamed_configurations(
    profile: ModelProfile,
    granularity: Granularity,
    units: Sequence[UnitProfile],
    device_is_host: bool,
    may_slice: bool,
) -> Iterator[Configuration]:
    largest_bytes = max(unit.slot_bytes for unit in units)
    for embedding, head_on_device in _edge_choices(profile, device_is_host):
        slices, slot_bytes, staging_bytes = 1, largest_bytes, max(unit.host_bytes for unit in units)
        if profile.head is not None and not head_on_device:
            slices = choose_head_slices(profile, largest_bytes) if may_slice else 1
            slice_bytes = head_slice_bytes(profile.head, profile.head_rows, slices)
            slot_bytes = max(slot_bytes, slice_bytes)
            staging_bytes = max(staging_bytes, profile.head.host_bytes if slices == 1 else slice_bytes)
        for num_slots in SLOT_COUNTS:
            yield Configuration(
                granularity=granularity,
                num_slots=num_slots,
                slot_bytes=slot_bytes,
                staging_bytes=staging_bytes,
                embedding=embedding,
                head_on_device=head_on_device,
                head_slices=slices,
            )


def _with_rounded_staging(configuration: Configuration) -> Configuration:
    return replace(configuration, staging_bytes=rounded_up(configuration.staging_bytes))


def _edge_choices(profile: ModelProfile, device_is_host: bool) -> Iterator[tuple[Residency | None, bool]]:
    """Yield where the embedding may live, each with whether the head is on the device."""
    places: tuple[Residency | None, ...] = (Residency.DEVICE, Residency.HOST, Residency.DISK)
    if device_is_host:
        places = (Residency.DEVICE, Residency.DISK)
    if not profile.embedding_bytes:
        places = (None,)
    for embedding in places:
        if profile.head is None:
            yield embedding, False
        elif profile.head_is_tied:
            # one tensor: the head is on the device exactly when the embedding is
            yield embedding, embedding in (None, Residency.DEVICE)
        else:
            yield embedding, True
            yield embedding, False
