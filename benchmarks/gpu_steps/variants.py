"""Step `variants`: layerstream-compare's weights variants on a 1B shape, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from .child import FAKE, Case, Child, NotHereError, one_line, report
from .lines import FAILED, OK, SKIPPED, Found, Row
from .models import ONE_B, ensure

PROMPT = "Write a Python function that transforms bytes to giga bytes."
# the first one is what the others are compared with
VARIANTS = ("resident", "streamed", "bnb-int8", "bnb-nf4")
STATUS = {"ok": OK, "unavailable": SKIPPED}
SHOWN = ("held_bytes", "device_held_bytes", "host_held_bytes", "inter_token_median_s", "kl_mean_answer")


def cases(child: Child) -> Iterator[Case]:
    """Yield the one experiment; each of its cases appends a line of its own."""
    yield "compare", 10.0 if child.is_accelerator else 3.0, lambda: compare(child)


def compare(child: Child) -> Found:
    """Run the experiment and report each measurement as it ends."""
    try:
        import layerstream_compare as lc  # noqa: PLC0415 - its requirements may be absent
    except ImportError as error:
        raise NotHereError(f"layerstream_compare cannot be imported: {one_line(error)}") from error
    experiment = lc.Experiment(
        model=str(ensure(child, ONE_B)),
        prompt=PROMPT,
        variants=VARIANTS[:2] if child.is_quick else VARIANTS,
        # compare knows no fake device
        device="cpu" if child.device == FAKE else child.device,
        max_new_tokens=8 if child.is_quick else 24,
        prose=False,
        noise_floor=False,
        time_limit_s=max(5.0, child.remaining_s()),
    )
    ended = 0
    with closing(lc.run(experiment)) as events:
        for event in events:
            if event.measurement is not None:
                add(child, lc, event.measurement)
                ended += event.measurement.status == "ok"
    return Found(figures={"ended": ended})


def add(child: Child, lc: Any, measurement: Any) -> None:
    """Append the line of one variant, with every figure that compare has for it."""
    metrics = {metric.key: metric for metric in lc.METRICS}
    case, status = measurement.case, STATUS.get(measurement.status, FAILED)
    reason = measurement.reason
    values = {key: metric.value(measurement) for key, metric in metrics.items()}
    shown = [
        f"{metrics[key].title} {metrics[key].show(values[key])}"
        for key in SHOWN
        if key in values and values[key] is not None
    ]
    agreements = measurement.agreements
    is_exact = bool(agreements) and all(each.is_bit_exact for each in agreements)
    found = "bit-exact" if is_exact else "runs"
    row = Row(
        what=f"compare, 1B shape: {case.variant}",
        found="the reference" if case.variant == VARIANTS[0] else found,
        target="bit-exact" if case.variant == "streamed" else "",
        met=is_exact if case.variant == "streamed" else None,
        note=", ".join(shown),
        is_promise=True,
    )
    rows = (row,) if status == OK else ()
    figures = {key: value for key, value in values.items() if value is not None}
    report(child, case.variant, status, reason, 0.0, Found(rows=rows, figures=figures))
