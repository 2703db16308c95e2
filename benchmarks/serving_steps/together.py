"""One client against many: tokens per second, sweeps per answer, and answers like those given alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from common import MIB, Outcome, interleave, median, median_ratio, verdict
from read_limit import ReadLimit, read_limited

from serving_steps.clients import Answer, Case, clients_of
from serving_steps.job import Job, kept, read_prompts
from serving_steps.server import running_server

STAGE = "together"
CONTEXT_TOKENS = 256
RATIO = 15.0
RESIDENT = "2GiB"
"""A budget in which the default model is resident."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many clients at once, and what each asks."""

    num_clients: tuple[int, ...]
    cases: list[Case]


def run(job: Job) -> Outcome:
    """Measure, and return the table."""
    levels, new_tokens = ((1, 2, 6), 12) if job.is_quick else ((1, 8, 32), 32)
    cases = [Case(prompt=prompt, new_tokens=new_tokens) for prompt in read_prompts(levels[-1])]
    load = Load(num_clients=levels, cases=cases)
    context = ("--context-tokens", str(CONTEXT_TOKENS))
    alone: list[Answer] = []
    if not job.is_quick:
        with running_server(job.spec("resident", job.model, "--budget", RESIDENT, *context)) as (_, address):
            alone = asyncio.run(_alone(address, cases))
    budget = job.least_budget(together=levels[-1], context_tokens=CONTEXT_TOKENS)
    options = ("--budget", budget, "--together", str(levels[-1]), *context)
    with read_limited(job.model) as reads:
        spec = job.spec("streamed", job.model, *options, reads=reads)
        with running_server(spec) as (server, address):
            alone = alone or asyncio.run(_alone(address, cases))
            found = _measure(job, load, alone, address, reads)
            found["planned_bytes"] = server.planned_bytes()
            found["has_read_limit"] = bool(reads.group)
    return _outcome(job, load, found)


async def _alone(address: str, cases: list[Case]) -> list[Answer]:
    """Return the answer to each, asked one after another."""
    async with clients_of(address) as clients:
        return [await clients.ask(case) for case in cases]


def _measure(job: Job, load: Load, alone: list[Answer], address: str, reads: ReadLimit) -> dict[str, Any]:
    records: dict[str, list[dict[str, float]]] = {str(count): [] for count in load.num_clients}

    def level(count: int) -> float:
        # each round begins at other prompts
        first = len(records[str(count)]) * count % len(load.cases)
        chosen = [(first + number) % len(load.cases) for number in range(count)]
        record = asyncio.run(_at_once(address, [load.cases[number] for number in chosen], chosen, alone))
        records[str(count)].append(record)
        return record["tokens_per_s"]

    asyncio.run(_alone(address, [Case(prompt="Hello", new_tokens=3)]))
    reads.set(job.rate)
    speeds = interleave(
        {str(count): partial(level, count) for count in load.num_clients},
        rounds=job.rounds,
        warmups=0,
    )
    reads.set(0)
    return {"tokens_per_s": speeds, "rounds": records, "alone": [answer.text for answer in alone]}


async def _at_once(
    address: str, cases: list[Case], numbers: list[int], alone: list[Answer]
) -> dict[str, float]:
    async with clients_of(address) as clients:
        before = await clients.figures()
        start_s = perf_counter()
        answers = await asyncio.gather(*map(clients.ask, cases))
        seconds = perf_counter() - start_s
        after = await clients.figures()
    num_tokens = sum(answer.num_tokens or 0 for answer in answers)
    return {
        "seconds": seconds,
        "answers": len(answers),
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / seconds,
        "sweeps": after["sweeps_total"] - before["sweeps_total"],
        "different": sum(answer != alone[number] for answer, number in zip(answers, numbers, strict=True)),
    }


def _outcome(job: Job, load: Load, found: dict[str, Any]) -> Outcome:
    outcome = Outcome(
        theme=f"serving-{STAGE}",
        title="One client against many that share the sweeps",
        columns=("clients", "tokens/s in all", "of 1 client", "sweep, s", "sweeps per answer", "as alone"),
    )
    speeds, most = found["tokens_per_s"], str(load.num_clients[-1])
    ratios = {name: median_ratio(speeds[name], speeds["1"]) for name in speeds}
    different = 0
    for name, rounds in found["rounds"].items():
        num_answers = sum(each["answers"] for each in rounds)
        num_sweeps = sum(each["sweeps"] for each in rounds)
        num_different = sum(each["different"] for each in rounds)
        different += num_different
        outcome.rows.append(
            (
                name,
                f"{median(speeds[name]):.2f}",
                f"{ratios[name]:.2f}",
                f"{sum(each['seconds'] for each in rounds) / num_sweeps:.3f}",
                f"{num_sweeps / num_answers:.2f}",
                f"{num_answers - num_different:.0f} of {num_answers:.0f}",
            )
        )
    promises = {"answers that differ from those given alone": int(different)}
    outcome.verdicts = [
        verdict(f"{most} clients: times the tokens/s of one", ratios[most], RATIO, at_most=False),
        *kept(promises),
    ]
    outcome.figures = {**found, "ratios": ratios, "promises": promises}
    outcome.notes = _notes(job, load, found)
    return outcome


def _notes(job: Job, load: Load, found: dict[str, Any]) -> list[str]:
    planned = found["planned_bytes"]
    limit = f"{job.rate / 1e6:.0f} MB/s" if job.rate and found["has_read_limit"] else "not limited"
    where = "the same server" if job.is_quick else "a server whose model is resident"
    weight_bytes = sum(path.stat().st_size for path in job.model.glob("*.safetensors"))
    return [
        f"OpenAI's own client, chats, greedy, at most {load.cases[0].new_tokens} tokens; every client asks "
        "something else, all at once, and a round ends with its last answer. Tokens are those that the "
        "answers report; prompts do not count. Seconds include the prompts' sweep and HTTP.",
        f"The server: --together {load.num_clients[-1]} --context-tokens {CONTEXT_TOKENS}, a budget of "
        f"{planned.get('budget', 0) / MIB:.0f} MiB, most of it for the requests; the weights take "
        f"{weight_bytes / MIB:.0f} MiB and nearly all of them are streamed. Reads: {limit}. The clients ran "
        "on the same cores.",
        f"Alone: the same question with no other request, to {where}. Answers are "
        "compared in text, number of tokens and reason of the end.",
    ]
