"""The server: many clients against one, a new request while a sweep runs, and what a long time leaves behind.

The server is the real command in a process of its own; the clients are OpenAI's and httpx.

    python benchmarks/bench_serving.py --stages together,waiting,soak,kills
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from common import Outcome, environment, option_parser, publish, work_directory
from serving_steps import crowd_kills, soak, together, waiting
from serving_steps.job import Job

import layerstream as ls

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages" / "layerstream" / "tests"))

from kit.tiny_llama import save_tiny_llama

STAGES: dict[str, Callable[[Job], Outcome]] = {
    together.STAGE: together.run,
    waiting.STAGE: waiting.run,
    soak.STAGE: soak.run,
    crowd_kills.STAGE: crowd_kills.run,
}


def main() -> int:
    options = _options()
    # a stopped run still ends its servers and removes its control groups
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with work_directory(options) as work:
        tiny = save_tiny_llama(work / "tiny")
        model = options.model or (tiny if options.quick else ls.default_model_path())
        for name in options.stages:
            facts = environment(model)
            folder = work / name
            folder.mkdir()
            job = Job(
                work=folder,
                model=model,
                tiny=tiny,
                rounds=1 if options.quick else options.rounds or 2,
                rate=0 if options.quick else options.rate * 1_000_000,
                is_quick=options.quick,
            )
            publish(STAGES[name](job), options, facts)
    return 0


def _options() -> argparse.Namespace:
    parser = option_parser(__doc__ or "")
    parser.add_argument(
        "--stages",
        type=lambda text: text.split(","),
        default=list(STAGES),
        help=f"some of {','.join(STAGES)}",
    )
    parser.add_argument(
        "--rate", type=int, default=150, help="the read limit in MB/s; 0 is none (default: 150)"
    )
    parser.add_argument("--model", type=Path, help="the slow model's folder (default: SmolLM2-135M-Instruct)")
    options = parser.parse_args()
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"unknown stages {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
