"""Choose tokens as `generate()` does: the likeliest, or a random one with the same random numbers.

`torch.multinomial` draws one token from each row by dividing the probabilities by random numbers and taking
the largest quotient. The random numbers of a position do not depend on the probabilities. So the target and
the draft use the same ones at the same position: the target's tokens are those that plain sampling would give
with the same seed, and a draft that is close to the target mostly chooses the same token.

Sources: Daliri, Musco and Suresh 2024, Coupling without Communication and Drafter-Invariant Speculative
Decoding; torch's `aten/src/ATen/native/Distributions.cpp`, `multinomial`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class Chooser:
    """Chooses the tokens of one sequence, position by position, as plain generation chooses them.

    Positions may be chosen more than once and in any order: each has its own random numbers, those that
    torch's generator of the device would give. A generator of the chooser's own draws them, since a draft may
    rank tokens in another thread; `finish` then moves torch's on.
    """

    def __init__(
        self,
        process: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        do_sample: bool,
        device: torch.device,
    ) -> None:
        """Prepare to choose; nothing is drawn yet.

        Args:
            process: the logits processors: called with the tokens so far `[1, length]` and the logits
                `[1, vocabulary]`, returns the processed logits.
            do_sample: sample; else take the likeliest.
            device: where the logits are.
        """
        self._process = process
        self._noise = _PositionNoise(device) if do_sample else None

    def choose(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """Return the token that follows.

        Args:
            ids: the tokens so far, `[1, length]`.
            logits: a model's logits after them, `[vocabulary]`.
        """
        return int(self._weigh(ids, logits).argmax())

    def rank(self, ids: torch.Tensor, logits: torch.Tensor, count: int) -> list[tuple[int, float]]:
        """Return the tokens that come closest to being chosen, each with its score.

        The first is what `choose` returns. Scores are on the scale of logits; with sampling, the noise is
        in them.
        """
        weights = self._weigh(ids, logits)
        best = weights.topk(min(count, len(weights)))
        scores = best.values if self._noise is None else best.values.log()
        return [
            (token, score)
            for token, score in zip(best.indices.tolist(), scores.tolist(), strict=True)
            if score > -torch.inf
        ]

    def _weigh(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return what the largest of is chosen: processed logits, or the quotients of `multinomial`."""
        scores = self._process(ids, logits[None].to(torch.float32, copy=True))[0]
        if self._noise is None:
            return scores
        return scores.softmax(-1).div(self._noise.at(ids.shape[1], scores))

    def finish(self, length: int) -> None:
        """Leave torch's generator as plain generation of a sequence of `length` tokens leaves it."""
        if self._noise is not None:
            self._noise.rewind(length)


class _PositionNoise:
    """The random numbers of each position: drawn again when needed again; only generator states are kept."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = torch.Generator(device)
        self._first: int | None = None
        self._states: list[torch.Tensor] = []

    def at(self, position: int, like: torch.Tensor) -> torch.Tensor:
        """Return the random numbers of a position; positions before the first one asked for have none."""
        if self._first is None:
            self._first = position
            self._states = [_torch_state(self._device)]
        assert position >= self._first
        index = position - self._first
        while len(self._states) <= index:
            self._draw(self._states[-1], like)
        return self._draw(self._states[index], like)

    def rewind(self, length: int) -> None:
        """Leave torch's generator as it was before position `length` was drawn."""
        if self._first is not None:
            _set_torch_state(self._device, self._states[length - self._first])

    def _draw(self, state: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return what follows `state`; if that was the last one known, note the next one."""
        self._generator.set_state(state)
        noise = torch.empty_like(like[None]).exponential_(1.0, generator=self._generator)[0]
        if state is self._states[-1]:
            self._states.append(self._generator.get_state())
        return noise


def _torch_state(device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_torch_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
