"""The ledger's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

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
from layerstream.spec.plans import Granularity, Residency
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


def _configuration(embedding: Residency, *, head_on_device: bool) -> Configuration:
    return Configuration(
        granularity=Granularity.BLOCK,
        num_slots=2,
        slot_bytes=10_000_000,
        embedding=embedding,
        head_on_device=head_on_device,
    )


def test_a_tied_head_on_the_device_is_counted_once() -> None:
    configuration = _configuration(Residency.DEVICE, head_on_device=True)
    for tied, purposes in ((True, {"input embedding"}), (False, {"input embedding", "output head"})):
        lines = device_lines(small_model(tied=tied), Workload(), cpu(), configuration, 0)
        found = {
            line.purpose: line.num_bytes
            for line in lines
            if line.purpose in ("input embedding", "output head")
        }
        assert found == dict.fromkeys(purposes, 4_000_000)


def test_read_buffers_are_the_devices_on_a_cpu_and_the_hosts_beside_a_card() -> None:
    configuration = _configuration(Residency.DISK, head_on_device=False)
    model = small_model()
    on_cpu = {line.purpose: line for line in device_lines(model, Workload(), cpu(), configuration, 0)}
    assert on_cpu["read buffers"].num_bytes == READ_BUFFER_BYTES
    assert host_lines(model, cpu(), configuration, 0, 0) == ()
    beside = {
        line.purpose: line.num_bytes for line in host_lines(model, card(8, 16), configuration, 2, 30_000_000)
    }
    assert beside == {
        "read buffers": READ_BUFFER_BYTES,
        "staging": 20_000_000,
        "blocks in host memory": 30_000_000,
    }
    assert "read buffers" not in {
        line.purpose for line in device_lines(model, Workload(), card(8, 16), configuration, 0)
    }
