"""A batch over HTTP while the server is killed again and again: has each line one result, the right one?"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Literal

from openai import DefaultHttpxClient, OpenAI

from serving_steps.clients import CHAT, PATIENCE_S, Answer, Case
from serving_steps.server import Resources, Server, Spec

ENDPOINT: Literal["/v1/chat/completions"] = CHAT
INVALID_EVERY = 50
STARTING_KILLS = 0.15
"""So many of the kills hit a server that starts."""

WITHIN, STARTING = "within the batch", "while it started, or just after"
_LOOK_S = 0.05


@dataclass(slots=True, kw_only=True)
class Killed:
    """What came of a batch.

    Attributes:
        num_lines: lines of its input.
        kills: how often the server was killed when.
        lost: lines without a result.
        twice: results beyond the first of a line.
        different: results that differ from the answer given alone.
        fewer: how often fewer lines were done after a kill than before.
        seconds: from the upload to the end.
    """

    num_lines: int
    kills: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    twice: int = 0
    different: int = 0
    fewer: int = 0
    seconds: float = 0.0

    def promises(self) -> dict[str, int]:
        """Return how often each promise was broken."""
        return {
            "lines without a result": self.lost,
            "lines with two results": self.twice,
            "results that differ from those given alone": self.different,
            "times that a kill lost a result": self.fewer,
        }


class Restarted:
    """A server that is killed and started again on one folder.

    Attributes:
        server: the one that runs.
        address: its address.
        ready: what the one that runs held when it began to answer.
        start_up_s: how long the first one took to answer.
    """

    server: Server
    address: str
    ready: Resources

    def __init__(self, spec: Spec) -> None:
        """Start it, and wait until it answers."""
        self._spec = spec
        start_s = monotonic()
        self.start_and_wait()
        self.start_up_s = monotonic() - start_s

    def start(self) -> None:
        """Start it."""
        self.server = Server(self._spec)

    def start_and_wait(self) -> None:
        """Start it, and wait until it answers."""
        self.start()
        try:
            self.address = self.server.wait()
            self.server.forget_peak()
            self.ready = self.server.resources()
        except BaseException:
            self.server.kill()
            raise


def batch_through_kills(
    server: Restarted, cases: list[Case], alone: list[Answer], *, num_lines: int, num_kills: int
) -> Killed:
    """Run a batch of `num_lines` lines while the server is killed `num_kills` times."""
    chance = random.Random(3)
    chosen = [chance.randrange(len(cases)) for _ in range(num_lines)]
    killed = Killed(num_lines=num_lines)
    start_s = monotonic()
    with _client(server.address) as client:
        batch = _begin(client, [cases[number] for number in chosen])
    num_starting = max(1, round(STARTING_KILLS * num_kills))
    goals = sorted(chance.randrange(num_lines) for _ in range(num_kills - num_starting))
    also_starting = chance.sample(range(len(goals)), num_starting)
    killed.kills = {WITHIN: len(goals), STARTING: num_starting}
    num_done = 0
    for number, goal in enumerate(goals):
        with _client(server.address) as client:
            num_done = _wait_for(client, batch, goal, killed, num_done)
            sleep(chance.uniform(0, 0.2))
            server.server.kill()
        if number in also_starting:
            server.start()
            sleep(chance.uniform(0, server.start_up_s))
            server.server.kill()
        server.start_and_wait()
    with _client(server.address) as client:
        _wait_for(client, batch, num_lines, killed, num_done)
        killed.seconds = monotonic() - start_s
        compare(killed, _results(client, batch), [alone[number] for number in chosen])
    return killed


def _client(address: str) -> OpenAI:
    line = DefaultHttpxClient(timeout=PATIENCE_S, trust_env=False)
    return OpenAI(
        base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S, http_client=line
    )


def _is_invalid(number: int) -> bool:
    return number % INVALID_EVERY == INVALID_EVERY - 1


def _begin(client: OpenAI, cases: list[Case]) -> str:
    """Upload the lines and start the batch; return its id."""
    lines = []
    for number, case in enumerate(cases):
        body = {**case.body(), **({"temperature": 9.0} if _is_invalid(number) else {})}
        line = {"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}
        lines.append(json.dumps(line) + "\n")
    file = client.files.create(file=("lines.jsonl", "".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h").id


def _wait_for(client: OpenAI, batch: str, goal: int, killed: Killed, num_done: int) -> int:
    """Wait until `goal` lines are done, or all are; return how many are done."""
    while True:
        found = client.batches.retrieve(batch)
        counts = found.request_counts
        now = 0 if counts is None else counts.completed + counts.failed
        killed.fewer += now < num_done
        num_done = max(num_done, now)
        if found.status == "completed" or (num_done >= goal and goal < killed.num_lines):
            return num_done
        if found.status not in ("validating", "in_progress", "finalizing"):
            raise RuntimeError(f"the batch has the status {found.status}: {found.errors}")
        sleep(_LOOK_S)


def _results(client: OpenAI, batch: str) -> list[dict[str, Any]]:
    """Return what is in the output and in the file of errors."""
    found = client.batches.retrieve(batch)
    files = [each for each in (found.output_file_id, found.error_file_id) if each is not None]
    texts = [client.files.content(each).text for each in files]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def compare(killed: Killed, results: list[dict[str, Any]], expected: list[Answer]) -> None:
    """Count what is lost, twice or different; every `INVALID_EVERY`-th line must have failed."""
    counts = Counter(int(each["custom_id"]) for each in results)
    killed.lost = sum(not counts[number] for number in range(killed.num_lines))
    killed.twice = sum(counts.values()) - len(counts)
    for each in results:
        number, response = int(each["custom_id"]), each["response"]
        if _is_invalid(number):
            killed.different += response["status_code"] != 400
            continue
        if response["status_code"] != 200:
            killed.different += 1
            continue
        (choice,) = response["body"]["choices"]
        answer = Answer(
            text=choice["message"]["content"],
            num_tokens=response["body"]["usage"]["completion_tokens"],
            finish_reason=choice["finish_reason"],
        )
        killed.different += answer != expected[number]
