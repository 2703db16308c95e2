"""A service's requests and prefix cache keep to their lines: every storage that they allocate is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.listener import Listener
from kit.storages import Alive, Watch
from kit.wide_llama import save_wide_llama
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.uses.serving.lanes import Lane
from layerstream.uses.serving.service import GenerationService
from layerstream.uses.serving.ticket import Entry

PROMPT_TOKENS, NEW_TOKENS = 96, 4
TOKEN_BYTES = 2 * 6 * 4 * 32 * 4
"""Keys and values of six layers with four heads of 32 in float32."""


def test_conversations_take_at_most_their_line_and_the_room_of_requests(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, alive, plain = save_wide_llama(tmp_path), Alive(), GenerationService._generate

    def watched(service: GenerationService, lane: Lane, entry: Entry) -> None:
        with Watch(alive):
            plain(service, lane, entry)

    monkeypatch.setattr(GenerationService, "_generate", watched)
    line = 3 * PROMPT_TOKENS * TOKEN_BYTES
    workload = ls.Workload(batch_size=2, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    with ls.load(path, budget="min", workload=workload, prefix_cache=line) as streamed:
        assert streamed.plan.ledger.bytes_for(ls.LedgerKind.PREFIX_CACHE) == line
        service = GenerationService(streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir))
        held = []
        for first in range(8):
            listeners = [Listener() for _ in range(4)]
            for number, listener in enumerate(listeners):
                prompt = [5 + (4 * first + number) % 6] * (PROMPT_TOKENS - 8 + first)
                request = ls.GenerationRequest(prompt=prompt, max_new_tokens=NEW_TOKENS)
                service.submit(request, listener)
            assert all(listener.wait().result.error is None for listener in listeners)
            held.append(service.status().prefix_bytes)
        room_bytes = service._admission.room_bytes
        service.close()
    assert line / 2 < max(held) <= line
    assert line + 0.3 * room_bytes < alive.peak_bytes <= line + room_bytes
