"""Say in words where a streamed model takes more memory than another variant, and why.

Streaming exists to take less memory, so a larger figure is never left without a reason. The reasons come from
the facts of the measurement: the ledger of the plan, and the budgets. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerstream import format_bytes

from .metrics import BY_KEY, Row

Name = Callable[[Row], str]

_SHOWN_LINES = 3
_SMALL_SHARE = 0.5
"""A model is called small when its plan takes more memory than this share of its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One memory.

    Attributes:
        tier: its name in the ledger.
        memory: its name in a sentence.
        held: the key of the metric of what is held there.
        needed: the key of the metric of what is needed there.
        budget: the field of a case that bounds it.
        budget_fact: the fact with that budget in bytes.
    """

    tier: str
    memory: str
    held: str
    needed: str
    budget: str = "budget"
    budget_fact: str = "budget_bytes"


_ONE_MEMORY = (_Place(tier="device", memory="memory", held="held_bytes", needed="needed_bytes"),)
_TWO_MEMORIES = (
    _Place(tier="device", memory="device memory", held="device_held_bytes", needed="device_peak_bytes"),
    _Place(
        tier="host",
        memory="host memory",
        held="host_held_bytes",
        needed="host_needed_bytes",
        budget="host_budget",
        budget_fact="host_budget_bytes",
    ),
)


def has_device(rows: Sequence[Row]) -> bool:
    """Return whether any row ran on an accelerator."""
    return any(row.shown.memory is not None and row.shown.memory.has_device for row in rows)


def notes_of(rows: Sequence[Row], name_of: Name = lambda row: row.label) -> list[str]:
    """Return one sentence for each memory in which a streamed row takes more than other variants.

    A row is compared with the other variants of its prompt length: with those of its attention kernel, or if
    there are none, with all.

    Args:
        rows: the rows of a report.
        name_of: returns a row's name for the reader.
    """
    places = _TWO_MEMORIES if has_device(rows) else _ONE_MEMORY
    notes = (
        _note(row, _compared_with(row, rows), place, name_of)
        for row in rows
        if row.shown.case.variant == "streamed"
        for place in places
    )
    return [note for note in notes if note]


def _compared_with(row: Row, rows: Sequence[Row]) -> list[Row]:
    case = row.shown.case
    others = [
        other
        for other in rows
        if other.shown.case.variant != "streamed" and other.shown.case.prompt_tokens == case.prompt_tokens
    ]
    return [other for other in others if other.shown.case.attention == case.attention] or others


def _note(row: Row, others: Sequence[Row], place: _Place, name_of: Name) -> str:
    verbs = {"holds": place.held, "needs": place.needed}
    smaller = {
        verb: [other for other in others if _is_larger(row, other, key)] for verb, key in verbs.items()
    }
    # the two figures grow together: what was already said of one is not repeated of the other
    smaller["needs"] = [other for other in smaller["needs"] if other not in smaller["holds"]]
    clauses: list[str] = []
    for verb, key in verbs.items():
        if smaller[verb]:
            lanes = _enumerated([f"{name_of(other)} ({_text(other, key)})" for other in smaller[verb]])
            what = "" if clauses else f" of {place.memory}"
            clauses.append(f"{verb} {_text(row, key)}{what}, more than {lanes}")
    if not clauses:
        return ""
    reasons = _reasons(row, [*smaller["holds"], *smaller["needs"]], place)
    return f"{name_of(row)} {', and '.join(clauses)}: {'; '.join(reasons)}."


def _is_larger(row: Row, other: Row, key: str) -> bool:
    ours, theirs = row.median_of(key), other.median_of(key)
    # a difference that no reader sees needs no words
    return ours is not None and theirs is not None and ours > theirs and _text(row, key) != _text(other, key)


def _text(row: Row, key: str) -> str:
    value = row.median_of(key)
    return "–" if value is None else BY_KEY[key].show(value)


def _reasons(row: Row, smaller: Sequence[Row], place: _Place) -> list[str]:
    facts, case = row.shown.facts, row.shown.case
    lines = [line for line in facts.get("ledger", []) if line["memory"] == place.tier]
    reasons = []
    if any(other.shown.case.attention != case.attention for other in smaller):
        reasons.append(f"it ran with another attention kernel, {case.attention}")
    if facts.get("is_resident"):
        reasons.append("its budget holds the whole model, so nothing is streamed")
    elif place.tier == "host":
        reasons += _uses_of_host_memory({line["kind"] for line in lines})
    if lines:
        largest = sorted(lines, key=lambda line: -line["bytes"])[:_SHOWN_LINES]
        sizes = (f"{line['purpose']} {format_bytes(line['bytes'])}" for line in largest)
        reasons.append(f"its plan counts {', '.join(sizes)}")
    return [*reasons, *_bounds(row, place, sum(line["bytes"] for line in lines))]


def _uses_of_host_memory(kinds: set[str]) -> list[str]:
    """Return why a model on a device takes host memory, from the kinds of its ledger's lines."""
    if "host_blocks" in kinds:
        return ["weights that stay in host memory need not be read from disk"]
    if "staging" in kinds:
        return ["weights pass through pinned host memory on their way to the device"]
    return ["the rows of its embedding are looked up there"] if "embedding" in kinds else []


def _bounds(row: Row, place: _Place, planned_bytes: int) -> list[str]:
    facts, requested = row.shown.facts, getattr(row.shown.case, place.budget)
    if requested == "min":
        weights = facts.get("unquantized_weight_bytes", 0)
        is_small = planned_bytes > _SMALL_SHARE * weights > 0
        small = f"the whole model has only {format_bytes(weights)} of weights"
        return ["this is the least with which it can be streamed", *([small] if is_small else [])]
    size = f" of {format_bytes(facts[place.budget_fact])}" if place.budget_fact in facts else ""
    return [f"its budget{size} allows that, and the budget min would take the least"]


def _enumerated(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def tier_lines(rows: Sequence[Row], name_of: Name = lambda row: row.label) -> list[str]:
    """Return what each streamed row on an accelerator keeps in each memory, and what a sweep moves.

    Args:
        rows: the rows of a report.
        name_of: returns a row's name for the reader.
    """
    return [
        f"{name_of(row)} {_tiers(row)}."
        for row in rows
        if row.shown.memory is not None and row.shown.memory.has_device and "ledger" in row.shown.facts
    ]


def _tiers(row: Row) -> str:
    facts = row.shown.facts
    parts = []
    for place in _TWO_MEMORIES:
        sizes = [line["bytes"] for line in facts["ledger"] if line["memory"] == place.tier]
        budget = format_bytes(facts[place.budget_fact])
        parts.append(f"{format_bytes(sum(sizes))} of {place.memory} (budget {budget})")
    read, copied = (format_bytes(facts[f"sweep_{move}_bytes"]) for move in ("read", "copy"))
    return f"plans {' and '.join(parts)}; a sweep reads {read} from disk and copies {copied} to the device"
