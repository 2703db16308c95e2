"""What the plan allows for library code and its kernels, by how the kernel maps code and by the processor."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
import torch

from layerstream import machine
from layerstream.spec.sizes import MIB

PAGE_BYTES = 4096
PAGES = 256
"""As many pages as a MiB has."""


@pytest.fixture(autouse=True)
def _fresh_answer() -> Iterator[None]:
    machine.host_runtime_bytes.cache_clear()
    yield
    machine.host_runtime_bytes.cache_clear()


def windows(num_mib: int) -> list[bool]:
    """Code of which one window of 64 KiB is mapped in each 256 KiB."""
    return ([False] * 16 + [True] * 16 + [False] * 32) * (4 * num_mib)


def folios(num_mib: int) -> list[bool]:
    """Code of which every second MiB is mapped."""
    return ([True] * PAGES + [False] * PAGES) * (num_mib // 2)


def test_code_mapped_in_windows_is_told_from_code_mapped_in_whole_folios() -> None:
    assert not machine.maps_whole_folios(windows(8), PAGE_BYTES)
    assert machine.maps_whole_folios(folios(8), PAGE_BYTES)


def test_a_few_windows_between_folios_and_a_few_folios_between_windows_change_nothing() -> None:
    assert machine.maps_whole_folios(folios(16) + windows(1), PAGE_BYTES)
    assert not machine.maps_whole_folios(folios(2) + windows(4), PAGE_BYTES)


def test_larger_pages_make_fewer_entries_of_the_same_answer() -> None:
    assert machine.maps_whole_folios([True] * 64 + [False] * 64, 4 * PAGE_BYTES)
    assert not machine.maps_whole_folios([True, False] * 64, 4 * PAGE_BYTES)


@pytest.mark.parametrize("is_mapped", [[], [True] * 5, [False] * 1024])
def test_where_nothing_is_known_nothing_is_assumed(is_mapped: list[bool]) -> None:
    assert not machine.maps_whole_folios(is_mapped, PAGE_BYTES)


@pytest.mark.parametrize(
    ("pages", "has_tiles", "expected_mib"),
    [(windows(8), False, 40), (windows(8), True, 44), (folios(8), False, 68), (folios(8), True, 72)],
    ids=["windows", "windows-amx", "folios", "folios-amx"],
)
def test_the_allowance_follows_the_kernel_and_the_processor(
    pages: list[bool], has_tiles: bool, expected_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_mapped_code_pages", lambda: pages)
    monkeypatch.setattr(mmap, "PAGESIZE", PAGE_BYTES)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    described = machine.describe_machine(torch.device("cpu"))
    assert described.runtime_bytes == expected_mib * MIB


def test_all_plans_of_a_process_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine.describe_machine(torch.device("cpu")).runtime_bytes
    for pages in (windows(8), folios(8)):
        monkeypatch.setattr(machine, "_mapped_code_pages", lambda pages=pages: pages)
        assert machine.describe_machine(torch.device("cpu")).runtime_bytes == first
