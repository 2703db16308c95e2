"""A machine as a line of figures."""

from __future__ import annotations

import pytest

from layerstream import Machine, PlanError, machine_from_figures


def test_line_of_figures_becomes_a_machine_with_a_card() -> None:
    machine = machine_from_figures("gpu=16GB, ram=32GB, disk=2.5GB/s, pcie=12GB, vram=300GB/s, tflops=65")
    assert machine.device == "cuda:0"
    assert (machine.device_memory_bytes, machine.host_memory_bytes) == (16 * 10**9, 32 * 10**9)
    assert (machine.disk_bytes_per_s, machine.copy_bytes_per_s) == (2.5e9, 12e9)
    assert (machine.memory_bytes_per_s, machine.flops_per_s) == (3e11, 65e12)
    assert not machine.measured


def test_rates_that_are_left_out_are_a_t4s_with_a_card_and_the_defaults_without() -> None:
    card = machine_from_figures("gpu=4GB,ram=16GB")
    assert (card.memory_bytes_per_s, card.flops_per_s, card.runtime_bytes) == (3e11, 6.5e13, 512 * 1024**2)
    host = machine_from_figures("ram=16GB")
    assert host == Machine(
        name="ram=16GB", device_memory_bytes=16 * 10**9, host_memory_bytes=16 * 10**9, measured=False
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu=16GB", "lacks ram"),
        ("ram=16GB,cpu=4", "unknown key 'cpu'"),
        ("ram=16GB,ram=32GB", "gives ram twice"),
        ("ram=", "not a size"),
        ("ram=16GB,disk=fast", "not a size"),
        ("ram=16GB,tflops=0", "not a number of TFLOP/s"),
        ("ram=16GB,tflops=nan", "not a number of TFLOP/s"),
    ],
)
def test_wrong_line_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        machine_from_figures(text)
