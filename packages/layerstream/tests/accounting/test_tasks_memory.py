"""A batch's ledger covers what running micro-batches take: every storage that they allocate is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.storages import Alive, Watch
from kit.wide_llama import save_wide_llama, stream_in

import layerstream as ls

ROWS, PROMPT_TOKENS, NEW_TOKENS = 8, 96, 4
WORKLOAD = ls.Workload(batch_size=ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_llama(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize("packed", [False, True], ids=["not packed", "packed"])
@pytest.mark.parametrize(
    "granularity", [ls.Granularity.BLOCK, ls.Granularity.LAYER], ids=lambda granularity: granularity.value
)
def test_running_tasks_take_at_most_their_ledger_and_not_much_less(
    path: Path, granularity: ls.Granularity, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        ls.GenerationRequest(prompt=[5 + row] * PROMPT_TOKENS, max_new_tokens=NEW_TOKENS)
        for row in range(ROWS)
    ]
    with stream_in(path, granularity, WORKLOAD) as streamed:
        alive, plain = Alive(), streamed.model.generate

        def watched(*args: Any, **kwargs: Any) -> Any:
            with Watch(alive):
                return plain(*args, **kwargs)

        monkeypatch.setitem(streamed.model.__dict__, "generate", watched)
        plan = ls.plan_requests(streamed, requests, packed=packed)
        results = ls.generate_many(streamed, requests, packed=packed)
    assert all(result.error is None for result in results)
    promised = sum(line.num_bytes for line in plan.lines)
    assert promised <= plan.room_bytes
    assert 0.4 * promised < alive.peak_bytes <= promised
