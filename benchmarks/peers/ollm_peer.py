"""oLLM, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ollm import AutoInference

from peers.forward_steps import ForwardPeer, ForwardSteps
from peers.protocol import LoadSpec


class OLLM(ForwardPeer):
    """oLLM's model; it replaces classes of transformers, whose forward stays."""

    def load(self, spec: LoadSpec) -> dict[str, Any]:
        """Load the edges, and half of the blocks where that is asked."""
        self._directory = Path(spec.model)
        loaded = AutoInference(spec.model, device="cpu", logging=False)
        if spec.keep == "half":
            loaded.offload_layers_to_cpu(layers_num=spec.num_blocks // 2)
        self._steps = ForwardSteps(loaded.model, loaded.model.config)
        return {}
