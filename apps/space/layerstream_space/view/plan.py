"""A placement plan as a picture: where every block lives, what takes the memory, how long a token takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from layerstream import (
    LedgerKind,
    LedgerLine,
    MemoryTier,
    ModelProfile,
    PlacementPlan,
    Residency,
    UnitPlacement,
    bytes_by_precision,
)

from ..planner import PlanAnswer
from .elements import escape, format_bytes, format_seconds, gigabytes, notice, percent, tip

PLACES = {
    Residency.DEVICE: "on the device",
    Residency.HOST: "in host memory",
    Residency.DISK: "on disk",
}
_WEIGHTS = {
    LedgerKind.EDGES,
    LedgerKind.EMBEDDING,
    LedgerKind.HEAD,
    LedgerKind.ADAPTERS,
    LedgerKind.RESIDENT_BLOCKS,
    LedgerKind.SLOTS,
    LedgerKind.HOST_BLOCKS,
    LedgerKind.STAGING,
}
"""The uses of memory that hold weights; the others grow with the work."""

_QUANTIZED = (
    ("8-bit", 8.0, "one byte per weight"),
    ("4-bit", 4.5, "half a byte per weight, plus a scale for every 64 weights"),
)
_PRECISIONS = {
    "float32": "32-bit",
    "float16": "16-bit",
    "8-bit": "8-bit",
    "4-bit": "4-bit",
    "3-bit": "3-bit",
    "2-bit": "2-bit",
}

_LEDGER_TIP = (
    "Every use of memory in bytes, computed from the model's shape: weights that stay, slots for streamed "
    "weights, the KV cache, the activations of the longest forward, and the runtime's own memory."
)
_COST_TIP = (
    "Computed from the machine's figures: the bytes that must move and the rates of disk and bus, simulated "
    "as a pipeline. Nothing was run."
)


def fit_view(answer: PlanAnswer, machine_title: str) -> str:
    """Return the whole answer of "Will it fit?".

    Args:
        answer: the planner's answer.
        machine_title: the machine's name for visitors.
    """
    profile, plan = answer.profile, answer.plan
    head = (
        f'<p class="ls-fit-what"><b>{escape(short_name(profile.name))}</b> · {_parameters(profile)} · '
        f"{escape(machine_title)}</p>"
    )
    if plan is None:
        body = notice("It does not fit", answer.reason, kind="error") + precision_view(answer)
    else:
        tables = f'<div class="ls-plots">{ledger_view(plan)}{precision_view(answer)}</div>'
        body = verdict_view(plan) + strip_view(plan) + tables
    return f'<section class="ls-fit">{head}{body}</section>'


def short_name(name: str) -> str:
    """Return a model's name without folders; a Hub id keeps its owner."""
    return name if name.count("/") < 2 else name.rstrip("/").rpartition("/")[2]


def _parameters(profile: ModelProfile) -> str:
    count = profile.num_parameters
    number = f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    return f"{number} parameters · {gigabytes(profile.weight_bytes)} in {escape(profile.dtype)}"


def verdict_view(plan: PlacementPlan) -> str:
    """Return in large letters whether the model runs, and how long a token takes."""
    cost = plan.cost
    if plan.is_resident:
        title, text = "It fits as it is", "All weights stay in the device's memory. Nothing is streamed."
    else:
        title = "It runs, streamed"
        moved = (
            f"Each token reads {format_bytes(cost.read_bytes)} from disk"
            if cost.read_bytes
            else "Nothing is read from disk"
        )
        limits = {"disk": "the disk", "copy": "the bus to the device", "compute": "the computation"}
        limit = escape(limits.get(cost.limited_by, cost.limited_by))
        text = f"{moved}; {limit} sets the pace. The result is exact."
    return (
        f'<div class="ls-verdict"><div><strong>{title}</strong><p>{text}</p></div>'
        f"<dl><div><dt>time per token {tip(_COST_TIP, 'time per token')}</dt>"
        f"<dd>{format_seconds(cost.sweep_s)}</dd></div>"
        f"<div><dt>time for the prompt</dt><dd>{format_seconds(cost.prefill_s)}</dd></div>"
        f"<div><dt>peak on the device</dt><dd>{format_bytes(plan.ledger.device_bytes)}</dd></div></dl></div>"
    )


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
        f"{tip(_LEDGER_TIP, 'What takes the memory')}</h3>{parts}</div>"
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
    lines.sort(key=lambda line: line.kind not in _WEIGHTS)
    texts = [f"{escape(line.purpose)} {format_bytes(line.num_bytes)}" for line in lines]
    parts = "".join(
        f'<i class="p{number % 5}" style="width:{percent(line.num_bytes, full_width)}" title="{text}"></i>'
        for number, (line, text) in enumerate(zip(lines, texts, strict=True))
    )
    legend = "".join(f'<li><i class="p{number % 5}"></i>{text}</li>' for number, text in enumerate(texts))
    peak = f"predicted peak {format_bytes(total)} of {format_bytes(budget_bytes)}"
    return (
        f'<div class="ls-stack" role="img" aria-label="{peak}">{parts}</div>'
        f'<ul class="ls-legend">{legend}<li>{peak}</li></ul>'
    )


def _css_class(line: LedgerLine) -> str:
    return "held" if line.kind in _WEIGHTS else "working"


def precision_view(answer: PlanAnswer) -> str:
    """Return how much device memory each precision needs, and whether the machine has it."""
    profile, plan, available = answer.profile, answer.plan, answer.machine.device_memory_bytes
    parameters, blocks = profile.num_parameters, profile.blocks
    # quantizers take the weights of the blocks only
    quantized = sum(unit.num_parameters for unit in blocks)
    kept_bytes = profile.weight_bytes - sum(unit.weight_bytes for unit in blocks)
    besides = _besides_weights(plan)
    rows = [
        _precision_row("32-bit", 4 * parameters + besides, available, "twice the bytes of 16-bit", "exact"),
        _precision_row("16-bit, all of it", 2 * parameters + besides, available, "as published", "exact"),
    ]
    if plan is not None:
        name = "this plan" if plan.is_resident else "16-bit, streamed"
        rows.append(_precision_row(name, plan.ledger.device_bytes, available, "this plan", "exact"))
    for name, bits, about in _QUANTIZED:
        needed = int(quantized * bits / 8) + kept_bytes + besides
        about = f"{about}; embedding and head stay as they are"
        rows.append(_precision_row(name, needed, available, about, "changed"))
    for name in ("3-bit", "2-bit"):
        needed = bytes_by_precision(parameters)[name] + besides
        rows.append(_precision_row(name, needed, available, "in theory, weights only", "damaged"))
    return (
        '<div class="ls-card ls-ledger"><h3>And with fewer bits?</h3><p class="ls-note">Each row is the '
        "weights plus this "
        f"plan's cache, activations and runtime. The device has {format_bytes(available)}.</p>"
        '<table><thead><tr><th scope="col">precision</th><th scope="col">needs</th><th scope="col">fits</th>'
        f'<th scope="col">result</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _besides_weights(plan: PlacementPlan | None) -> int:
    """Return the device memory that a plan takes for anything but weights."""
    if plan is None:
        return 0
    return sum(
        line.num_bytes
        for line in plan.ledger.lines
        if line.where is MemoryTier.DEVICE and line.kind not in _WEIGHTS
    )


def _precision_row(name: str, needed: int, available: int, about: str, result: str) -> str:
    mark, fits = ("✓", "yes") if needed <= available else ("✗", "no")
    return (
        f'<tr title="{escape(about, quote=True)}"><th scope="row">{name}</th><td>{format_bytes(needed)}</td>'
        f'<td class="{fits}">{mark} {fits}</td><td>{result}</td></tr>'
    )


def known_table(parameters: Mapping[str, int]) -> str:
    """Return the size of well-known models at every precision, in decimal gigabytes like model cards.

    Args:
        parameters: the number of parameters of each model, by title.
    """
    head = "".join(f'<th scope="col">{title}</th>' for title in _PRECISIONS.values())
    body = ""
    for title, count in parameters.items():
        sizes = bytes_by_precision(count)
        cells = "".join(f"<td>{gigabytes(sizes[name])}</td>" for name in _PRECISIONS)
        body += f'<tr><th scope="row">{escape(title)}</th><td>{count / 1e9:.1f} B</td>{cells}</tr>'
    return (
        '<div class="ls-card ls-ledger ls-wide"><h3>Well-known models, from their configs</h3><p '
        'class="ls-note">Weights '
        "only, counted on models that were built without weights. The plan above adds everything else.</p>"
        f'<table><thead><tr><th scope="col">model</th><th scope="col">parameters</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
