"""Draw lines and bars as SVG text: the same bytes for the same figures."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "layerstream"
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib.figure import Figure  # noqa: E402


def line_plot(
    series: dict[str, list[tuple[float, float]]], *, title: str, x: str, y: str, log_x: bool = False
) -> str:
    """Return a plot of `series` (points by name) as SVG text; the y axis starts at zero."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], marker="o", label=name)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_ylim(bottom=0)
    if log_x:
        axes.set_xscale("log", base=2)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return _as_svg(figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar with its spread.

    Attributes:
        name: what it is of.
        least: the least of the rounds.
        middle: the bar's length.
        most: the most of the rounds.
    """

    name: str
    least: float
    middle: float
    most: float


def bar_plot(bars: list[Bar], *, title: str, x: str, lines: dict[str, float] | None = None) -> str:
    """Return horizontal bars on a logarithmic axis as SVG text, with vertical `lines` by name."""
    figure = Figure(figsize=(7.6, 1.6 + 0.34 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    middles = [bar.middle for bar in bars]
    spreads = [[bar.middle - bar.least for bar in bars], [bar.most - bar.middle for bar in bars]]
    colours = ["tab:blue" if bar.name.startswith("layerstream") else "tab:gray" for bar in bars]
    axes.barh([bar.name for bar in bars], middles, xerr=spreads, color=colours, ecolor="black", capsize=3)
    for bar in bars:
        axes.annotate(f" {bar.middle:.3g}", (bar.most, bar.name), va="center", fontsize=8)
    for (name, at), style in zip((lines or {}).items(), ("--", ":"), strict=False):
        axes.axvline(at, color="tab:red", linestyle=style, label=f"{name}: {at:.3g}")
    figure.suptitle(title, fontsize=10)
    axes.set(xlabel=x)
    axes.set_xscale("log")
    edges = [*middles, *(lines or {}).values()]
    axes.set_xlim(min(edges) / 2, max(bar.most for bar in bars) * 2)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", which="both", alpha=0.2)
    if lines:
        figure.legend(loc="outside lower center", fontsize=8, ncols=len(lines))
    return _as_svg(figure)


def _as_svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
