"""A placement plan as a picture: where every block lives, what takes the memory, what a token costs, what fewer bits would need.

It knows the records that the planner's child and compare's `plan` events have: a `PlacementPlan`'s fields as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from .elements import escape, format_bytes, format_seconds, gigabytes, notice, percent, tip

Plan = Mapping[str, Any]

PLACES = {"device": "on the device", "host": "in host memory", "disk": "on disk"}
_WEIGHTS = (
    "edges",
    "resident",
    "slots",
    "input embedding",
    "blocks in host",
    "staging",
    "head",
    "output head",
)
_QUANTIZED = (
    ("8-bit", 8.0, "one byte a weight"),
    ("4-bit", 4.5, "half a byte a weight, and the scales of 64 each"),
)

_LEDGER_TIP = (
    "Every use of memory in bytes, from the model's shape: weights that stay, slots that streamed weights pass through, the KV "
    "cache, activations of the longest forward, and what the runtime takes for itself."
)
_COST_TIP = (
    "Arithmetic on the machine's figures: bytes that must move by the disk's and the bus's rate, played through as a pipeline. "
    "Nothing was run."
)


def fit_view(answer: Mapping[str, Any], device_name: str) -> str:
    """Return the whole answer of "Will it fit?".

    Args:
        answer: of the planner's child to `plan`.
        device_name: what the machine is called.
    """
    plan, model = answer["plan"], answer["model"]
    head = f'<p class="ls-fit-what"><b>{escape(short_name(model["name"]))}</b> · {_parameters(model)} · {escape(device_name)}</p>'
    if plan is None:
        body = notice("It does not run there", str(answer["why_not"]), kind="error")
        return f'<section class="ls-fit">{head}{body}{precision_view(answer)}</section>'
    return (
        f'<section class="ls-fit">{head}{verdict_view(plan)}{strip_view(plan)}'
        f'<div class="ls-plots">{ledger_view(plan)}{precision_view(answer)}</div></section>'
    )


def short_name(name: str) -> str:
    """Return a model's name without folders; owner and name of a Hub id stay."""
    return name if name.count("/") < 2 else name.rstrip("/").rpartition("/")[2]


def _parameters(model: Mapping[str, Any]) -> str:
    count = model["parameters"]
    told = f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    return f"{told} parameters · {gigabytes(model['weight_bytes'])} in {escape(model['dtype'])}"


def is_resident(plan: Plan) -> bool:
    """Return whether nothing moves while the model runs."""
    return all(unit["residency"] == "device" for unit in plan["units"]) and plan["embedding"] in (
        None,
        "device",
    )


def verdict_view(plan: Plan) -> str:
    """Return in large letters whether it runs, and what a token takes."""
    cost = plan["cost"]
    if is_resident(plan):
        title, text = "It fits as it is", "Every weight stays in the device's memory; nothing is streamed."
    else:
        title = "It runs, streamed"
        moved = (
            f"{format_bytes(cost['read_bytes'])} are read from disk for every token"
            if cost["read_bytes"]
            else "Nothing is read from disk"
        )
        text = f"{moved}; the {escape(cost['limited_by'])} sets the pace. The result is exact."
    return (
        f'<div class="ls-verdict"><div><strong>{title}</strong><p>{text}</p></div>'
        f"<dl><div><dt>each token {tip(_COST_TIP, 'each token')}</dt><dd>{format_seconds(cost['sweep_s'])}</dd></div>"
        f"<div><dt>the prompt</dt><dd>{format_seconds(cost['prefill_s'])}</dd></div>"
        f"<div><dt>peak on the device</dt><dd>{format_bytes(total_bytes(plan, 'device'))}</dd></div></dl></div>"
    )


def strip_view(plan: Plan, *, at: int | None = None, heading: str = "Where every block lives") -> str:
    """Return a cell for each block, values_from_query by where its weights are.

    Args:
        plan: the plan.
        at: index of the unit that computes now.
        heading: above it.
    """
    cells = "".join(_cell(group, at) for group in _blocks(plan["units"]))
    counts = "".join(_count(plan, place, told) for place, told in PLACES.items())
    return (
        f'<div class="ls-card"><h3>{heading}</h3><ul class="ls-legend">{counts}</ul>'
        f'<div class="ls-strip" role="img" aria-label="{_told(plan)}">{cells}</div></div>'
    )


def _blocks(units: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, Mapping[str, Any]]]]:
    return [list(group) for _, group in groupby(enumerate(units), key=lambda each: each[1]["block"])]


def _cell(group: Sequence[tuple[int, Mapping[str, Any]]], at: int | None) -> str:
    whole = sum(unit["weight_bytes"] for _, unit in group) or 1
    device = sum(unit["weight_bytes"] for _, unit in group if unit["residency"] == "device")
    host = sum(unit["weight_bytes"] for _, unit in group if unit["residency"] == "host")
    block = group[0][1]["block"]
    name = "head" if block is None else f"block {block}"
    parts = [
        f"{percent(each, whole).rstrip('%').rstrip('0').rstrip('.')} % {told}"
        for each, told in ((device, "on the device"), (host, "in host memory"))
        if each
    ]
    title = f"{name}, {format_bytes(whole)}: {', '.join(parts) or 'on disk'}"
    now = " now" if at is not None and any(index == at for index, _ in group) else ""
    return (
        f'<span class="ls-cell{now}" title="{title}"><i class="device" style="height:{percent(device, whole)}"></i>'
        f'<i class="host" style="height:{percent(host, whole)}"></i></span>'
    )


def _count(plan: Plan, place: str, told: str) -> str:
    there = [unit for unit in plan["units"] if unit["residency"] == place]
    size = format_bytes(sum(unit["weight_bytes"] for unit in there))
    return f'<li><i class="cell {place}"></i>{told}: {len(there)} of {len(plan["units"])}, {size}</li>'


def _told(plan: Plan) -> str:
    counts = {place: sum(unit["residency"] == place for unit in plan["units"]) for place in PLACES}
    return ", ".join(f"{count} units {PLACES[place]}" for place, count in counts.items())


def total_bytes(plan: Plan, where: str) -> int:
    """Return the predicted peak of `device` or `host`."""
    return sum(int(line["num_bytes"]) for line in plan["ledger"]["lines"] if line["where"] == where)


def ledger_view(plan: Plan) -> str:
    """Return the ledger: one bar for each use, and the whole against the budget."""
    parts = "".join(_ledger_of(plan, where) for where in ("device", "host") if total_bytes(plan, where))
    return f'<div class="ls-card ls-ledger"><h3>The ledger {tip(_LEDGER_TIP, "The ledger")}</h3>{parts}</div>'


def _ledger_of(plan: Plan, where: str) -> str:
    budget, total = plan["ledger"][f"{where}_budget_bytes"], total_bytes(plan, where)
    most = max(budget, total)
    lines = [line for line in plan["ledger"]["lines"] if line["where"] == where and line["num_bytes"]]
    rows = "".join(
        f'<tr><th scope="row">{escape(line["purpose"])}</th><td class="bar"><i class="{_kind(line["purpose"])}" '
        f'style="width:{percent(line["num_bytes"], most)}"></i></td><td title="{line["num_bytes"]:,} bytes">'
        f"{format_bytes(line['num_bytes'])}</td></tr>"
        for line in lines
    )
    name = "Device memory" if where == "device" else "Host memory"
    return (
        f'<table><caption>{name}</caption><tbody>{rows}</tbody><tfoot><tr><th scope="row">predicted peak</th><td class="bar">'
        f'<i class="sum" style="width:{percent(total, most)}"></i></td><td title="{total:,} bytes">{format_bytes(total)}</td></tr>'
        f'<tr><th scope="row">budget</th><td class="bar"><i class="allowed" style="width:{percent(budget, most)}"></i></td>'
        f'<td title="{budget:,} bytes">{format_bytes(budget)}</td></tr></tfoot></table>'
    )


def ledger_bar(plan: Plan) -> str:
    """Return the device's ledger as one stacked bar against its budget, with a legend of every part that can be seen."""
    budget, total = plan["ledger"]["device_budget_bytes"], total_bytes(plan, "device")
    most = max(budget, total)
    lines = [
        line
        for line in plan["ledger"]["lines"]
        if line["where"] == "device" and line["num_bytes"] > most / 200
    ]
    lines.sort(key=lambda line: _kind(line["purpose"]) != "held")
    parts = "".join(
        f'<i class="p{number % 5}" style="width:{percent(line["num_bytes"], most)}" title="{_part(line)}"></i>'
        for number, line in enumerate(lines)
    )
    legend = "".join(
        f'<li><i class="p{number % 5}"></i>{_part(line)}</li>' for number, line in enumerate(lines)
    )
    told = f"predicted peak {format_bytes(total)} of {format_bytes(budget)}"
    return (
        f'<div class="ls-card"><h3>What takes the memory {tip(_LEDGER_TIP, "What takes the memory")}</h3>'
        f'<div class="ls-stack" role="img" aria-label="{told}">{parts}</div><ul class="ls-legend">{legend}<li>{told}</li></ul>'
        "</div>"
    )


def _part(line: Mapping[str, Any]) -> str:
    return f"{escape(line['purpose'])} {format_bytes(line['num_bytes'])}"


def _kind(purpose: str) -> str:
    return "held" if purpose.startswith(_WEIGHTS) else "working"


def precision_view(answer: Mapping[str, Any]) -> str:
    """Return what each precision would need of the device, and whether it is there."""
    model, machine = answer["model"], answer["machine"]
    there = int(machine["device_memory_bytes"])
    beside = _beside_bytes(answer["plan"])
    rows = [
        _precision("32-bit", 4 * model["parameters"], beside, there, "twice the bytes of 16", exact="exact")
    ]
    rows.append(
        _precision(
            "16-bit, all of it", 2 * model["parameters"], beside, there, "the checkpoint's own", exact="exact"
        )
    )
    if answer["plan"] is not None:
        total = total_bytes(answer["plan"], "device")
        rows.append(
            _row(
                "16-bit, streamed" if not is_resident(answer["plan"]) else "this plan",
                total,
                there,
                "this plan",
                "exact",
            )
        )
    for name, bits, about in _QUANTIZED:
        weights = int(model["quantized_parameters"] * bits / 8) + int(model["kept_bytes"])
        rows.append(
            _precision(
                name, weights, beside, there, f"{about}; embedding and head stay as they are", exact="changed"
            )
        )
    for name in ("3-bit", "2-bit"):
        rows.append(
            _precision(
                name,
                int(model["bytes_by_precision"][name]),
                beside,
                there,
                "in theory, weights alone",
                exact="damaged",
            )
        )
    return (
        '<div class="ls-card ls-ledger"><h3>And with fewer bits?</h3><p class="ls-note">Weights, and beside them this plan\'s '
        f"cache, activations and runtime, against {format_bytes(there)} of the device.</p>"
        '<table><thead><tr><th scope="col">precision</th><th scope="col">needs</th><th scope="col">fits</th>'
        f'<th scope="col">result</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _beside_bytes(plan: Plan | None) -> int:
    if plan is None:
        return 0
    return sum(
        line["num_bytes"]
        for line in plan["ledger"]["lines"]
        if line["where"] == "device" and _kind(line["purpose"]) == "working"
    )


def _precision(name: str, weights: int, beside: int, there: int, about: str, *, exact: str) -> str:
    return _row(name, weights + beside, there, about, exact)


def _row(name: str, needs: int, there: int, about: str, exact: str) -> str:
    fits = "yes" if needs <= there else "no"
    mark = "✓" if needs <= there else "✗"
    return (
        f'<tr title="{escape(about, quote=True)}"><th scope="row">{name}</th><td>{format_bytes(needs)}</td>'
        f'<td class="{fits}">{mark} {fits}</td><td>{exact}</td></tr>'
    )


def known_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the well-known models' weights at every precision, in decimal gigabytes as model cards have them."""
    names = {
        "float32": "32-bit",
        "float16": "16-bit",
        "8-bit": "8-bit",
        "4-bit": "4-bit",
        "3-bit": "3-bit",
        "2-bit": "2-bit",
    }
    head = "".join(f'<th scope="col">{told}</th>' for told in names.values())
    body = "".join(
        f'<tr><th scope="row">{escape(row["title"])}</th><td>{row["parameters"] / 1e9:.1f} B</td>'
        + "".join(f"<td>{gigabytes(row['bytes_by_precision'][name])}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="ls-card ls-ledger ls-wide"><h3>Well-known models, from their configs</h3><p class="ls-note">Weights alone, '
        "counted on models built empty; what comes on top is the ledger's business.</p><table><thead><tr>"
        f'<th scope="col">model</th><th scope="col">parameters</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
