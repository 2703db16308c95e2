"""Draw `docs/timeline.svg`: two sweeps of a real run of the default model, within a quarter of its weights.

Run it from the root of the repository: `python docs/make_timeline.py [--out FILE.svg] [--budget 64MiB]`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from transformers import AutoTokenizer

import layerstream as ls
from layerstream.cli.trace_export import gantt_svg
from layerstream.default_model import default_model_path

WARM_UP_TOKENS = 3
DRAWN_SWEEPS = 2
FRAME = """<style>.frame{fill:#fff;stroke:#d9dee4}
@media (prefers-color-scheme:dark){.frame{fill:#14181d;stroke:#39414b}}</style>"""


def main() -> None:
    """Run, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("timeline.svg"))
    parser.add_argument("--budget", default="64MiB")
    arguments = parser.parse_args()
    spans, plan = run(arguments.budget)
    svg = framed(gantt_svg(spans, width_px=1180, label=f"two sweeps of {Path(plan.model_name).name}"))
    arguments.out.write_text(svg, encoding="utf-8")
    parser.exit(message=f"{arguments.out}: {len(spans)} spans\n{plan.explain()}\n")


def run(budget: str) -> tuple[list[ls.Span], ls.PlacementPlan]:
    """Return the spans of a few decode sweeps in the steady state, and their plan."""
    path = default_model_path()
    inputs = AutoTokenizer.from_pretrained(path)("The capital of France is", return_tensors="pt")
    workload = ls.Workload(
        prompt_tokens=inputs["input_ids"].shape[1], new_tokens=WARM_UP_TOKENS + DRAWN_SWEEPS + 1
    )
    with ls.load(path, budget=budget, device="cpu", workload=workload) as streamed:
        streamed.generate(**inputs, max_new_tokens=workload.new_tokens, do_sample=False)
        spans = streamed.timeline.spans()
        drawn = range(WARM_UP_TOKENS, WARM_UP_TOKENS + DRAWN_SWEEPS)
        computed = [span for span in spans if span.activity is ls.Activity.COMPUTE and span.sweep in drawn]
        begin_s, end_s = min(span.start_s for span in computed), max(span.end_s for span in computed)
        return [span for span in spans if span.start_s >= begin_s and span.end_s <= end_s], streamed.plan


def framed(svg: str) -> str:
    """Return the drawing on its own background: the page may be dark while the reader's system is light."""
    head, body = svg.split("</style>", 1)
    background = '<rect class="frame" x="0.5" y="0.5" width="99.9%" height="99.5%" rx="6"/>'
    return re.sub(r"\s+\n", "\n", f"{head}</style>{FRAME}{background}{body}\n")


if __name__ == "__main__":
    main()
