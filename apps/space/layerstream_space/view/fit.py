"""The answer of "Will it fit?": whether a model runs, how long that takes, what fewer bits need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from layerstream import (
    KnownModel,
    Machine,
    MemoryTier,
    ModelProfile,
    PlacementPlan,
    Residency,
    bytes_by_precision,
)

from ..planner import NUM_PROMPTS, ManyPrompts, PlanAnswer, answer_s
from .elements import escape, format_bytes, format_rate, format_seconds, gigabytes, notice, tip
from .plan import WEIGHTS, ledger_view, short_name, strip_view

_QUANTIZED = (
    ("8-bit", 8.0, "a byte for each weight of the blocks"),
    ("4-bit", 4.5, "half a byte for each weight of the blocks, and a scale for every 64 weights"),
)
_LISTED_PRECISIONS = {"float16": "16-bit", "8-bit": "8-bit", "4-bit": "4-bit"}

HOST_SHARE, CPU_SHARE = 0.8, 0.9
"""How much of the RAM may be used: beside a card, and without one. The planner's own shares."""

_COST_TIP = (
    "Computed from the machine's figures: the bytes that must move and the rates of disk and bus, simulated "
    "as a pipeline. Nothing was run."
)
_TOKENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FitText:
    """What the answer says beside the plan.

    Attributes:
        machine_title: the machine's name for visitors.
        hub_id: where the model is published; empty if that is not known.
        note: what a reader must know about the model; empty for most.
        command: the command that makes the same plan; empty if there is none.
    """

    machine_title: str
    hub_id: str = ""
    note: str = ""
    command: str = ""


def fit_view(answer: PlanAnswer, many: ManyPrompts | None, text: FitText) -> str:
    """Return the whole answer of "Will it fit?".

    Args:
        answer: the planner's answer.
        many: how soon many prompts are answered; None while that is not known.
        text: what to say beside the plan.
    """
    profile, plan = answer.profile, answer.plan
    head = (
        f'<p class="ls-fit-what"><b>{escape(short_name(profile.name))}</b> · {_parameters(profile)} · '
        f"{escape(text.machine_title)}{_rates(answer.machine)}</p>"
    )
    remarks = [text.hub_id and f"On the Hub: {text.hub_id}.", text.note and f"This model is {text.note}."]
    if any(remarks):
        head += f'<p class="ls-note">{escape(" ".join(filter(None, remarks)))}</p>'
    if plan is None:
        body = notice("It does not fit", answer.reason, kind="error") + precision_view(answer)
    else:
        tables = f'<div class="ls-plots">{times_view(plan, many, answer)}{precision_view(answer)}</div>'
        body = verdict_view(plan, answer) + tables + strip_view(plan) + ledger_view(plan)
    return f'<section class="ls-fit">{head}{body}{_command(text.command)}</section>'


def _parameters(profile: ModelProfile) -> str:
    count = profile.num_parameters
    number = f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    return f"{number} parameters · {gigabytes(profile.weight_bytes)} in {escape(profile.dtype)}"


def _rates(machine: Machine) -> str:
    bus = "" if machine.device_is_host else f", bus {format_rate(machine.copy_bytes_per_s)}"
    return f" · disk {format_rate(machine.disk_bytes_per_s)}{bus}"


def _command(command: str) -> str:
    if not command:
        return ""
    where = "" if "--machine" in command else ", on the machine of this page"
    return (
        f'<div class="ls-card ls-command"><h3>The same plan on the command line{where}</h3>'
        f"<pre><code>{escape(command)}</code></pre></div>"
    )


def verdict_view(plan: PlacementPlan, answer: PlanAnswer) -> str:
    """Return in large letters whether the model runs, and how long a token takes."""
    cost = plan.cost
    if plan.is_resident:
        title, text = "It fits as it is", "All weights stay in the device's memory. Nothing is streamed."
    else:
        title = "It runs, streamed"
        disk_rate = format_rate(answer.machine.disk_bytes_per_s)
        moved = (
            f"Each token reads {gigabytes(cost.read_bytes)} from disk at {disk_rate}"
            if cost.read_bytes
            else "Nothing is read from disk"
        )
        limits = {"disk": "the disk", "copy": "the bus to the device", "compute": "the computation"}
        limit = escape(limits.get(cost.limited_by, cost.limited_by))
        text = f"{moved}; {limit} sets the pace. The result is exact."
    whole = format_seconds(answer_s(plan, answer.workload.new_tokens))
    return (
        f'<div class="ls-verdict"><div><strong>{title}</strong><p>{text}</p></div>'
        f"<dl><div><dt>time per token {tip(_COST_TIP, 'time per token')}</dt>"
        f"<dd>{format_seconds(cost.sweep_s)}</dd></div>"
        f"<div><dt>one answer of {answer.workload.new_tokens} tokens</dt><dd>{whole}</dd></div>"
        f"<div><dt>peak on the device</dt><dd>{format_bytes(plan.ledger.device_bytes)}</dd></div></dl></div>"
    )


_TimeRow: TypeAlias = tuple[str, str]


def _first_token(plan: PlacementPlan, answer: PlanAnswer, many: ManyPrompts | None) -> _TimeRow:
    return (
        f"the first token, after a prompt of {answer.workload.prompt_tokens:,} tokens",
        format_seconds(plan.cost.prefill_s),
    )


def _some_tokens(plan: PlacementPlan, answer: PlanAnswer, many: ManyPrompts | None) -> _TimeRow:
    return f"{_TOKENS} tokens after it", format_seconds(_TOKENS * plan.cost.sweep_s)


def _one_answer(plan: PlacementPlan, answer: PlanAnswer, many: ManyPrompts | None) -> _TimeRow:
    tokens = answer.workload.new_tokens
    return f"one answer of {tokens:,} tokens, with its prompt", format_seconds(answer_s(plan, tokens))


def _many_answers(plan: PlacementPlan, answer: PlanAnswer, many: ManyPrompts | None) -> _TimeRow:
    if many is None:
        return f"{NUM_PROMPTS:,} such prompts", "…"
    pace = "one after another" if many.at_once == 1 else f"{many.at_once} at a time"
    each = f"<small>{format_seconds(many.answer_s)} per answer</small>"
    return f"{NUM_PROMPTS:,} such prompts, {pace}", f"{format_seconds(many.total_s)}{each}"


_TIME_ROWS: tuple[Callable[[PlacementPlan, PlanAnswer, ManyPrompts | None], _TimeRow], ...] = (
    _first_token,
    _some_tokens,
    _one_answer,
    _many_answers,
)
"""The rows of the table of times."""


def times_view(plan: PlacementPlan, many: ManyPrompts | None, answer: PlanAnswer) -> str:
    """Return how long answers take: one, and many that share the passes over the weights."""
    found = [row(plan, answer, many) for row in _TIME_ROWS]
    rows = "".join(f'<tr><th scope="row">{what}</th><td>{time}</td></tr>' for what, time in found)
    note = (
        "Calculated from the machine's figures; nothing was run. Prompts that run at the same time share "
        "each pass over the weights."
    )
    return (
        f'<div class="ls-card ls-ledger ls-times"><h3>How long it takes</h3><p class="ls-note">{note}</p>'
        f"<table><tbody>{rows}</tbody></table></div>"
    )


def precision_view(answer: PlanAnswer) -> str:
    """Return what each precision needs, and whether the card, or card and RAM together, have it."""
    profile, plan = answer.profile, answer.plan
    parameters, blocks = profile.num_parameters, profile.blocks
    # quantizers take the weights of the blocks only
    quantized = sum(unit.num_parameters for unit in blocks)
    kept_bytes = profile.weight_bytes - sum(unit.weight_bytes for unit in blocks)
    besides = _besides_weights(plan)
    room = _Room.of(answer.machine)
    rows = [_precision_row("16-bit", 2 * parameters, besides, room, "every weight in 16 bits")]
    if plan is not None and not plan.is_resident:
        rows.append(_streamed_row(plan))
    for name, bits, about in _QUANTIZED:
        about = f"{about}; embedding and head stay as they are"
        rows.append(_precision_row(name, int(quantized * bits / 8) + kept_bytes, besides, room, about))
    head = "".join(f'<th scope="col">{title}</th>' for title in ("weights", "need", "where"))
    note = (
        f"Each row counts the weights and this plan's cache, activations and runtime. {room.sentence()} "
        "8 and 4 bits round the weights, which changes the answers: compare them on the first tab."
    )
    return (
        '<div class="ls-card ls-ledger ls-precisions"><h3>And with fewer bits?</h3>'
        f'<p class="ls-note">{note}</p><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """The memory that a machine can give, in bytes; no card has 0."""

    card: int
    ram: int

    @staticmethod
    def of(machine: Machine) -> _Room:
        if machine.device_is_host:
            return _Room(card=0, ram=int(machine.host_memory_bytes * CPU_SHARE))
        return _Room(card=machine.device_memory_bytes, ram=int(machine.host_memory_bytes * HOST_SHARE))

    def sentence(self) -> str:
        if not self.card:
            return f"Of the RAM, {gigabytes(self.ram)} may be used."
        return f"The card has {gigabytes(self.card)}; of the RAM, {gigabytes(self.ram)} may be used."

    def place(self, weights: int, besides: int) -> tuple[str, str]:
        """Return a mark's class, and where weights go; what is besides them stays with the computation."""
        needed = weights + besides
        if needed <= (self.card or self.ram):
            return "yes", "✓ all on the card" if self.card else "✓ all in RAM"
        if needed <= self.card + self.ram and besides <= self.card:
            return "part", f"◐ {gigabytes(self.card)} on the card, {gigabytes(needed - self.card)} in RAM"
        return "no", f"✗ no, {gigabytes(needed - self.card - self.ram)} too much"


def _besides_weights(plan: PlacementPlan | None) -> int:
    """Return the device memory that a plan takes for anything but weights."""
    if plan is None:
        return 0
    return sum(
        line.num_bytes
        for line in plan.ledger.lines
        if line.where is MemoryTier.DEVICE and line.kind not in WEIGHTS
    )


def _precision_row(name: str, weights: int, besides: int, room: _Room, about: str) -> str:
    css_class, where = room.place(weights, besides)
    return (
        f'<tr title="{escape(about, quote=True)}"><th scope="row">{name}</th>'
        f'<td>{gigabytes(weights + besides)}</td><td class="{css_class}">{where}</td></tr>'
    )


def _streamed_row(plan: PlacementPlan) -> str:
    ledger = plan.ledger
    on_disk = sum(unit.weight_bytes for unit in plan.units if unit.residency is Residency.DISK)
    device = "in RAM" if plan.device_is_host else "on the card"
    places = [
        f"{gigabytes(size)} {place}"
        for size, place in (
            (ledger.device_bytes, device),
            (ledger.host_bytes, "in RAM"),
            (on_disk, "on disk"),
        )
        if size
    ]
    needed = gigabytes(ledger.device_bytes + ledger.host_bytes)
    return (
        f'<tr title="the plan above: exact"><th scope="row">this plan, streamed</th><td>{needed}</td>'
        f'<td class="yes">✓ {", ".join(places)}</td></tr>'
    )


def known_table(models: Mapping[str, KnownModel]) -> str:
    """Return the size of well-known models at three precisions, in decimal gigabytes like model cards."""
    head = "".join(f'<th scope="col">{title}</th>' for title in _LISTED_PRECISIONS.values())
    body = ""
    for model in models.values():
        sizes = bytes_by_precision(model.num_parameters)
        cells = "".join(f"<td>{gigabytes(sizes[name])}</td>" for name in _LISTED_PRECISIONS)
        note = f"<small>{escape(model.note)}</small>" if model.note else ""
        body += (
            f'<tr><th scope="row">{escape(model.title)}{note}</th><td>{model.num_parameters / 1e9:.1f} B</td>'
            f"{cells}</tr>"
        )
    return (
        f'<details class="ls-card ls-ledger ls-known"><summary>The sizes of {len(models)} well-known models'
        '</summary><p class="ls-note">Weights only, counted on models that were built from their published '
        "configs without weights. The plan above adds everything else.</p>"
        f'<table><thead><tr><th scope="col">model</th><th scope="col">parameters</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></details>"
    )
