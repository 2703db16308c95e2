"""Try every use of a streamed model that must equal the plain one: adapters, and torch's modes.

Writes a table: each kind of adapter on each family, at three budgets in three dtypes, and each mode of torch,
frozen and not. Nothing is timed. `--device cuda:0` tries the same on an accelerator. Writes to weights have a
test for each kind: `packages/layerstream/tests/faults/test_writes_to_weights.py`.

    python benchmarks/bench_uses.py --jobs 2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "packages/layerstream/tests"
RESULTS = ROOT / "benchmarks/results"
FAMILIES = (
    "llama",
    "llama_tied",
    "gpt2",
    "falcon_new_decoder",
    "mixtral",
    "qwen3_moe",
    "gemma2",
    "opt",
    "phi",
    "bloom",
)
DTYPES = ("float32", "bfloat16", "float16")
QUICK_DTYPES = ("bfloat16",)
BUDGETS = ("disk", "half", "resident")
MODES = ("no_grad", "inference_mode", "enable_grad")

Row = tuple[str, str, str, str, str]
"""Use, family, dtype, budget, and what happened."""


def main() -> None:
    """Run every case in processes of their own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one family in one dtype; without --out, no file is written"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the Markdown file to write (default: benchmarks/results/uses_DEVICE_DATE.md)",
    )
    parser.add_argument("--device", default="cpu", help="where the models compute")
    parser.add_argument("--families", nargs="+", help="keys of the test kit's families")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    options = parser.parse_args()
    families = options.families or (FAMILIES[:1] if options.quick else FAMILIES)
    dtypes = QUICK_DTYPES if options.quick else DTYPES
    cases = [(family, dtype, options.device) for family in families for dtype in dtypes]
    rows: list[Row] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=4) as pool:
        for found in pool.map(try_all, cases):
            rows += found
            print(found[0][1], found[0][2], Counter(row[4] for row in found).most_common(3), flush=True)
    out = options.out or (None if options.quick else default_file(options.device))
    if out is not None:
        out.write_text(as_markdown(rows, options.device), encoding="utf-8")
        print(f"wrote {out}")


def default_file(device: str) -> Path:
    """Return the result file of today."""
    return RESULTS / f"uses_{device.replace(':', '')}_{date.today().isoformat()}.md"


def try_all(case: tuple[str, str, str]) -> list[Row]:
    """Return what happened to each use of one family in one dtype."""
    family, dtype, device = case
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(TESTS))
    from uses_cases import Bench  # noqa: PLC0415 - needs the test kit's folder

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(family, dtype, device, Path(folder))
        return [
            (use, family, dtype, budget, outcome)
            for budget in BUDGETS
            for use, outcome in (*tried(bench.adapters(budget)), *tried(bench.modes(budget)))
        ]


def tried(cases: Iterator[tuple[str, Callable[[], str | None]]]) -> Iterator[tuple[str, str]]:
    """Run each case; its outcome is `equal`, the first difference, or the error."""
    for use, run in cases:
        try:
            yield use, run() or "equal"
        except Exception as error:  # noqa: BLE001 - whatever a use raises is what the table is about
            yield use, f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"


def as_markdown(rows: list[Row], device: str) -> str:
    """Return one line for each use and family, with a column for each budget."""
    import torch  # noqa: PLC0415 - the parent needs it for its version alone
    import transformers  # noqa: PLC0415

    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    lines = [
        f"# Uses of a streamed model against the plain one ({where})",
        "",
        f"{versions}. Every cell names the dtypes in which logits, and greedy and sampled tokens with their "
        "scores, equal plain transformers (and peft) in every bit. Anything else is listed below the table.",
        "",
        "| use | family | least budget | half resident | resident |",
        "|---|---|---|---|---|",
    ]
    found = {row[:4]: row[4] for row in rows}
    for use, family in dict.fromkeys((row[0], row[1]) for row in rows):
        cells = [
            ", ".join(d for d in DTYPES if found.get((use, family, d, budget)) == "equal") or "see below"
            for budget in BUDGETS
        ]
        lines.append(f"| {use} | {family} | " + " | ".join(cells) + " |")
    others = Counter((row[0], row[1], row[4]) for row in rows if row[4] != "equal")
    lines += [
        "",
        "## Not equal, or refused",
        "",
        "| use | family | cases | what happened |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {use} | {family} | {count} | {outcome.replace('|', '/')} |"
        for (use, family, outcome), count in others.items()
    ]
    total = sum(row[4] == "equal" for row in rows)
    return "\n".join([*lines, "", f"{total} of {len(rows)} cases are equal.", ""])


if __name__ == "__main__":
    main()
