"""Define every figure of the reports: its title, what it includes, how to read it and how to format it.

Pure: it does not know where a figure is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from layerstream import format_bytes, format_seconds

from ..case import Case
from ..divergence import EXACT_VARIANTS, REFERENCE_FACT
from ..measurement import Agreement, Measurement
from .memory_metrics import MEMORY_METRICS
from .metric import Metric
from .number_format import format_nats, format_number, format_share

TEXTS = {"answer": "the reference's own answer", "prose": "the text that ships with the package"}
"""The texts on which agreement is measured, with descriptions."""

NOISE_FLOOR = (
    "The original weights with another attention kernel: a variant that differs by no more than this differs "
    "only by rounding"
)
"""Explains the badge of a noise-floor row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over all rounds.

    Attributes:
        median: median of the rounds.
        minimum: smallest value.
        maximum: largest value.
        rounds: number of rounds with a value.
    """

    median: float
    minimum: float
    maximum: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case in the reports, with all its rounds.

    Attributes:
        label: display name.
        shown: the measurement to show: the first `ok` one with agreements, else the first `ok` one, else the
            first.
        rounds: all of its measurements.
        values: spread of each metric that was measured, by key.
    """

    label: str
    shown: Measurement
    rounds: tuple[Measurement, ...]
    values: dict[str, Spread]

    @property
    def is_noisy(self) -> bool:
        """Whether any round was disturbed."""
        return any(round_.timing is not None and round_.timing.is_noisy for round_ in self.rounds)

    @property
    def is_bit_exact(self) -> bool:
        """Whether every compared logit equals the reference's, bit for bit."""
        agreements = self.shown.agreements
        return bool(agreements) and all(agreement.is_bit_exact for agreement in agreements)

    @property
    def is_noise_floor(self) -> bool:
        """Whether it is the original weights with another attention kernel: only rounding differs."""
        return (
            self.shown.case.variant in EXACT_VARIANTS
            and bool(self.shown.agreements)
            and not self.is_bit_exact
        )

    @property
    def badge(self) -> str:
        """`bit-exact`, `noise floor` or an empty string."""
        return "bit-exact" if self.is_bit_exact else "noise floor" if self.is_noise_floor else ""

    def median_of(self, key: str) -> float | None:
        """Return the median of a metric, or None if it was not measured."""
        return self.values[key].median if key in self.values else None

    def text_of(self, metric: Metric) -> str:
        """Return a metric as text, with its range after several rounds; a dash if it was not measured."""
        spread = self.values.get(metric.key)
        if spread is None:
            return "–"
        if spread.rounds == 1 or spread.minimum == spread.maximum:
            return metric.show(spread.median)
        return f"{metric.show(spread.median)} ({metric.show(spread.minimum)} … {metric.show(spread.maximum)})"

    def outcome(self) -> str:
        """Return in words how the answer compares with the reference's, or why there is no answer."""
        if self.shown.status != "ok":
            return f"{self.shown.status}: {self.shown.reason}"
        divergence = self.shown.divergence
        if divergence is None:
            reference = self.shown.facts.get(REFERENCE_FACT)
            if not reference:
                return "–"
            return "the reference" if reference == self.label else f"same as {reference}"
        margin = "" if math.isnan(divergence.margin) else f", margin {divergence.margin:.2g}"
        tokens = f"{divergence.variant_token!r}, not {divergence.reference_token!r}"
        return f"token {divergence.position + 1}: {tokens}{margin}"


def rows_of(measurements: Iterable[Measurement]) -> list[Row]:
    """Return one row per case: shorter prompts first, otherwise in the order of measuring."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(_without_round(measurement.case), []).append(measurement)
    rows = [_row(tuple(group)) for group in groups.values()]
    return sorted(rows, key=lambda row: row.shown.case.prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """Cases without a result that share one reason.

    Attributes:
        labels: display names.
        status: `failed` or `unavailable`.
        outcome: status and reason in words.
    """

    labels: tuple[str, ...]
    status: str
    outcome: str

    @property
    def names(self) -> str:
        """The display names, separated by commas."""
        return ", ".join(self.labels)


def not_measured(rows: Iterable[Row]) -> list[NotMeasured]:
    """Return what was not measured and why, each reason once, in the order of the rows."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.shown.status != "ok":
            groups.setdefault((row.shown.status, row.outcome()), []).append(row.label)
    return [
        NotMeasured(labels=tuple(labels), status=status, outcome=outcome)
        for (status, outcome), labels in groups.items()
    ]


def _without_round(case: Case) -> str:
    return case.with_changes(round=0, quality=False, time_limit_s=1.0).key


def _row(rounds: tuple[Measurement, ...]) -> Row:
    good = [measurement for measurement in rounds if measurement.status == "ok"]
    shown = next((measurement for measurement in good if measurement.agreements), (good or list(rounds))[0])
    values = {}
    for metric in METRICS:
        numbers = [value for measurement in good if (value := metric.value(measurement)) is not None]
        if numbers:
            values[metric.key] = Spread(
                median=median(numbers), minimum=min(numbers), maximum=max(numbers), rounds=len(numbers)
            )
    return Row(label=shown.case.label, shown=shown, rounds=rounds, values=values)


def _time(key: str, title: str, includes: str, show: Callable[[float], str] = format_seconds) -> Metric:
    def value(measurement: Measurement) -> float | None:
        return None if measurement.timing is None else float(getattr(measurement.timing, key))

    return Metric(key=key, group="time", title=title, includes=includes, value=value, show=show)


def agreement_on(measurement: Measurement, text: str) -> Agreement | None:
    """Return the agreement on one text, or None if it was not measured."""
    return next((agreement for agreement in measurement.agreements if agreement.text == text), None)


def _quality(
    text: str, key: str, title: str, includes: str, show: Callable[[float], str] = format_nats
) -> Metric:
    def value(measurement: Measurement) -> float | None:
        agreement = agreement_on(measurement, text)
        return None if agreement is None else float(getattr(agreement, key))

    includes = f"{includes}; measured on {TEXTS[text]}"
    return Metric(
        key=f"{key}_{text}",
        group="quality",
        title=f"{title}, {text}",
        includes=includes,
        value=value,
        show=show,
    )


def _quality_metrics(text: str) -> tuple[Metric, ...]:
    kl = "of KL(reference ‖ variant) over positions, in nats"
    reverse = "of KL(variant ‖ reference) over positions, in nats"
    return (
        _quality(text, "kl_mean", "KL mean", f"Mean {kl}: 0 is the same distribution"),
        _quality(text, "kl_p99", "KL p99", f"99th percentile {kl}"),
        _quality(text, "kl_max", "KL max", f"Maximum {kl}"),
        _quality(text, "reverse_kl_mean", "reverse KL mean", f"Mean {reverse}"),
        _quality(text, "reverse_kl_p99", "reverse KL p99", f"99th percentile {reverse}"),
        _quality(text, "reverse_kl_max", "reverse KL max", f"Maximum {reverse}"),
        _quality(text, "top1", "top-1", "Share of positions with the same most likely token", format_share),
        _quality(text, "top1_standard_error", "± top-1", "Standard error of the top-1 share", format_share),
        _quality(
            text,
            "max_logit_difference",
            "logit Δ",
            "Largest absolute difference of any logit at any position",
            format_number,
        ),
        _quality(
            text,
            "perplexity_ratio",
            "perplexity ×",
            "Perplexity divided by the reference's; it can be misleading",
            "{:.4g}".format,
        ),
    )


METRICS: tuple[Metric, ...] = (
    *MEMORY_METRICS,
    _time("load_s", "load", "From the start of loading to a usable model"),
    _time(
        "first_forward_s",
        "first forward",
        "The very first forward (the warm-up's), repacking of weights and compilation included",
    ),
    _time(
        "first_token_s",
        "first token",
        "From the call to generate to the first token, after warm-up: the forward of the whole prompt",
    ),
    _time("inter_token_median_s", "per token", "Median time between tokens after the first"),
    _time("inter_token_p95_s", "per token p95", "95th percentile of the time between tokens after the first"),
    _time(
        "tokens_per_s",
        "tokens/s",
        "Tokens after the first divided by the seconds between them",
        format_number,
    ),
    _time(
        "cpu_s", "CPU time", "CPU seconds of the process during the measured generation, all threads together"
    ),
    _time(
        "bytes_read",
        "read",
        "Bytes read from disk during the measured generation, page cache excluded",
        format_bytes,
    ),
    _time(
        "background_cores",
        "background",
        "Average number of cores that other programs kept busy during the measured generation",
        format_number,
    ),
    _time(
        "load_average",
        "load avg.",
        "One-minute load average of the machine before the case; it still includes the previous case",
        format_number,
    ),
    *_quality_metrics("answer"),
    *_quality_metrics("prose"),
)
"""Every figure, in column order."""

BY_KEY = {metric.key: metric for metric in METRICS}
"""Every figure by its key."""


def measured(rows: Iterable[Row], group: str) -> list[Metric]:
    """Return the metrics of `group` that at least one row has."""
    rows = list(rows)
    return [
        metric
        for metric in METRICS
        if metric.group == group and any(metric.key in row.values for row in rows)
    ]
