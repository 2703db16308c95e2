"""One way to generate, in a process that stays loaded: `python -m speculation_steps.wall_child '<json>'`.

The process enters its limits before it imports anything large. It answers lines of JSON from standard input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import sleep
from typing import Any

from memory_limit import Limit
from peers.protocol import error_text, take_output
from read_limit import ReadLimit

SETTLED_S = 0.5
"""After an answer, units of a next sweep are still read; the next process must not wait for them."""


BLOCKS_BYTES = 24 * 1024**2
"""What is added to the least budget, so that whole blocks can be streamed."""


class Child:
    """What answers."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Take what `wall` says: the model, options of `load`, and so on."""
        self._spec = spec
        self._assistant: Any = None
        self._streamed: Any = None

    def baseline(self) -> dict[str, Any]:
        """Return the resident memory of this process with all libraries, and the ledger of its plan."""
        from measured_run import memory_status  # noqa: PLC0415

        import layerstream as ls  # noqa: PLC0415 - the limits must hold first

        plan = ls.plan(self._spec["model"], device="cpu", workload=self._workload(), **self._options())
        return {
            "baseline_bytes": memory_status()["VmRSS"],
            "ledger_bytes": plan.ledger.device_bytes,
            "weight_bytes": sum(
                path.stat().st_size for path in Path(self._spec["model"]).glob("*.safetensors")
            ),
        }

    def load(self) -> dict[str, Any]:
        """Load the model."""
        import layerstream as ls  # noqa: PLC0415 - the limits must hold first
        from layerstream.speculation.ahead import WaitShare  # noqa: PLC0415
        from speculation_steps.generation import Assistant  # noqa: PLC0415

        model = Path(self._spec["model"])
        if not self._spec["drafts_ahead"]:
            WaitShare.is_large = False  # type: ignore[method-assign, assignment]
        if self._spec["has_assistant"]:
            self._assistant = Assistant(model)
        self._streamed = ls.load(model, device="cpu", workload=self._workload(), **self._options())
        plan = self._streamed.plan
        return {
            "plan": plan.explain().replace(str(model), "model"),
            "sweep_bytes": plan.cost.read_bytes,
            "ledger_bytes": plan.ledger.device_bytes,
        }

    def generate(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Return what an answer took; nothing of the checkpoint is in the page cache before it."""
        from cold_files import drop_page_cache  # noqa: PLC0415

        from speculation_steps.generation import generate  # noqa: PLC0415

        drop_page_cache(Path(self._spec["model"]))
        found = generate(self._streamed, prompt, new_tokens, self._assistant)
        sleep(SETTLED_S)
        return found

    def _options(self) -> dict[str, Any]:
        """Return the options of `load`, with the budget in bytes."""
        import layerstream as ls  # noqa: PLC0415 - the limits must hold first

        options: dict[str, Any] = dict(self._spec["options"])
        if options["budget"] == "min":
            plan = ls.plan(self._spec["model"], device="cpu", workload=self._workload(), **options)
            options["budget"] = plan.ledger.device_bytes + BLOCKS_BYTES
        return options

    def _workload(self) -> Any:
        import layerstream as ls  # noqa: PLC0415 - the limits must hold first

        return ls.Workload(prompt_tokens=self._spec["prompt_tokens"], new_tokens=self._spec["new_tokens"])


def serve(child: Child) -> None:
    """Answer requests until standard input ends."""
    answers = take_output()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(child, request.pop("do"))(**request)}
        except Exception as error:  # noqa: BLE001 - the parent's table shows it
            answer = {"error": error_text(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    Limit(**given["memory"]).enter()
    ReadLimit(**given["reads"]).enter()
    serve(Child(given["spec"]))
