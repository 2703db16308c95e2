"""A machine's figures, as the page shows them and as the command line reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerstream import Machine, machine_from_figures
from layerstream_space.errors import VisitorError
from layerstream_space.machines import MACHINE_KEYS, MACHINES, Figures, choose, figures_of

MEASURED = Machine(
    name="here",
    device_memory_bytes=23_456_789_012,
    host_memory_bytes=23_456_789_012,
    disk_bytes_per_s=2.345678e9,
    measured=True,
)


@pytest.mark.parametrize("key", [key for key, title in MACHINE_KEYS.items() if MACHINES[title]])
def test_listed_machine_with_its_own_figures_is_itself(key):
    base = MACHINES[MACHINE_KEYS[key]]
    chosen = choose(base, figures_of(base))
    assert replace(chosen.machine, name=base.name) == base
    assert machine_from_figures(chosen.text) == chosen.machine


def test_figures_of_the_page_are_those_of_the_command_line():
    base = MACHINES[MACHINE_KEYS["t4"]]
    chosen = choose(base, replace(figures_of(base), disk=2.5))
    assert chosen.text == "gpu=16GB,ram=32GB,disk=2.5GB/s,pcie=12GB/s"
    # what the shorter line leaves out is assumed to be the same
    assert replace(chosen.machine, name="") == replace(
        machine_from_figures("gpu=16GB,ram=32GB,disk=2.5GB"), name=""
    )


def test_rates_that_the_visitor_does_not_see_come_from_the_chosen_machine():
    base = MACHINES[MACHINE_KEYS["desktop"]]
    machine = choose(base, replace(figures_of(base), gpu=48)).machine
    assert machine.device_memory_bytes == 48 * 10**9
    assert machine.memory_bytes_per_s == base.memory_bytes_per_s
    assert machine.flops_per_s == base.flops_per_s


@pytest.mark.parametrize(("key", "gpu"), [("desktop", 0.0), ("cpu", 24.0)])
def test_card_that_is_added_or_taken_away_brings_rates_of_its_kind(key, gpu):
    base = MACHINES[MACHINE_KEYS[key]]
    chosen = choose(base, replace(figures_of(base), gpu=gpu, pcie=12))
    plain = machine_from_figures("gpu=24GB,ram=16GB" if gpu else "ram=64GB")
    assert chosen.machine.device == plain.device
    assert (chosen.machine.memory_bytes_per_s, chosen.machine.flops_per_s) == (
        plain.memory_bytes_per_s,
        plain.flops_per_s,
    )


def test_measured_machine_is_planned_as_measured_until_a_figure_changes():
    figures = figures_of(MEASURED)
    assert figures == Figures(gpu=0.0, ram=23.5, disk=2.35, pcie=12.0)
    assert choose(MEASURED, figures).machine is MEASURED
    assert choose(MEASURED, figures).text == ""
    changed = choose(MEASURED, replace(figures, disk=7.0))
    assert changed.machine.disk_bytes_per_s == 7e9
    assert changed.machine.host_memory_bytes == 23_500_000_000


@pytest.mark.parametrize("wrong", [-1.0, 0.0, 1e9, float("nan")])
def test_figure_that_no_machine_has_is_refused_by_its_name(wrong):
    figures = replace(figures_of(MACHINES[MACHINE_KEYS["t4"]]), disk=wrong)
    with pytest.raises(VisitorError, match="Give the disk's speed as a number above 0"):
        choose(MACHINES[MACHINE_KEYS["t4"]], figures)
