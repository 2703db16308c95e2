"""A new request while a sweep runs: how soon it hears from the server, and how many sweeps it waits."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from time import perf_counter
from typing import Any

from common import Outcome, median, verdict
from read_limit import read_limited

from serving_steps.clients import CHAT, Case, Clients, clients_of
from serving_steps.job import Job, kept, read_prompts
from serving_steps.server import running_server

STAGE = "waiting"
CONTEXT_TOKENS = 512
LONG_TOKENS = 400
FIRST_BYTE_MS = 50.0
MOST_SWEEPS = 2
PROBES = 50
QUICK_PROBES = 5
TOGETHER = 4
_LOOK_S = 0.01


def run(job: Job) -> Outcome:
    """Measure, and return the table."""
    budget = job.least_budget(together=TOGETHER, context_tokens=CONTEXT_TOKENS)
    options = ("--budget", budget, "--together", str(TOGETHER), "--context-tokens", str(CONTEXT_TOKENS))
    with read_limited(job.model) as reads:
        spec = job.spec("waiting", job.model, *options, reads=reads)
        with running_server(spec) as (_, address):
            reads.set(job.rate)
            probes, sweep_s = asyncio.run(_measure(job, address))
            # what is left of the long answer ends at the disk's own speed
            reads.set(0)
        has_limit = bool(reads.group)
    return _outcome(job, probes, sweep_s, has_limit)


async def _measure(job: Job, address: str) -> tuple[list[dict[str, float]], float]:
    """Return what each new request saw, and the seconds of a sweep."""
    chance = random.Random(0)
    prompts = read_prompts(40)
    async with clients_of(address) as clients:
        await clients.ask(Case(prompt="Hello", new_tokens=2))
        long = asyncio.create_task(_answer_at_length(clients, prompts[0]))
        probes = []
        for number in range(QUICK_PROBES if job.is_quick else PROBES):
            while (
                not (figures := await clients.figures())["requests_running"] or not figures["sweep_seconds"]
            ):
                await asyncio.sleep(_LOOK_S)
            # anywhere in a sweep
            await asyncio.sleep(chance.uniform(0, figures["sweep_seconds"]))
            case = Case(prompt=prompts[1 + number % (len(prompts) - 1)], new_tokens=1)
            probes.append(await _probe(clients, case))
        sweep_s = (await clients.figures())["sweep_seconds"]
        long.cancel()
        with suppress(asyncio.CancelledError):
            await long
    return probes, sweep_s


async def _answer_at_length(clients: Clients, prompt: str) -> None:
    """Keep a long answer running."""
    while True:
        await clients.ask_for_stream(Case(prompt=prompt, new_tokens=LONG_TOKENS))


async def _probe(clients: Clients, case: Case) -> dict[str, float]:
    """Ask for one token; return milliseconds until the headers, the first comment and the token."""
    before = await clients.figures()
    found: dict[str, float] = {}
    start_s = perf_counter()

    def since() -> float:
        return 1000 * (perf_counter() - start_s)

    async with clients.http.stream("POST", CHAT, json={**case.body(), "stream": True}) as response:
        found["headers_ms"] = since()
        async for line in response.raise_for_status().aiter_lines():
            if line.startswith(":") and "first_byte_ms" not in found:
                found["first_byte_ms"] = since()
            if line.startswith("data:") and "first_token_ms" not in found:
                found["first_token_ms"] = since()
                after = await clients.figures()
                found["sweeps"] = after["sweeps_total"] - before["sweeps_total"]
    return found


def _outcome(job: Job, probes: list[dict[str, float]], sweep_s: float, has_limit: bool) -> Outcome:
    outcome = Outcome(
        theme=f"serving-{STAGE}",
        title="A new request while a sweep runs",
        columns=("until", "median", "worst", "unit"),
    )
    answered = [probe for probe in probes if "first_token_ms" in probe]
    names = {
        "headers_ms": ("its headers", "ms"),
        "first_byte_ms": ("its first byte of the body, a comment", "ms"),
        "first_token_ms": ("its first token", "ms"),
        "sweeps": ("its first token", "sweeps begun"),
    }
    for key, (words, unit) in names.items():
        values = [probe[key] for probe in answered]
        outcome.rows.append((words, f"{median(values):.1f}", f"{max(values):.1f}", unit))
    first_ms = [probe["first_byte_ms"] for probe in answered]
    promises = {"new requests without an answer": len(probes) - len(answered)}
    outcome.verdicts = [
        verdict("ms until the first byte, median", median(first_ms), FIRST_BYTE_MS),
        verdict("sweeps until the first token, worst", max(each["sweeps"] for each in answered), MOST_SWEEPS),
        *kept(promises),
    ]
    figures: dict[str, Any] = {"probes": probes, "sweep_s": sweep_s, "promises": promises}
    outcome.figures = figures
    limit = f"limited to {job.rate / 1e6:.0f} MB/s" if job.rate and has_limit else "not limited"
    outcome.notes = [
        f"{len(probes)} new requests, one after another, each at a random moment of a sweep, while a long "
        f"answer streams; reads are {limit}, and a sweep takes {sweep_s:.2f} s. httpx on a connection that "
        "is open. The clients ran on the same cores.",
        "Sweeps begun: between two looks at /metrics, one just before the request and one after its first "
        "token. The request joins the sweep that begins next; when the client sees the token, the "
        "following one has mostly begun, so 2 is the least that can be promised.",
    ]
    return outcome
