"""Plain transformers with everything in memory, and with accelerate's disk offload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from peers.forward_steps import ForwardPeer, ForwardSteps
from peers.protocol import LoadSpec

EDGES = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")


class Resident(ForwardPeer):
    """The reference: transformers' own model, all of it in memory."""

    def load(self, spec: LoadSpec) -> dict[str, Any]:
        """Load the model."""
        self._directory = Path(spec.model)
        self._model = AutoModelForCausalLM.from_pretrained(
            self._directory, dtype="auto", **self._placement(spec)
        ).eval()
        self._steps = ForwardSteps(self._model, self._model.config)
        return {}

    def _placement(self, spec: LoadSpec) -> dict[str, Any]:
        return {}


class DiskOffload(Resident):
    """accelerate: the edges in memory, the blocks on disk, in the checkpoint's own files."""

    def _placement(self, spec: LoadSpec) -> dict[str, Any]:
        blocks = {
            f"model.layers.{block}": "cpu" if spec.keep == "half" and block % 2 else "disk"
            for block in range(spec.num_blocks)
        }
        folder = Path(spec.scratch, "offload")
        return {"device_map": dict.fromkeys(EDGES, "cpu") | blocks, "offload_folder": folder}
