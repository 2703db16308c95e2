"""The ledger's arithmetic, against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from layerstream.planning.candidates import Configuration
from layerstream.planning.ledger import (
    activation_bytes,
    cache_bytes,
    cache_growth_bytes,
    device_lines,
    host_lines,
)
from layerstream.spec.options import Workload
from layerstream.spec.plans import Granularity, LedgerKind, LedgerLine, MemoryTier, Residency
from layerstream.spec.profiles import ActivationProfile

from .shapes import READ_BUFFER_BYTES, card, cpu, small_model

MIXED = ActivationProfile(
    fixed_bytes=1000,
    bytes_per_token=10.0,
    bytes_per_token_squared=0.5,
    cache_bytes_per_token=8.0,
    window_bytes_per_token=4.0,
    window_tokens=64,
    state_bytes=100,
    cache_layer_share=0.25,
)


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (Workload(batch_size=1, prompt_tokens=20, new_tokens=10), 30 * 8 + 30 * 4 + 100),
        (Workload(batch_size=1, prompt_tokens=200, new_tokens=100), 300 * 8 + 64 * 4 + 100),
        (Workload(batch_size=3, prompt_tokens=200, new_tokens=100), 3 * (300 * 8 + 64 * 4 + 100)),
    ],
)
def test_the_cache_counts_the_context_the_window_and_the_state(workload: Workload, expected: int) -> None:
    assert cache_bytes(MIXED, workload) == expected
    assert cache_growth_bytes(MIXED, workload) == -(-expected // 4)


def test_activations_grow_with_tokens_and_with_the_square_of_the_prompt() -> None:
    workload = Workload(batch_size=2, prompt_tokens=100, new_tokens=50)
    assert activation_bytes(MIXED, workload) == 1000 + 10 * 200 + 0.5 * 2 * 100 * 100


def _sizes(lines: Iterable[LedgerLine]) -> dict[LedgerKind, int]:
    return {line.kind: line.num_bytes for line in lines}


def _configuration(embedding: Residency, *, head_on_device: bool) -> Configuration:
    return Configuration(
        granularity=Granularity.BLOCK,
        num_slots=2,
        slot_bytes=10_000_000,
        staging_bytes=10_000_000,
        embedding=embedding,
        head_on_device=head_on_device,
    )


def test_a_tied_head_on_the_device_is_counted_once() -> None:
    configuration = _configuration(Residency.DEVICE, head_on_device=True)
    both = {LedgerKind.EMBEDDING, LedgerKind.HEAD}
    for tied, kinds in ((True, {LedgerKind.EMBEDDING}), (False, both)):
        lines = device_lines(small_model(tied=tied), Workload(), cpu(), configuration, 0)
        found = {kind: size for kind, size in _sizes(lines).items() if kind in both}
        assert found == dict.fromkeys(kinds, 4_000_000)


def test_read_buffers_count_as_device_memory_on_a_cpu_and_as_host_memory_with_a_card() -> None:
    configuration = _configuration(Residency.DISK, head_on_device=False)
    model = small_model()
    on_cpu = device_lines(model, Workload(), cpu(), configuration, 0)
    assert _sizes(on_cpu)[LedgerKind.READ_BUFFERS] == READ_BUFFER_BYTES
    assert host_lines(model, cpu(), configuration, 0, 0) == ()
    assert _sizes(host_lines(model, card(8, 16), configuration, 2, 30_000_000)) == {
        LedgerKind.READ_BUFFERS: READ_BUFFER_BYTES,
        LedgerKind.STAGING: 20_000_000,
        LedgerKind.HOST_BLOCKS: 30_000_000,
    }
    on_card = device_lines(model, Workload(), card(8, 16), configuration, 0)
    assert LedgerKind.READ_BUFFERS not in _sizes(on_card)


def test_the_prefix_cache_is_device_memory_on_a_cpu_and_host_memory_with_a_card() -> None:
    configuration = _configuration(Residency.DISK, head_on_device=False)
    model = small_model()
    on_cpu = device_lines(model, Workload(), cpu(), configuration, 0, prefix_bytes=7)
    assert _sizes(on_cpu)[LedgerKind.PREFIX_CACHE] == 7
    assert host_lines(model, cpu(), configuration, 0, 0, prefix_bytes=7) == ()
    with_card = card(8, 16)
    on_card = device_lines(model, Workload(), with_card, configuration, 0, prefix_bytes=7)
    assert LedgerKind.PREFIX_CACHE not in _sizes(on_card)
    assert (
        _sizes(host_lines(model, with_card, configuration, 2, 0, prefix_bytes=7))[LedgerKind.PREFIX_CACHE]
        == 7
    )


@pytest.mark.parametrize("kind", LedgerKind)
def test_every_kind_of_line_has_a_label_for_people(kind: LedgerKind) -> None:
    assert LedgerLine(kind=kind, where=MemoryTier.DEVICE, num_bytes=1).purpose
