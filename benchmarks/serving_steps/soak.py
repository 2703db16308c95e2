"""Many requests, and clients that leave: is an answer ever another's, and does anything stay behind?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from common import MIB, Outcome, verdict

from serving_steps.cases import answers_alone, random_cases
from serving_steps.clients import Answer, Case, clients_of
from serving_steps.crowd import AT_ONCE, LEAVE, POOL_THREADS, SETTLE_S, Crowd, settled, until_idle
from serving_steps.job import Job, kept
from serving_steps.kills import INVALID_EVERY, Killed, Restarted, batch_through_kills
from serving_steps.server import Server

STAGE = "soak"
OPTIONS = ("--budget", "min", "--together", "12", "--context-tokens", "256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is asked."""

    requests: int
    cases: int
    new_tokens: int
    lines: int
    kills: int


FULL = Size(requests=1000, cases=90, new_tokens=48, lines=1000, kills=20)
QUICK = Size(requests=40, cases=12, new_tokens=10, lines=60, kills=2)


def run(job: Job) -> Outcome:
    """Measure, and return the table."""
    size = QUICK if job.is_quick else FULL
    cases = random_cases(size.cases, most_new_tokens=size.new_tokens)
    server = Restarted(job.spec("soak", job.tiny, *OPTIONS))
    try:
        at_ready, planned = server.ready, server.server.planned_bytes()
        alone, found = asyncio.run(_soak(server.address, server.server, cases, size))
        killed = batch_through_kills(server, cases, alone, num_lines=size.lines, num_kills=size.kills)
        status = server.server.end()
    finally:
        if server.server.process.poll() is None:
            server.server.kill()
    found |= {"at_ready": asdict(at_ready), "planned_bytes": planned, "exit_status": status}
    return _outcome(found, killed, size)


async def _soak(
    address: str, server: Server, cases: list[Case], size: Size
) -> tuple[list[Answer], dict[str, Any]]:
    """Return the answers given alone, and what happened when many asked."""
    async with clients_of(address) as clients:
        alone = await answers_alone(clients, cases)
        # what is made when it is first needed, and stays
        await asyncio.gather(*map(clients.ask, cases[:AT_ONCE]))
    before = await settled(server)
    start_s = monotonic()
    async with clients_of(address) as clients:
        crowd = Crowd(clients, cases, alone)
        await asyncio.gather(*(crowd.ask_one() for _ in range(size.requests)))
        seconds = monotonic() - start_s
        figures = await until_idle(clients)
    after = await settled(server, before)
    found = {"seconds": seconds, "outcomes": dict(crowd.outcomes), "errors": crowd.errors, "figures": figures}
    return alone, {**found, "before": asdict(before), "after": asdict(after)}


def _outcome(found: dict[str, Any], killed: Killed, size: Size) -> Outcome:
    outcome = Outcome(
        theme=f"serving-{STAGE}",
        title="Many requests, clients that leave, and a batch through kills",
        columns=("what", "figure"),
    )
    outcomes, before, after = found["outcomes"], found["before"], found["after"]
    ready, planned = found["at_ready"], found["planned_bytes"]
    code_bytes = after["mapped_bytes"] - ready["mapped_bytes"]
    peak_bytes = after["peak_bytes"] - ready["resident_bytes"] - code_bytes
    outcome.rows = [(f"requests {words}", str(count)) for words, count in sorted(outcomes.items())]
    outcome.rows += [
        ("seconds for them", f"{found['seconds']:.0f}"),
        ("threads before, after", f"{before['num_threads']}, {after['num_threads']}"),
        ("descriptors before, after", f"{before['num_descriptors']}, {after['num_descriptors']}"),
        ("resident before the first request, MiB", f"{ready['resident_bytes'] / MIB:.1f}"),
        ("code used first by requests, MiB", f"{code_bytes / MIB:.1f}"),
        ("peak above both, MiB", f"{peak_bytes / MIB:.1f}"),
        ("the plan's budget, MiB", f"{planned['budget'] / MIB:.1f}"),
        ("the server's exit status after SIGTERM", str(found["exit_status"])),
        ("lines of the batch", str(killed.num_lines)),
        ("kills", ", ".join(f"{count} {when}" for when, count in killed.kills.items())),
        ("seconds for the batch", f"{killed.seconds:.0f}"),
    ]
    running = found["figures"]["requests_running"] + found["figures"]["requests_waiting"]
    # a pool that has not grown to its end may still do so
    most_threads = max(before["num_threads"], ready["num_threads"] + POOL_THREADS)
    promises = {
        "answers mixed up": outcomes.get("mixed up", 0),
        "requests failed": outcomes.get("failed", 0),
        "requests running or waiting afterwards": int(running),
        "threads left beyond asyncio's own": max(0, after["num_threads"] - most_threads),
        "descriptors left": max(0, after["num_descriptors"] - before["num_descriptors"]),
        **killed.promises(),
    }
    outcome.verdicts = [
        *kept(promises),
        verdict("peak memory / the plan's budget", peak_bytes / planned["budget"], 1.0),
    ]
    outcome.figures = {**found, "killed": asdict(killed), "promises": promises}
    outcome.notes = _notes(size)
    return outcome


def _notes(size: Size) -> list[str]:
    return [
        f"A tiny random Llama with a tokenizer; {size.cases} different questions of 1 to 120 letters, up to "
        f"{size.new_tokens} tokens, a third of them sampled with a seed. Each was asked alone first. Then "
        f"{size.requests} requests draw from them, up to {AT_ONCE} at once (the server's memory takes fewer, "
        f"the others wait), half of them in streams. {LEAVE:.0%} leave: a stream after a random chunk, the "
        "others after a random time, unless the answer came before. What a client read of a stream before it "
        "left must begin the answer given alone.",
        f"Threads and descriptors before: after the questions asked alone and {AT_ONCE} at once, with all "
        f"connections closed; after: likewise, at most {SETTLE_S:.0f} s later. asyncio's pool of "
        f"{POOL_THREADS} threads may grow to its end in between.",
        "Peak: the kernel's high-water mark above what was resident when the server was ready, before the "
        "first request, and above the pages of libraries that requests use first. The target is the budget "
        "of the plan, which requests may fill.",
        "The batch: uploaded and started over HTTP; the server is killed with SIGKILL and started again on "
        "the same folder, at random shares of the lines done or while it starts. One line in "
        f"{INVALID_EVERY} is invalid and must end in the file of errors, the others in the output.",
    ]
