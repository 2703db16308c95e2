"""Speculation: tokens per sweep, identity with plain generation, and seconds, for each kind of draft.

Each finding is a line in `speculation_<hardware>_<date>.jsonl` as soon as it is there. A run that was cut
off goes on from there when it is started again with the same name and date; `--again` forgets the lines of
its stages. Every stage has a result file of its own.

    python benchmarks/bench_speculation.py --stages acceptance,sweeps --prompts 8
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import RESULTS, Outcome, environment, hardware_slug, option_parser, publish
from random_llama import TINY, write_llama
from speculation_steps import acceptance, counted, mechanism, predicted, wall
from speculation_steps.job import Findings, Job, read_prompts

import layerstream as ls

ALL = (0, 1)
FEW_PROMPTS = 8
TIMED_PROMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        measure: finds what is not found yet.
        report: makes the table of what was found.
        prompts: how many prompts it takes by default; None takes all.
    """

    measure: Callable[[Job], None]
    report: Callable[[Job], Outcome]
    prompts: int | None = None


STAGES = {
    acceptance.STAGE: Stage(measure=acceptance.measure, report=acceptance.report),
    counted.STAGE: Stage(measure=counted.measure, report=counted.report),
    wall.STAGE: Stage(measure=wall.measure, report=wall.report, prompts=TIMED_PROMPTS),
    mechanism.STAGE: Stage(measure=mechanism.measure, report=mechanism.report, prompts=FEW_PROMPTS),
    predicted.STAGE: Stage(measure=predicted.measure, report=predicted.report, prompts=1),
}


def main() -> int:
    options = _options()
    # a stopped run still ends its processes, removes their control groups and writes its tables
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with _files(options) as (model, lines):
        findings = Findings(lines)
        if options.again:
            findings.forget(options.stages)
        facts = environment(model)
        for name in options.stages:
            stage = STAGES[name]
            job = Job(
                model=model,
                prompts=read_prompts(model, options.prompts or (2 if options.quick else stage.prompts)),
                new_tokens=options.new_tokens or (12 if options.quick else 128),
                rounds=1 if options.quick else options.rounds or 2,
                rates=(0,) if options.quick else options.rates,
                ways=options.ways,
                part=options.part,
                is_quick=options.quick,
                findings=findings,
            )
            try:
                if not options.table_only:
                    stage.measure(job)
            finally:
                # what a stopped stage has found is in its table; that of all parts is made by --table-only
                if options.part == ALL:
                    publish(stage.report(job), options, facts)
    return 0


def _options() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument(
        "--stages",
        type=lambda text: text.split(","),
        default=list(STAGES),
        help=f"some of {','.join(STAGES)}",
    )
    parser.add_argument("--prompts", type=int, help="use so many prompts, the kinds in turns")
    parser.add_argument("--new-tokens", type=int, help="the most tokens of an answer (default: 128)")
    parser.add_argument(
        "--rates",
        type=lambda text: tuple(int(each) * 1_000_000 for each in text.split(",")),
        default=(150_000_000, 500_000_000, 0),
        help="read limits of the stage wall in MB/s; 0 is none (default: 150,500,0)",
    )
    parser.add_argument(
        "--ways",
        type=lambda text: tuple(text.split(";")),
        default=(),
        help="names of the ways that sweeps and wall measure, with ; between them (default: all)",
    )
    parser.add_argument(
        "--part",
        type=_part,
        default=ALL,
        help="2/4: let the stage wall measure every fourth prompt, from the second on; four such runs may go "
        "on side by side, each under a read limit of its own, and --table-only makes their table",
    )
    parser.add_argument("--model", type=Path, help="the target's folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--again", action="store_true", help="forget what these stages have found")
    parser.add_argument("--table-only", action="store_true", help="measure nothing; write the tables anew")
    options = parser.parse_args()
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"unknown stages {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return options


def _part(text: str) -> tuple[int, int]:
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text}: the first number must be 1 to the second")
    return number - 1, count


@contextmanager
def _files(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Yield the target's folder and the file of the findings; a quick run's are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="layerstream-bench-", dir=options.work) as folder:
        out = options.out or (Path(folder) if options.quick else RESULTS)
        out.mkdir(parents=True, exist_ok=True)
        if options.model is not None:
            model = options.model
        elif options.quick:
            model = write_llama(Path(folder, "model"), TINY)
        else:
            model = ls.default_model_path()
        yield model, out / f"speculation_{options.hardware or hardware_slug()}_{options.date}.jsonl"


if __name__ == "__main__":
    raise SystemExit(main())
