"""AirLLM, on the CPU. It writes its own copy of the weights first, one file for each block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airllm import AutoModel
from airllm.utils import find_or_create_local_splitted_path

from peers.forward_steps import ForwardPeer, ForwardSteps
from peers.protocol import LoadSpec, write_second_copy

LAYER_NAMES = {
    "embed": "model.embed_tokens",
    "layer_prefix": "model.layers",
    "norm": "model.norm",
    "lm_head": "lm_head",
}


class AirLLM(ForwardPeer):
    """AirLLM's model; its hooks work in transformers' own forward."""

    def load(self, spec: LoadSpec) -> dict[str, Any]:
        """Split the checkpoint, unless that was done before, and load."""
        copies = Path(spec.scratch, "layers")
        copies.mkdir(parents=True, exist_ok=True)
        facts = write_second_copy(
            copies,
            lambda: find_or_create_local_splitted_path(spec.model, str(copies), layer_names=LAYER_NAMES),
        )
        model = AutoModel.from_pretrained(spec.model, device="cpu", layer_shards_saving_path=str(copies))
        self._directory = Path(model.checkpoint_path)
        self._steps = ForwardSteps(model, model.config)
        return facts
