"""Random questions for a tiny model, and the answers that it gives when asked alone."""

from __future__ import annotations

import random

from serving_steps.clients import Answer, Case, Clients

_LETTERS = "abcdefghijklmnopqrstuvwxyz     .,?"


def random_cases(count: int, *, most_new_tokens: int) -> list[Case]:
    """Return questions of random length; every third one samples, with a seed of its own."""
    chance = random.Random(1)
    return [
        Case(
            prompt=f"{number} " + "".join(chance.choices(_LETTERS, k=chance.randint(1, 120))),
            new_tokens=chance.randint(1, most_new_tokens),
            seed=chance.randrange(2**31) if number % 3 == 0 else None,
        )
        for number in range(count)
    ]


async def answers_alone(clients: Clients, cases: list[Case]) -> list[Answer]:
    """Ask one after another."""
    return [await clients.ask(case) for case in cases]
