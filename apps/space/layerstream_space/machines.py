"""Machines to plan for, as figures. The rates come from data sheets; none was measured.

A visitor changes four of a machine's figures. What they leave is written as one line of figures, which the
command line reads too, so page and command give one plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from layerstream import Machine, PlanError, machine_from_figures

from .errors import VisitorError

GB = 10**9

THIS_MACHINE = "This machine"
"""The machine that the app runs on; its figures are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a machine that a visitor sees and may change, in the units of data sheets.

    Attributes:
        gpu: the card's memory in GB; 0 without a card.
        ram: the host's memory in GB.
        disk: the rate of the disk in GB/s.
        pcie: the rate of copies to the card in GB/s.
    """

    gpu: float
    ram: float
    disk: float
    pcie: float

    @property
    def title(self) -> str:
        """The two memories in words."""
        card = f"{self.gpu:g} GB card" if self.gpu else "no card"
        return f"{card}, {self.ram:g} GB of RAM"


NAMES: Mapping[str, str] = {
    "gpu": "the card's memory",
    "ram": "the RAM",
    "disk": "the disk's speed",
    "pcie": "the speed of the bus to the card",
}
"""What each figure is, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenMachine:
    """A machine to plan for.

    Attributes:
        machine: its figures.
        text: the line of figures that describes it; empty for the machine that the app runs on, as measured.
    """

    machine: Machine
    text: str


MACHINES: Mapping[str, Machine | None] = {
    "T4: 16 GB card, 32 GB of RAM": machine_from_figures("gpu=16GB,ram=32GB,disk=2GB/s,pcie=12GB/s"),
    "Laptop: 4 GB card, 16 GB of RAM": machine_from_figures(
        "gpu=4GB,ram=16GB,disk=2.5GB/s,pcie=10GB/s,vram=190GB/s,tflops=15"
    ),
    "Desktop: 24 GB card, 64 GB of RAM": machine_from_figures(
        "gpu=24GB,ram=64GB,disk=5GB/s,pcie=24GB/s,vram=930GB/s,tflops=140"
    ),
    "Two-core cloud CPU, 16 GB": machine_from_figures("ram=16GB,disk=1GB/s,vram=15GB/s,tflops=0.15"),
    THIS_MACHINE: None,
}
"""Machines by the name that visitors choose; None stands for the machine that the app runs on."""

MACHINE_KEYS: Mapping[str, str] = dict(zip(("t4", "laptop", "desktop", "cpu", "here"), MACHINES, strict=True))
"""Machines by the short name that addresses use."""


def figures_of(machine: Machine) -> Figures:
    """Return a machine's figures as the page shows them: three digits."""
    return Figures(
        gpu=0.0 if machine.device_is_host else _shown(machine.device_memory_bytes),
        ram=_shown(machine.host_memory_bytes),
        disk=_shown(machine.disk_bytes_per_s),
        pcie=_shown(machine.copy_bytes_per_s),
    )


def choose(base: Machine, figures: Figures) -> ChosenMachine:
    """Return the machine with a visitor's figures.

    Args:
        base: the machine that the visitor started from.
        figures: what the page shows now. Where they differ in having a card, the rates that the visitor does
            not see are assumed anew.

    Raises:
        VisitorError: a figure is not above 0, or is beyond all hardware.
    """
    for each in fields(figures):
        value = getattr(figures, each.name)
        is_missing_card = each.name == "gpu" and value == 0
        if not (0 < value < 1e6 or is_missing_card):
            raise VisitorError(f"Give {NAMES[each.name]} as a number above 0.")
    if base.measured and figures == figures_of(base):
        return ChosenMachine(machine=base, text="")
    try:
        text = _text(base, figures)
        return ChosenMachine(machine=machine_from_figures(text), text=text)
    except PlanError as error:
        raise VisitorError(str(error)) from error


def _text(base: Machine, figures: Figures) -> str:
    """Return the line of figures, without the rates that are assumed anyway."""
    has_card = figures.gpu > 0
    pairs = {"gpu": f"{figures.gpu:.12g}GB"} if has_card else {}
    pairs |= {"ram": f"{figures.ram:.12g}GB", "disk": f"{figures.disk:.12g}GB/s"}
    if has_card:
        pairs["pcie"] = f"{figures.pcie:.12g}GB/s"
    if has_card == (not base.device_is_host):
        assumed = machine_from_figures(_joined(pairs))
        if base.memory_bytes_per_s != assumed.memory_bytes_per_s:
            pairs["vram"] = f"{_shown(base.memory_bytes_per_s):.12g}GB/s"
        if base.flops_per_s != assumed.flops_per_s:
            pairs["tflops"] = f"{_digits(base.flops_per_s / 1e12):.12g}"
    return _joined(pairs)


def _joined(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in pairs.items())


def _shown(value: float) -> float:
    return _digits(value / GB)


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
