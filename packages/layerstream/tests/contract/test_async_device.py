"""On a worst-case asynchronous device the result is exact; if any one wait is left out, it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.testing import FakeAsyncRuntime, FakeEvent, FakeStream

IDS = torch.arange(1, 13).reshape(2, 6)


class ComputeDoesNotWaitForCopies(FakeAsyncRuntime):
    """A computation may start before its weights are copied."""

    def stream_wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Leave out the computation's wait."""
        if stream is not self.compute_stream():
            super().stream_wait(stream, event)
        else:
            self._in_use |= {copy.memory for copy in event.copies}


class CopiesDoNotWaitForCompute(FakeAsyncRuntime):
    """A copy may overwrite weights that a kernel is still reading."""

    def stream_wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Leave out the copy stream's wait."""
        if stream is self.compute_stream():
            super().stream_wait(stream, event)


class ReadsDoNotWaitForCopies(FakeAsyncRuntime):
    """A read may overwrite a staging buffer that is still being copied from."""

    def host_wait(self, event: FakeEvent) -> None:
        """Leave out the host's wait."""


@pytest.fixture(scope="module")
def reference(tiny_llama_dir: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    with torch.no_grad():
        return model(IDS).logits


def streamed_logits(path: Path, runtime: Any, host: str | int, sweeps: int = 3) -> list[torch.Tensor]:
    with ls.load(path, budget=ls.MemoryBudget(device="min", host=host), runtime=runtime) as streamed:
        assert not streamed.plan.is_resident
        return [streamed.model(IDS).logits for _ in range(sweeps)]


@pytest.mark.parametrize("host", ["min", "1 GiB"], ids=["from disk", "from host memory"])
def test_the_worst_asynchronous_device_gives_the_exact_result(
    tiny_llama_dir: Path, reference: torch.Tensor, host: str
) -> None:
    runtime = FakeAsyncRuntime()
    for logits in streamed_logits(tiny_llama_dir, runtime, host):
        assert torch.equal(logits, reference)
    assert runtime.num_copies > 3 * 4


@pytest.mark.parametrize(
    "broken", [ComputeDoesNotWaitForCopies, CopiesDoNotWaitForCompute, ReadsDoNotWaitForCopies]
)
def test_removing_any_wait_breaks_the_result(
    tiny_llama_dir: Path, reference: torch.Tensor, broken: type[FakeAsyncRuntime]
) -> None:
    results = streamed_logits(tiny_llama_dir, broken(lag_s=0.01), "min")
    assert not all(torch.equal(logits, reference) for logits in results)


def test_a_mixed_plan_is_exact_too(tiny_llama_dir: Path, reference: torch.Tensor) -> None:
    runtime = FakeAsyncRuntime()
    with ls.load(
        tiny_llama_dir, budget=ls.MemoryBudget(device="1 GiB", host="1 GiB"), runtime=runtime
    ) as streamed:
        assert streamed.plan.is_resident
        assert torch.equal(streamed.model(IDS).logits, reference)
