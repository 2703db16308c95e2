"""The app: first paint, first token after Compare, Stop, ten visitors at once, and memory over many runs.

A real headless Chromium opens a real app on a real model: the default one, or with --quick a tiny random one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from common import (
    MIB,
    Outcome,
    arguments,
    environment,
    median,
    publish,
    verdict,
    work_directory,
)
from gradio_client import Client
from playwright.sync_api import Browser, sync_playwright
from random_llama import TINY, write_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import layerstream as ls

PROMPT = "What is the capital of France, and what is it known for?"
VISITORS = 10
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
NOTES = [
    "First paint: from opening the address until the masthead is drawn, by the script's clock, in a fresh "
    "browser context with an empty cache; the app is already up. First token: from the click on Compare to "
    "the first word in the first column (streamed, in the least memory that works). Before that word a "
    "process is started, libraries and weights are loaded, and a warm-up is run. Stop: from the click until "
    "the worker is gone.",
    "Visitors: ten programs call /compare at the same moment, each with its own prompt. Each must get the "
    "answer to its own prompt, and no two workers may run at once. Memory: the resident set of the app's "
    "process after each of many whole runs, the first five left out.",
]


def main() -> int:
    options = arguments(__doc__)
    rounds, runs = (1, 6) if options.quick else (options.rounds or 5, 50)
    outcome = Outcome(
        theme="space",
        title="The app: waiting and memory",
        columns=("what", "median", "minimum", "maximum"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        model = str(_tiny(work / "model") if options.quick else ls.default_model_path())
        process, address = _start(model, work)
        try:
            _many_visitors(outcome, address, process.pid)
            _many_runs(outcome, address, process.pid, runs)
            _measure_page(outcome, address, process.pid, rounds)
        finally:
            process.terminate()
            process.wait()
    return publish(outcome, options, facts)


def _tiny(directory: Path) -> Path:
    write_llama(directory, TINY)
    words = {"<unk>": 0, **{chr(32 + index): index + 1 for index in range(95)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)
    return directory


def _start(model: str, work: Path) -> tuple[subprocess.Popen[str], str]:
    log = (work / "app.log").open("w+")
    command = [sys.executable, "-m", "layerstream_space", "--model", model, "--budget", "min"]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
    while " is open at " not in (output := (work / "app.log").read_text()):
        assert process.poll() is None, output
        time.sleep(0.1)
    return process, output.split(" is open at ")[1].split()[0]


def _measure_page(outcome: Outcome, address: str, pid: int, rounds: int) -> None:
    paints, tokens, stops = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(rounds):
            paint, token, stop = _visit(browser, address, pid)
            paints.append(paint)
            tokens.append(token)
            stops.append(stop)
        browser.close()
    for name, values in (
        ("first paint", paints),
        ("first token after Compare", tokens),
        ("worker gone after Stop", stops),
    ):
        outcome.rows.append((name, f"{median(values):.2f} s", f"{min(values):.2f} s", f"{max(values):.2f} s"))
        outcome.figures[name] = values
    outcome.verdicts.append(verdict("worker gone after Stop, seconds, at most", max(stops), 1.0))


def _visit(browser: Browser, address: str, pid: int) -> tuple[float, float, float]:
    context = browser.new_context()
    page = context.new_page()
    start = time.perf_counter()
    page.goto(f"{address}?variants=streamed&tokens=40&budget=min&quality=none")
    page.wait_for_selector(".ls-masthead")
    paint = time.perf_counter() - start
    # wait until the page is filled from the address
    page.wait_for_function("document.querySelectorAll('#variants input:checked').length === 1")
    start = time.perf_counter()
    page.click("#compare")
    page.wait_for_selector(".ls-column .ls-text:not(:has(.ls-wait)):not(:has(.ls-ghost))", timeout=300_000)
    token = time.perf_counter() - start
    # the first run ends by itself; a second one is stopped while its worker is loading
    page.wait_for_selector("a.ls-link", timeout=300_000)
    page.click("#compare")
    while not _workers(pid):
        time.sleep(0.01)
    page.wait_for_timeout(1500)
    start = time.perf_counter()
    page.click("#stop")
    while _workers(pid):
        time.sleep(0.005)
    stop = time.perf_counter() - start
    context.close()
    return paint, token, stop


def _many_visitors(outcome: Outcome, address: str, pid: int) -> None:
    prompts = [f"Visitor number {number} says hello." for number in range(VISITORS)]
    alone = _ask(address, prompts[0])["token_ids"]
    answers: dict[str, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda each=prompt: answers.update({each: _ask(address, each)}))
        for prompt in prompts
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(_workers(pid)))
        time.sleep(0.05)
    elapsed = time.perf_counter() - start
    right = sum(
        answers[prompt]["case"]["prompt"] == prompt and answers[prompt]["status"] == "ok"
        for prompt in prompts
    )
    same = answers[prompts[0]]["token_ids"] == alone
    outcome.rows.append(
        (f"{VISITORS} visitors at once, until the last one has its answer", f"{elapsed:.1f} s", "", "")
    )
    outcome.verdicts.append(
        verdict(f"visitors of {VISITORS} with the answer to their own prompt", right, VISITORS, at_most=False)
    )
    outcome.verdicts.append(verdict("workers at the same time", most, 1))
    outcome.verdicts.append(
        verdict("the first visitor's tokens are those it gets alone (1 is yes)", int(same), 1, at_most=False)
    )
    outcome.figures["visitors"] = {
        "seconds": elapsed,
        "right": right,
        "most_workers": most,
        "same_alone": same,
    }


def _ask(address: str, prompt: str) -> dict[str, Any]:
    (result,) = Client(address, verbose=False).predict(
        prompt, ["resident"], 8, "min", "", "none", api_name="/compare"
    )
    return result


def _many_runs(outcome: Outcome, address: str, pid: int, runs: int) -> None:
    client, sizes = Client(address, verbose=False), []
    for _ in range(runs):
        client.predict(PROMPT, ["streamed"], 4, "min", "", "none", api_name="/compare")
        sizes.append(_resident_mib(pid))
    counted = sizes[5:] or sizes
    growth = counted[-1] - counted[0]
    outcome.rows.append(
        (
            f"resident memory of the app over {runs} runs",
            *(f"{f(counted):.1f} MiB" for f in (median, min, max)),
        )
    )
    outcome.verdicts.append(verdict(f"growth over {len(counted)} runs in MiB", growth, 5.0))
    outcome.figures["resident_mib"] = sizes


def _workers(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX" and "layerstream_compare.worker" in command:
            found.append(int(path.parent.name))
    return found


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmRSS"))) * 1024 / MIB


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
