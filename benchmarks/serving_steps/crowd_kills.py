"""Many requests, clients that leave, and a server that is killed: is one lost, or an answer mixed up?"""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import Any

from common import MIB, Outcome, verdict

from serving_steps.cases import answers_alone, random_cases
from serving_steps.clients import Case, clients_of
from serving_steps.crowd import AT_ONCE, LEAVE, LOST_S, POOL_THREADS, SETTLE_S, Crowd, settled, until_idle
from serving_steps.job import Job, kept
from serving_steps.kills import STARTING_KILLS, Restarted
from serving_steps.server import Resources

STAGE = "kills"
OPTIONS = ("--budget", "min", "--together", "12", "--context-tokens", "256")
_LOOK_S = 0.02
_PORTS = range(20_000, 30_000)
"""Below those that the system gives to clients: one of them could take the port while no server runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is asked, and how often the server is killed."""

    requests: int
    cases: int
    new_tokens: int
    kills: int


FULL = Size(requests=1000, cases=90, new_tokens=48, kills=20)
QUICK = Size(requests=60, cases=12, new_tokens=10, kills=2)


@dataclass(slots=True, kw_only=True)
class Deaths:
    """What the killed servers have left.

    Attributes:
        open_requests: how many requests were under way at each kill.
        starting: kills of a server that started.
        peaks_bytes: how far the memory of each server rose above what was resident when it was ready.
    """

    open_requests: list[int] = field(default_factory=list)
    starting: int = 0
    peaks_bytes: list[int] = field(default_factory=list)


def run(job: Job) -> Outcome:
    """Measure, and return the table."""
    size = QUICK if job.is_quick else FULL
    cases = random_cases(size.cases, most_new_tokens=size.new_tokens)
    spec = job.spec("kills", job.tiny, *OPTIONS)
    server = Restarted(replace(spec, options=(*spec.options, "--port", str(_free_port()))))
    try:
        planned = server.server.planned_bytes()
        found = asyncio.run(_measure(server, cases, size))
        status = server.server.end()
    finally:
        if server.server.process.poll() is None:
            server.server.kill()
    return _outcome({**found, "planned_bytes": planned, "exit_status": status}, size)


def _free_port() -> int:
    chance = random.Random()
    while True:
        port = chance.choice(_PORTS)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port


async def _measure(server: Restarted, cases: list[Case], size: Size) -> dict[str, Any]:
    """Return what happened while many asked and the server was killed."""
    ready = server.ready
    async with clients_of(server.address) as clients:
        alone = await answers_alone(clients, cases)
        await asyncio.gather(*map(clients.ask, cases[:AT_ONCE]))
    before = await settled(server.server)
    deaths, start_s = Deaths(), monotonic()
    async with clients_of(server.address) as clients:
        crowd = Crowd(clients, cases, alone, asks_again=True)
        killing = _kill_again_and_again(server, crowd, deaths, size)
        # a server that does not start again ends the run: its clients would ask for ever
        await asyncio.gather(killing, *(crowd.ask_one() for _ in range(size.requests)))
        seconds = monotonic() - start_s
        figures = await until_idle(clients)
    last = server.server.resources()
    deaths.peaks_bytes.append(_risen_bytes(server.ready, last))
    after = await settled(server.server, before)
    return {
        "seconds": seconds,
        "outcomes": dict(crowd.outcomes),
        "broken_streams": crowd.num_broken,
        "errors": crowd.errors,
        "figures": figures,
        "at_ready": asdict(ready),
        "before": asdict(before),
        "after": asdict(after),
        "deaths": asdict(deaths),
    }


async def _kill_again_and_again(server: Restarted, crowd: Crowd, deaths: Deaths, size: Size) -> None:
    """Kill the server at random shares of the requests done, and start it again at the same address."""
    chance = random.Random(4)
    num_starting = max(1, round(STARTING_KILLS * size.kills))
    # the last ones are under way together, and then no more requests come
    goals = sorted(chance.randrange(size.requests - AT_ONCE) for _ in range(size.kills - num_starting))
    also_starting = set(chance.sample(range(len(goals)), num_starting))
    for number, goal in enumerate(goals):
        while crowd.outcomes.total() < goal:
            await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(chance.uniform(0, 0.5))
        deaths.peaks_bytes.append(_risen_bytes(server.ready, server.server.resources()))
        deaths.open_requests.append(crowd.num_open)
        server.server.kill()
        if number in also_starting:
            server.start()
            await asyncio.sleep(chance.uniform(0, server.start_up_s))
            server.server.kill()
            deaths.starting += 1
        await asyncio.to_thread(server.start_and_wait)


def _risen_bytes(ready: Resources, now: Resources) -> int:
    """Return how far memory rose above what was resident at first, without code that was used since."""
    return now.peak_bytes - ready.resident_bytes - (now.mapped_bytes - ready.mapped_bytes)


def _outcome(found: dict[str, Any], size: Size) -> Outcome:
    outcome = Outcome(
        theme=f"serving-{STAGE}",
        title="Many requests, clients that leave, and a server that is killed",
        columns=("what", "figure"),
    )
    outcomes, before, after, deaths = found["outcomes"], found["before"], found["after"], found["deaths"]
    kills = len(deaths["open_requests"])
    peak_bytes, budget_bytes = max(deaths["peaks_bytes"]), found["planned_bytes"]["budget"]
    outcome.rows = [(f"requests {words}", str(count)) for words, count in sorted(outcomes.items())]
    outcome.rows += [
        ("kills while requests were under way", str(kills)),
        ("requests under way at a kill, least and most", _least_and_most(deaths["open_requests"])),
        ("kills while the server started", str(deaths["starting"])),
        ("streams that broke after their first chunk, asked for again", str(found["broken_streams"])),
        ("seconds for all", f"{found['seconds']:.0f}"),
        ("threads before, after", f"{before['num_threads']}, {after['num_threads']}"),
        ("descriptors before, after", f"{before['num_descriptors']}, {after['num_descriptors']}"),
        ("highest peak of a server, MiB", f"{peak_bytes / MIB:.1f}"),
        ("the plan's budget, MiB", f"{budget_bytes / MIB:.1f}"),
        ("the last server's exit status after SIGTERM", str(found["exit_status"])),
    ]
    promises = _promises(found, size)
    outcome.verdicts = [
        *kept(promises),
        verdict("kill -9", kills + deaths["starting"], size.kills, at_most=False),
        verdict("highest peak memory / the plan's budget", peak_bytes / budget_bytes, 1.0),
    ]
    outcome.figures = {**found, "promises": promises}
    outcome.notes = _notes(size)
    return outcome


def _promises(found: dict[str, Any], size: Size) -> dict[str, int]:
    """Return how often each promise was broken."""
    outcomes, before, after, deaths = found["outcomes"], found["before"], found["after"], found["deaths"]
    running = found["figures"]["requests_running"] + found["figures"]["requests_waiting"]
    most_threads = max(before["num_threads"], found["at_ready"]["num_threads"] + POOL_THREADS)
    return {
        f"requests lost: without an answer for {LOST_S / 60:.0f} min": outcomes.get("lost", 0),
        "requests not accounted for": size.requests - sum(outcomes.values()),
        "answers mixed up": outcomes.get("mixed up", 0),
        "requests failed": outcomes.get("failed", 0),
        "kills with no request under way": sum(count == 0 for count in deaths["open_requests"]),
        "requests running or waiting afterwards": int(running),
        "threads left beyond asyncio's own": max(0, after["num_threads"] - most_threads),
        "descriptors left": max(0, after["num_descriptors"] - before["num_descriptors"]),
    }


def _least_and_most(counts: list[int]) -> str:
    return f"{min(counts)}, {max(counts)}"


def _notes(size: Size) -> list[str]:
    return [
        f"A tiny random Llama with a tokenizer; {size.cases} different questions of 1 to 120 letters, up to "
        f"{size.new_tokens} tokens, a third of them sampled with a seed. Each was asked alone first. Then "
        f"{size.requests} requests draw from them, up to {AT_ONCE} at once, half of them in streams. "
        f"{LEAVE:.0%} leave: a stream after a random chunk, the others after a random time, unless the "
        "answer came before.",
        "Meanwhile the server is killed with SIGKILL at random shares of the requests done, and started "
        "again at the same address; some kills hit it again while it starts. OpenAI's client itself asks "
        "again when it gets no connection or no answer (max_retries), the test when a stream breaks; what "
        "that stream had brought must begin the answer given alone. Answers are compared in text, number of "
        "tokens and reason of the end.",
        "Peak: the kernel's high-water mark of each server just before its kill, above what was resident "
        "when it was ready and above the pages of libraries used since. Threads and descriptors: of the "
        f"first server after the questions asked alone and {AT_ONCE} at once, and of the last one at the "
        f"end, at most {SETTLE_S:.0f} s after all connections were closed.",
    ]
