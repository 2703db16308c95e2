"""llama.cpp, through its C library: weights mapped, or read with direct I/O at the start.

Mapped pages stay when the file's cache is dropped, so this process gives its mappings up first.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from cold_files import drop_page_cache

from peers.gguf_file import write_gguf
from peers.protocol import LoadSpec, Prompts, write_second_copy

LOAD_MODES = {
    "mmap": llama_cpp.LLAMA_LOAD_MODE_MMAP,
    "direct": llama_cpp.LLAMA_LOAD_MODE_DIRECT_IO,
}
NUM_THREADS = 2


class LlamaCpp:
    """A GGUF file in the same dtype, which is written first."""

    def load(self, spec: LoadSpec) -> dict[str, Any]:
        """Write the GGUF file, unless that was done before, and load it."""
        self._folder = Path(spec.scratch, "gguf")
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "model.gguf"
        facts = write_second_copy(self._folder, lambda: write_gguf(Path(spec.model), path))
        if facts["second_copy_s"]:
            # the pages that were just written would otherwise be what is loaded
            drop_page_cache(self._folder)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.load_mode = LOAD_MODES[spec.variant]
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError("llama.cpp could not load the GGUF file; its log above says why")
        self._open_context(spec)
        return facts

    def _open_context(self, spec: LoadSpec) -> None:
        tokens = spec.batch_size * (spec.prompt_tokens + spec.new_tokens)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = -(-tokens // 256) * 256
        settings.n_batch = settings.n_ubatch = max(512, spec.batch_size * spec.prompt_tokens)
        settings.n_seq_max = spec.batch_size
        settings.n_threads = settings.n_threads_batch = NUM_THREADS
        settings.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context; its log above says why")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def start(self, prompts: Prompts) -> list[int]:
        """Run the prompts."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._lengths = [0] * len(prompts)
        return self._decode(prompts)

    def step(self, tokens: list[int]) -> list[int]:
        """Append one token to every sequence."""
        return self._decode([[token] for token in tokens])

    def _decode(self, pieces: Prompts) -> list[int]:
        count = sum(map(len, pieces))
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        last, at = [], 0
        for sequence, piece in enumerate(pieces):
            for token in piece:
                batch.token[at] = token
                batch.pos[at] = self._lengths[sequence]
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = 0
                self._lengths[sequence] += 1
                at += 1
            batch.logits[at - 1] = 1
            last.append(at - 1)
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        found = [self._best_token(row) for row in last]
        llama_cpp.llama_batch_free(batch)
        return found

    def _best_token(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def drop_caches(self) -> None:
        """Give the mapped pages up, then drop the file from the page cache."""
        libc = ctypes.CDLL(None, use_errno=True)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("model.gguf"):
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
        drop_page_cache(self._folder)
