"""The process of one peer: `python -m peers.worker '<json>'`, with this folder's parent on the path.

It enters its memory limit before it imports anything large.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

from memory_limit import Limit

from peers.protocol import serve

CLASSES = {
    "transformers": ("transformers_peer", "Resident"),
    "layerstream": ("layerstream_peer", "Layerstream"),
    "accelerate": ("transformers_peer", "DiskOffload"),
    "airllm": ("airllm_peer", "AirLLM"),
    "ollm": ("ollm_peer", "OLLM"),
    "llama.cpp": ("llama_cpp_peer", "LlamaCpp"),
}
"""Module and class of each peer; the module is imported in the environment of that peer only."""

if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    Limit(**request["limit"]).enter()
    module, name = CLASSES[request["peer"]]

    def make_peer() -> Any:
        """Import the peer's module, which may print."""
        return getattr(import_module(f"peers.{module}"), name)()

    serve(make_peer)
