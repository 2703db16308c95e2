"""The ledger of a scoring sweep covers the memory of its requests; every storage they make is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.storages import Alive, Watch
from kit.wide_llama import save_wide_llama, stream_in
from torch import nn

import layerstream as ls
from layerstream.planning.scoring_sweeps import TASK_BYTES

NUM_REQUESTS, PREFIX_TOKENS, SUFFIX_TOKENS = 6, 192, (12, 7, 1, 20)
NUM_TASKS = NUM_REQUESTS * (1 + sum(tokens > 1 for tokens in SUFFIX_TOKENS))
WORKLOAD = ls.Workload(
    batch_size=2 * NUM_REQUESTS, prompt_tokens=PREFIX_TOKENS + max(SUFFIX_TOKENS), new_tokens=0
)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The checkpoint, and the attention to run it with."""
    return save_wide_llama(tmp_path_factory.mktemp("wide")), request.param


def watch(part: nn.Module, alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., Any] = part.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with Watch(alive):
            return plain(*args, **kwargs)

    monkeypatch.setitem(part.__dict__, "forward", watched)


@pytest.mark.parametrize(
    "granularity", [ls.Granularity.BLOCK, ls.Granularity.LAYER], ids=lambda granularity: granularity.value
)
def test_a_sweep_takes_no_more_than_its_ledger_and_not_much_less(
    path: tuple[Path, str], granularity: ls.Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        ([5 + row] * PREFIX_TOKENS, [[6 + row] * tokens for tokens in SUFFIX_TOKENS])
        for row in range(NUM_REQUESTS)
    ]
    with stream_in(path[0], granularity, WORKLOAD, path[1]) as streamed:
        alive = Alive()
        watch(streamed.model, alive, monkeypatch)
        plan = ls.plan_scores(streamed, requests, max_rows=NUM_REQUESTS)
        results = ls.score(streamed, requests, max_rows=NUM_REQUESTS)
    assert all(result.error is None for result in results)
    # the stacks of threads are not storages
    predicted = plan.sweep_bytes - NUM_TASKS * TASK_BYTES
    assert 0.35 * predicted < alive.peak_bytes <= predicted, (
        f"{alive.peak_bytes / predicted:.2f} of {predicted:,}"
    )
