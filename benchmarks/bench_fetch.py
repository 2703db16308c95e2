"""Weights from a slow web server: how long is the first answer after the download alone?"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from common import Outcome, environment, median, median_ratio, option_parser, publish, verdict, work_directory
from random_llama import TINY, write_llama

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages" / "layerstream" / "tests"))

from kit.web_folder import web_folder

import layerstream as ls

TARGET = 1.05
WORKLOAD = ls.Workload(prompt_tokens=64, new_tokens=8)
BUDGETS = {"all blocks streamed": "100 MiB", "all in memory": "2 GiB"}
NOTES = [
    "The server is a process of its own that sends each file at a fixed rate. The download is `fetch` into "
    "an empty folder. The first answer is `load` with an empty cache and one token for a prompt of 64. Both "
    "are measured in one process, after the imports and a load from disk.",
    "The model is one file, in which the blocks are sorted by name: when block 9 arrives last, the sweep "
    "still has 20 blocks before it.",
]


def main() -> int:
    parser = option_parser(__doc__)
    parser.add_argument("--rate", type=float, default=5e6, help="bytes per second that the server sends")
    options = parser.parse_args()
    rate = 1e6 if options.quick else options.rate
    outcome = Outcome(
        theme="fetch",
        title=f"Weights from a server that sends {rate / 1e6:g} MB/s",
        columns=("", "download alone, s", "first answer, s", "ratio"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        # another machine's proxy must not come between
        os.environ["no_proxy"] = "127.0.0.1"
        model = write_llama(work / "model", TINY) if options.quick else Path(ls.default_model_path())
        with _server(model, rate) as url:
            for name, budget in BUDGETS.items():
                _measure(
                    outcome, name, budget, url, model, work, options.rounds or (1 if options.quick else 3)
                )
    return publish(outcome, options, facts)


def _measure(
    outcome: Outcome, name: str, budget: str, url: str, model: Path, work: Path, rounds: int
) -> None:
    _answer(str(model), budget, None)
    downloads, answers = [], []
    for number in range(rounds):
        place = work / f"{budget.replace(' ', '')}-{number}"
        downloads.append(_timed(partial(ls.fetch, url, place / "download")))
        answers.append(_timed(partial(_answer, url, budget, place / "cache")))
    ratio = median_ratio(answers, downloads)
    outcome.rows.append((name, f"{median(downloads):.2f}", f"{median(answers):.2f}", f"{ratio:.3f}"))
    outcome.figures[name] = {"download_s": downloads, "first_answer_s": answers}
    outcome.verdicts.append(verdict(f"{name}: the first answer by the download", ratio, TARGET))


def _timed(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def _answer(model: str, budget: str, cache: Path | None) -> None:
    prompt = torch.arange(3, 67)[None]
    with ls.load(model, budget=budget, device="cpu", workload=WORKLOAD, cache_dir=cache) as streamed:
        streamed.generate(prompt, max_new_tokens=1, do_sample=False)


@contextmanager
def _server(folder: Path, bytes_per_s: float) -> Iterator[str]:
    """Serve `folder` from another process, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(folder, bytes_per_s, there))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send("end")
        process.join()


def _serve(folder: Path, bytes_per_s: float, pipe: multiprocessing.connection.Connection) -> None:
    with web_folder(folder) as served:
        served.bytes_per_s = bytes_per_s
        pipe.send(served.address)
        pipe.recv()


if __name__ == "__main__":
    sys.exit(main())
