"""One plot for each stage: a bar for each peer, and the disk's limit as a line."""

from __future__ import annotations

from statistics import median

from plots import Bar, bar_plot

from peers.figures import Found, limit_lines, rates_by_round, steps_by_round


def draw(stage: Found) -> str:
    """Return the plot of a stage as SVG text."""
    if stage["num_prompts"] > 1:
        bars = [
            _bar(name, rates_by_round(stage, name))
            for name, entry in stage["cases"].items()
            if entry["rounds"]
        ]
        return bar_plot(bars, title=stage["title"], x="new tokens per second (longer is better)")
    bars = [_bar(name, steps_by_round(entry)) for name, entry in stage["cases"].items() if entry["rounds"]]
    x = "seconds per token (shorter is better)"
    return bar_plot(bars, title=stage["title"], x=x, lines=limit_lines(stage))


def _bar(name: str, values: dict[int, float]) -> Bar:
    return Bar(
        name=name, least=min(values.values()), middle=median(values.values()), most=max(values.values())
    )
