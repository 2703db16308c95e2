"""A placement plan as a picture: where every block lives, and what takes the memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from layerstream import (
    LedgerKind,
    LedgerLine,
    MemoryTier,
    PlacementPlan,
    Residency,
    UnitPlacement,
)

from .elements import escape, format_bytes, percent, tip

PLACES = {
    Residency.DEVICE: "on the device",
    Residency.HOST: "in host memory",
    Residency.DISK: "on disk",
}
WEIGHTS = {
    LedgerKind.EDGES,
    LedgerKind.EMBEDDING,
    LedgerKind.HEAD,
    LedgerKind.ADAPTERS,
    LedgerKind.RESIDENT_BLOCKS,
    LedgerKind.SLOTS,
    LedgerKind.HOST_BLOCKS,
    LedgerKind.STAGING,
    LedgerKind.DRAFT,
}
"""The uses of memory that hold weights, a draft's with its cache; the others grow with the work."""

_LEDGER_TIP = (
    "Every use of memory in bytes, computed from the model's shape: weights that stay, slots for streamed "
    "weights, the KV cache, the activations of the longest forward, and the runtime's own memory."
)


def short_name(name: str) -> str:
    """Return a model's name without folders; a Hub id keeps its owner."""
    return name if name.count("/") < 2 else name.rstrip("/").rpartition("/")[2]


def strip_view(plan: PlacementPlan, *, current_unit: int | None = None) -> str:
    """Return a cell for each block, filled according to where its weights are.

    Args:
        plan: the plan.
        current_unit: index of the unit that is computing now.
    """
    groups = [list(group) for _, group in groupby(enumerate(plan.units), key=lambda item: item[1].block)]
    cells = "".join(_cell(group, current_unit) for group in groups)
    counts = "".join(_count(plan, residency) for residency in PLACES)
    label = ", ".join(f"{plan.count(residency)} units {place}" for residency, place in PLACES.items())
    return (
        f'<div class="ls-card"><h3>Where every block lives</h3><ul class="ls-legend">{counts}</ul>'
        f'<div class="ls-strip" role="img" aria-label="{label}">{cells}</div></div>'
    )


def _cell(group: Sequence[tuple[int, UnitPlacement]], current_unit: int | None) -> str:
    units = [unit for _, unit in group]
    total = sum(unit.weight_bytes for unit in units) or 1
    device, host = (
        sum(unit.weight_bytes for unit in units if unit.residency is residency)
        for residency in (Residency.DEVICE, Residency.HOST)
    )
    name = "head" if units[0].block is None else f"block {units[0].block}"
    parts = [
        f"{percent(size, total).rstrip('%').rstrip('0').rstrip('.')} % {PLACES[residency]}"
        for size, residency in ((device, Residency.DEVICE), (host, Residency.HOST))
        if size
    ]
    title = f"{name}, {format_bytes(total)}: {', '.join(parts) or PLACES[Residency.DISK]}"
    now = " now" if current_unit is not None and any(index == current_unit for index, _ in group) else ""
    return (
        f'<span class="ls-cell{now}" title="{title}">'
        f'<i class="device" style="height:{percent(device, total)}"></i>'
        f'<i class="host" style="height:{percent(host, total)}"></i></span>'
    )


def _count(plan: PlacementPlan, residency: Residency) -> str:
    size = format_bytes(sum(unit.weight_bytes for unit in plan.units if unit.residency is residency))
    return (
        f'<li><i class="cell {residency.value}"></i>{PLACES[residency]}: {plan.count(residency)} of '
        f"{len(plan.units)}, {size}</li>"
    )


def ledger_view(plan: PlacementPlan) -> str:
    """Return the ledger: one bar for each use of memory, and their sum against the budget."""
    ledger = plan.ledger
    parts = _ledger_table(plan, MemoryTier.DEVICE, "Device memory", ledger.device_budget_bytes)
    if ledger.host_bytes:
        parts += _ledger_table(plan, MemoryTier.HOST, "Host memory", ledger.host_budget_bytes)
    return (
        '<div class="ls-card ls-ledger"><h3>What takes the memory '
        f'{tip(_LEDGER_TIP, "What takes the memory")}</h3><div class="ls-memories">{parts}</div></div>'
    )


def _ledger_table(plan: PlacementPlan, tier: MemoryTier, caption: str, budget_bytes: int) -> str:
    total = plan.ledger.total_bytes(tier)
    full_width = max(budget_bytes, total)
    rows = "".join(
        _ledger_row(line.purpose, line.num_bytes, full_width, _css_class(line))
        for line in plan.ledger.lines
        if line.where is tier and line.num_bytes
    )
    foot = _ledger_row("predicted peak", total, full_width, "sum")
    foot += _ledger_row("budget", budget_bytes, full_width, "allowed")
    return f"<table><caption>{caption}</caption><tbody>{rows}</tbody><tfoot>{foot}</tfoot></table>"


def _ledger_row(name: str, num_bytes: int, full_width: int, css_class: str) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="bar"><i class="{css_class}" '
        f'style="width:{percent(num_bytes, full_width)}"></i></td>'
        f'<td title="{num_bytes:,} bytes">{format_bytes(num_bytes)}</td></tr>'
    )


def ledger_bar(plan: PlacementPlan) -> str:
    """Return the ledger as a stacked bar against the budget; with a device, a bar for each memory."""
    ledger = plan.ledger
    stacks = [(MemoryTier.DEVICE, "On the device", ledger.device_budget_bytes)]
    if ledger.host_bytes:
        stacks.append((MemoryTier.HOST, "In host memory", ledger.host_budget_bytes))
    bars = "".join(
        (f"<h4>{heading}</h4>" if len(stacks) > 1 else "") + _ledger_stack(plan, tier, budget_bytes)
        for tier, heading, budget_bytes in stacks
    )
    title = "What takes the memory"
    return f'<div class="ls-card"><h3>{title} {tip(_LEDGER_TIP, title)}</h3>{bars}</div>'


def _ledger_stack(plan: PlacementPlan, tier: MemoryTier, budget_bytes: int) -> str:
    """Return one memory's lines without those too small to see."""
    total = plan.ledger.total_bytes(tier)
    full_width = max(budget_bytes, total)
    lines = [line for line in plan.ledger.lines if line.where is tier and line.num_bytes > full_width / 200]
    lines.sort(key=lambda line: line.kind not in WEIGHTS)
    texts = [f"{escape(line.purpose)} {format_bytes(line.num_bytes)}" for line in lines]
    parts = "".join(
        f'<i class="p{number % 6}" style="width:{percent(line.num_bytes, full_width)}" title="{text}"></i>'
        for number, (line, text) in enumerate(zip(lines, texts, strict=True))
    )
    legend = "".join(f'<li><i class="p{number % 6}"></i>{text}</li>' for number, text in enumerate(texts))
    peak = f"predicted peak {format_bytes(total)} of {format_bytes(budget_bytes)}"
    return (
        f'<div class="ls-stack" role="img" aria-label="{peak}">{parts}</div>'
        f'<ul class="ls-legend">{legend}<li>{peak}</li></ul>'
    )


def _css_class(line: LedgerLine) -> str:
    return "held" if line.kind in WEIGHTS else "working"
