"""Every figure of the reports: its title, what it includes, how it is read from a measurement and how it is written.

Pure: it knows measurements and numbers. Where a figure is shown is the reports' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from ..case import Case
from ..divergence import EXACT_VARIANTS, REFERENCE_FACT
from ..measurement import Agreement, Measurement, Memory
from ..units import format_bytes, format_nats, format_number, format_seconds, format_share

Value = Callable[[Measurement], "float | None"]

TEXTS = {"answer": "the reference's own answer", "prose": "the text that ships with the package"}
"""What agreement is measured on."""


NOISE_FLOOR = (
    "The original weights with another attention kernel: what differs no more than this differs by rounding"
)
"""What a noise-floor row is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
        key: its name in the CSV file, unit included.
        group: `memory`, `time` or `quality`.
        title: the column's heading.
        includes: what the number includes, for the heading's tooltip.
        value: reads it from a measurement, in bytes, seconds, nats or shares; None where it was not measured.
        show: writes it for people, with its unit.
    """

    key: str
    group: str
    title: str
    includes: str
    value: Value
    show: Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over rounds.

    Attributes:
        median: of all rounds.
        least: smallest.
        most: largest.
        rounds: how many.
    """

    median: float
    least: float
    most: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case in the reports: all its rounds together.

    Attributes:
        label: its name.
        shown: the measurement that speaks for it: the first good one, quality included, or else the first.
        rounds: all of its measurements.
        values: a spread for each metric that was measured, by key.
    """

    label: str
    shown: Measurement
    rounds: tuple[Measurement, ...]
    values: dict[str, Spread]

    @property
    def is_noisy(self) -> bool:
        """Whether any round was disturbed."""
        return any(each.timing is not None and each.timing.is_noisy for each in self.rounds)

    @property
    def is_bit_exact(self) -> bool:
        """Whether every compared logit is the reference's, bit for bit."""
        agreements = self.shown.agreements
        return bool(agreements) and all(each.is_bit_exact for each in agreements)

    @property
    def is_noise_floor(self) -> bool:
        """Whether these are the original weights with another attention kernel: what differs here is rounding."""
        return (
            self.shown.case.variant in EXACT_VARIANTS
            and bool(self.shown.agreements)
            and not self.is_bit_exact
        )

    @property
    def standing(self) -> str:
        """Return `bit-exact`, `noise floor`, or nothing."""
        return "bit-exact" if self.is_bit_exact else "noise floor" if self.is_noise_floor else ""

    def median_of(self, key: str) -> float | None:
        """Return the median of a metric, or None where it was not measured."""
        return self.values[key].median if key in self.values else None

    def text_of(self, metric: Metric) -> str:
        """Return a metric for people; its range too after several rounds; a dash where it was not measured."""
        spread = self.values.get(metric.key)
        if spread is None:
            return "–"
        if spread.rounds == 1 or spread.least == spread.most:
            return metric.show(spread.median)
        return f"{metric.show(spread.median)} ({metric.show(spread.least)} … {metric.show(spread.most)})"

    def outcome(self) -> str:
        """Return in words how the answer compares: the first different token, the same answer, or why there is none."""
        if self.shown.status != "ok":
            return f"{self.shown.status}: {self.shown.reason}"
        found = self.shown.divergence
        if found is None:
            reference = self.shown.facts.get(REFERENCE_FACT)
            return (
                "–"
                if not reference
                else "the reference"
                if reference == self.label
                else f"same as {reference}"
            )
        margin = "" if math.isnan(found.margin) else f", margin {found.margin:.2g}"
        return f"token {found.position + 1}: {found.variant_token!r}, not {found.reference_token!r}{margin}"


def rows_of(measurements: Iterable[Measurement]) -> list[Row]:
    """Return one row a case, in the order in which they were first measured, shorter prompts first."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(_without_round(measurement.case), []).append(measurement)
    rows = [_row(tuple(group)) for group in groups.values()]
    return sorted(rows, key=lambda row: row.shown.case.prompt_tokens)


def _without_round(case: Case) -> str:
    return case.with_changes(round=0, quality=False, time_limit_s=1.0).key


def _row(rounds: tuple[Measurement, ...]) -> Row:
    good = [each for each in rounds if each.status == "ok"]
    shown = next((each for each in good if each.agreements), (good or list(rounds))[0])
    values = {}
    for metric in METRICS:
        found = [value for each in good if (value := metric.value(each)) is not None]
        if found:
            values[metric.key] = Spread(
                median=median(found), least=min(found), most=max(found), rounds=len(found)
            )
    return Row(label=shown.case.label, shown=shown, rounds=rounds, values=values)


def _memory(key: str, title: str, includes: str, read: Callable[[Memory], int | None]) -> Metric:
    def value(measurement: Measurement) -> float | None:
        return None if measurement.memory is None else read(measurement.memory)

    return Metric(key=key, group="memory", title=title, includes=includes, value=value, show=format_bytes)


def _working(memory: Memory) -> int:
    device_peak = _highest("device_allocated_bytes")(memory)
    if device_peak:
        return max(0, device_peak - memory.device_held_bytes)
    return max(0, memory.peak_over_baseline_bytes - memory.held_bytes - (_mapped(memory) or 0))


def _mapped(memory: Memory) -> int | None:
    phases = {phase.phase: phase for phase in memory.phases}
    if not {"import", "decode"} <= phases.keys():
        return None
    return max(0, phases["decode"].file_bytes - phases["import"].file_bytes - memory.mapped_held_bytes)


def _prefill_extra(memory: Memory) -> int | None:
    phases = {phase.phase: phase for phase in memory.phases}
    # the warm-up is what brings mapped weights into memory: after it they are no part of the prompt's cost
    before = phases.get("warm-up") or phases.get("load")
    if before is None or "first-token" not in phases:
        return None
    return max(0, phases["first-token"].peak_bytes - before.anonymous_bytes - before.file_bytes)


def _highest(key: str) -> Callable[[Memory], int | None]:
    def read(memory: Memory) -> int | None:
        return max((getattr(phase, key) for phase in memory.phases), default=0) or None

    return read


def _time(key: str, title: str, includes: str, show: Callable[[float], str] = format_seconds) -> Metric:
    def value(measurement: Measurement) -> float | None:
        return None if measurement.timing is None else float(getattr(measurement.timing, key))

    return Metric(key=key, group="time", title=title, includes=includes, value=value, show=show)


def agreement_on(measurement: Measurement, text: str) -> Agreement | None:
    """Return the agreement on one text, or None where it was not measured."""
    return next((each for each in measurement.agreements if each.text == text), None)


def _quality(
    text: str, key: str, title: str, includes: str, show: Callable[[float], str] = format_nats
) -> Metric:
    def value(measurement: Measurement) -> float | None:
        found = agreement_on(measurement, text)
        return None if found is None else float(getattr(found, key))

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
    back = "of KL(variant ‖ reference) over positions, in nats"
    return (
        _quality(text, "kl_mean", "KL mean", f"Mean {kl}: 0 is the same distribution"),
        _quality(text, "kl_p99", "KL p99", f"99th percentile {kl}"),
        _quality(text, "kl_max", "KL max", f"Maximum {kl}"),
        _quality(text, "reverse_kl_mean", "reverse KL mean", f"Mean {back}"),
        _quality(text, "reverse_kl_p99", "reverse KL p99", f"99th percentile {back}"),
        _quality(text, "reverse_kl_max", "reverse KL max", f"Maximum {back}"),
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
            "Perplexity divided by the reference's; it may mislead",
            "{:.4g}".format,
        ),
    )


METRICS: tuple[Metric, ...] = (
    _memory(
        "needed_bytes",
        "needed",
        "Held and working together: the highest moment, without the pages of files that the system takes back when memory is short",
        lambda memory: memory.held_bytes + _working(memory),
    ),
    _memory(
        "held_bytes",
        "held",
        "Weights and quantization state that the loaded model keeps: its own storages, each counted once. A streamed model's slots "
        "and buffers are included, activations and the library's code are not",
        lambda memory: memory.held_bytes,
    ),
    _memory(
        "working_bytes",
        "working",
        "Peak over the baseline minus held and mapped: activations, key-value cache, temporary copies while loading. On an "
        "accelerator: its allocator's peak minus what is held there",
        _working,
    ),
    _memory(
        "mapped_bytes",
        "mapped",
        "Pages of files that stay mapped though no weight is kept in them: the checkpoint that was quantized from, the libraries' "
        "code. They count as resident, and the system takes them back when memory is short",
        _mapped,
    ),
    _memory(
        "peak_over_baseline_bytes",
        "peak",
        "Highest resident set of load, first token and decode, minus the resident set after all imports; mapped files included",
        lambda memory: memory.peak_over_baseline_bytes,
    ),
    _memory(
        "load_spike_bytes",
        "load spike",
        "Peak while loading over what is resident after it: needed for a moment only, but needed",
        lambda memory: memory.load_spike_bytes,
    ),
    _memory(
        "prefill_extra_bytes",
        "prefill extra",
        "Peak until the first token over what was resident after the warm-up: the prompt's activations, attention and cache",
        _prefill_extra,
    ),
    _memory(
        "device_peak_bytes",
        "device peak",
        "Highest of the accelerator's allocator in any phase",
        _highest("device_allocated_bytes"),
    ),
    _memory(
        "device_reserved_bytes",
        "device reserved",
        "Highest that the accelerator's allocator held in any phase, its cache of free pieces included",
        _highest("device_reserved_bytes"),
    ),
    _memory(
        "device_process_bytes",
        "device process",
        "Most that NVML counted for the process at the end of a phase: the allocator's memory, CUDA's context and its kernels",
        _highest("device_process_bytes"),
    ),
    _memory(
        "baseline_bytes",
        "baseline",
        "Resident set after importing everything, before loading",
        lambda memory: memory.baseline_bytes,
    ),
    _time("load_s", "load", "From the start of loading to a usable model"),
    _time(
        "first_forward_s",
        "first forward",
        "The very first forward, the warm-up's: repacking of weights and compilation included",
    ),
    _time(
        "first_token_s",
        "first token",
        "From calling generate to the first token, after warm-up: the whole prompt's forward",
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
    _time("bytes_read", "read", "Bytes truly read from disk during the measured generation", format_bytes),
    _time(
        "others_cores",
        "others",
        "Cores that other programs kept busy on average during the measured generation",
        format_number,
    ),
    _time(
        "load_average",
        "load avg.",
        "The machine's load average of one minute before the case, the case before included",
        format_number,
    ),
    *_quality_metrics("answer"),
    *_quality_metrics("prose"),
)
"""Every figure, in the order of the columns."""

BY_KEY = {metric.key: metric for metric in METRICS}
"""The same, by key."""


def measured(rows: Iterable[Row], group: str) -> list[Metric]:
    """Return the metrics of `group` that at least one row has."""
    rows = list(rows)
    return [
        metric
        for metric in METRICS
        if metric.group == group and any(metric.key in row.values for row in rows)
    ]
