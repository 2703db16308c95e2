"""From raw rounds to figures, rows and targets: pure functions of what `measure.run_stage` returns."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from peers.contention import estimate_s

Found = dict[str, Any]

LIMIT_TARGET = 1.10
SINGLE_TARGETS = {"oLLM": 1.5, "accelerate": 2.5, "AirLLM": 8.0}
HALF_FACTOR = 2.0
BATCH_TARGET = 20.0
STREAMED, HALF = "layerstream", "layerstream, half resident"


# -- one case --------------------------------------------------------------------------------------------


def step_s(run: Found) -> float:
    """Return the seconds of a pass after the first in one round."""
    return median(run["seconds"][1:])


def total_s(run: Found, new_tokens: int) -> float:
    """Return the seconds of all passes of one round; passes that were not run take a step each."""
    seconds = run["seconds"]
    if len(seconds) == 1:
        return float(seconds[0])
    return float(sum(seconds) + (new_tokens - len(seconds)) * step_s(run))


def steps_by_round(entry: Found) -> dict[int, float]:
    """Return the seconds of a pass after the first, by round."""
    return {run["round"]: step_s(run) for run in entry["rounds"] if len(run["seconds"]) > 1}


def rates_by_round(stage: Found, name: str) -> dict[int, float]:
    """Return new tokens per second, prompts included, by round."""
    entry = stage["cases"][name]
    num_prompts = 1 if entry["case"]["way"] == "alone" else stage["num_prompts"]
    new_tokens = stage["new_tokens"]
    return {run["round"]: num_prompts * new_tokens / total_s(run, new_tokens) for run in entry["rounds"]}


def ratio(above: dict[int, float], below: dict[int, float]) -> float | None:
    """Return the median of the ratios of those rounds that both have; None without one."""
    found = [above[number] / below[number] for number in above if number in below]
    return median(found) if found else None


def disk_limit(stage: Found, num_bytes: int) -> dict[int, float]:
    """Return the seconds in which the disk gives `num_bytes`, by round."""
    return {number: num_bytes / rate for number, rate in enumerate(stage["bytes_per_s"])}


def limit_lines(stage: Found) -> dict[str, float]:
    """Return the seconds of reading all blocks, or all that a token needs, without and with computing."""
    if not stage["bytes_per_s"]:
        return {}
    lines = {"all blocks at the disk's speed": median(disk_limit(stage, stage["block_bytes"]).values())}
    if stage["routed_bytes"] < stage["block_bytes"]:
        routed = disk_limit(stage, stage["routed_bytes"])
        lines["one token's experts at the disk's speed"] = median(routed.values())
    if stage.get("contention"):
        lines["all blocks read while it computes (estimate)"] = overlapped_s(stage, stage["block_bytes"])
    return lines


def overlapped_s(stage: Found, num_bytes: int) -> float:
    """Return the estimate for a pass that reads `num_bytes` while it computes."""
    return estimate_s(stage["contention"], num_bytes, median(stage["bytes_per_s"]))


# -- targets ---------------------------------------------------------------------------------------------


def targets(stages: dict[str, Found]) -> list[str]:
    """Return one line for every target, reached or missed, with the figure that was measured."""
    lines = []
    for name in ("dense", "large"):
        if name in stages:
            lines += _single_targets(stages[name])
    if "batch" in stages:
        lines += _batch_targets(stages["batch"])
    return lines


def _single_targets(stage: Found) -> list[str]:
    lines = []
    size = f"{stage['weight_bytes'] / 1e9:.1f} GB"
    for name, factor in ((STREAMED, 1.0), (HALF, HALF_FACTOR)):
        if not steps_by_round(stage["cases"].get(name, {"rounds": []})):
            lines.append(f"not measured: {size}, {name}")
            continue
        entry = stage["cases"][name]
        ours = steps_by_round(entry)
        bound = ratio(ours, disk_limit(stage, entry["load"]["sweep_bytes"]))
        what = f"{size}, {name}: time of a token / time of its bytes at the disk's speed"
        lines.append(verdict(what, bound, LIMIT_TARGET, at_most=True))
        if stage.get("contention"):
            estimate = overlapped_s(stage, entry["load"]["sweep_bytes"])
            what = f"{size}, {name}: time of a token / estimate for reading its bytes while computing"
            lines.append(verdict(what, median(ours.values()) / estimate, None))
        for peer, target in SINGLE_TARGETS.items():
            if peer in stage["cases"]:
                theirs = steps_by_round(stage["cases"][peer])
                lines.append(
                    verdict(
                        f"{size}, {name}: times as fast as {peer} with no blocks in memory",
                        ratio(theirs, ours),
                        factor * target,
                    )
                )
    return lines


def _batch_targets(stage: Found) -> list[str]:
    ours = rates_by_round(stage, STREAMED) if STREAMED in stage["cases"] else {}
    lines = []
    for what, is_alone in (("the best of the peers", None), ("the best of them one after another", True)):
        ratios = [
            ratio(ours, rates_by_round(stage, name))
            for name, entry in stage["cases"].items()
            if name != STREAMED and (is_alone is None or entry["case"]["way"] == "alone")
        ]
        known = [each for each in ratios if each is not None]
        target = BATCH_TARGET if is_alone is None else None
        text = f"{stage['num_prompts']} prompts: tokens per second, times {what}"
        lines.append(verdict(text, min(known, default=None), target))
    return lines


def verdict(what: str, found: float | None, target: float | None, *, at_most: bool = False) -> str:
    """Return the line of one target; without a target, the figure alone."""
    if found is None:
        return f"not measured: {what}"
    if target is None:
        return f"for comparison: {what}: {found:.2f}"
    is_met = found <= target if at_most else found >= target
    bound = "at most" if at_most else "at least"
    return f"{'reached' if is_met else 'MISSED'}: {what}: {found:.2f} (target: {bound} {target:g})"


# -- rows ------------------------------------------------------------------------------------------------


def columns(stage: Found) -> dict[str, Callable[[str], str]]:
    """Return the table's columns: heading, and what a case has there."""
    many = stage["num_prompts"] > 1
    chosen: dict[str, Callable[[str], str]] = {"": lambda name: name}
    if many:
        chosen["tokens/s"] = lambda name: _spread(rates_by_round(stage, name).values(), 2)
    chosen["s per pass" if many else "s per token"] = lambda name: _spread(_steps(stage, name).values(), 3)
    if not many:
        chosen["times layerstream's"] = lambda name: _times(
            ratio(_steps(stage, name), _steps(stage, STREAMED))
        )
    return chosen | {
        "prompts' pass s" if many else "first token s": lambda name: _first(stage["cases"][name]),
        "GB read per pass" if many else "GB read per token": lambda name: _read(stage["cases"][name]),
        "own memory MiB": lambda name: _mib(stage["cases"][name], "own_bytes"),
        "with mapped files MiB": lambda name: _mib(stage["cases"][name], "peak_bytes"),
        "start s": lambda name: _number(stage["cases"][name].get("load", {}).get("load_s"), 1),
        "second copy": lambda name: _second_copy(stage["cases"][name].get("load", {})),
        "tokens equal": lambda name: _equal(stage["cases"][name]),
    }


def rows(stage: Found) -> list[list[str]]:
    """Return a row for each case; one that failed has its error in the last column."""
    found = []
    for name, entry in stage["cases"].items():
        row = [make(name) for make in columns(stage).values()]
        if "error" in entry:
            row[-1] = f"cannot: {entry['error']}".replace("|", "/")
        found.append(row)
    return found


def _steps(stage: Found, name: str) -> dict[int, float]:
    return steps_by_round(stage["cases"][name]) if name in stage["cases"] else {}


def _spread(values: Any, digits: int) -> str:
    found = sorted(values)
    if not found:
        return ""
    middle = f"{median(found):.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


def _times(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}×"


def _number(found: float | None, digits: int) -> str:
    return "" if found is None else f"{found:.{digits}f}"


def _first(entry: Found) -> str:
    found = [run["seconds"][0] for run in entry["rounds"] if len(run["seconds"]) > 1]
    return _number(median(found) if found else None, 2)


def _read(entry: Found) -> str:
    found = [median(run["read_bytes"][1:]) for run in entry["rounds"] if len(run["read_bytes"]) > 1]
    return _number(median(found) / 1e9 if found else None, 2)


def _mib(entry: Found, kind: str) -> str:
    num_bytes = entry.get("memory", {}).get(kind)
    return "" if num_bytes is None else f"{num_bytes / 1024**2:.0f}"


def _second_copy(load: Found) -> str:
    if "second_copy_bytes" not in load:
        return "none" if load else ""
    return f"{load['second_copy_bytes'] / 1e9:.2f} GB in {load['second_copy_written_s']:.0f} s"


def _equal(entry: Found) -> str:
    found = entry.get("equal")
    if found is None:
        return ""
    if found["answers"] == 1:
        return f"{found['equal_tokens']} of {found['tokens']}"
    return f"{found['equal_answers']} of {found['answers']} answers"
