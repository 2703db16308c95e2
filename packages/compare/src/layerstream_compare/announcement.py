"""Say before an experiment runs what it will do: its cases, their steps, and what they move.

How long that takes depends on the machine, which is not known here: nothing is measured beforehand.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from layerstream import format_bytes

from .experiment import Experiment
from .steps import steps_of

_MOST_NAMED = 12


def announcement(experiment: Experiment) -> list[str]:
    """Return lines that say what `experiment` will do: its cases, and what each of them does."""
    cases = experiment.cases()
    weights_bytes = stored_weights_bytes(experiment.model)
    labels = list(dict.fromkeys(case.label for case in cases))
    named = f": {', '.join(labels)}" if len(labels) <= _MOST_NAMED else ""
    lines = [
        f"{_counted(len(cases), 'case')}, one after another{named}",
        f"- each {_work(experiment, weights_bytes)}",
    ]
    if "streamed" in experiment.variants and weights_bytes:
        # a forward pass goes through the weights once and yields one token
        passes = experiment.max_new_tokens + experiment.warmup_tokens
        lines.append(
            "- streamed reads the weights that its budget does not hold again for each token: up to "
            f"{passes} times {format_bytes(weights_bytes)}"
        )
    if cases[-1].attention not in experiment.attention:
        lines.append(
            f"- {cases[-1].label} is the original weights with another attention kernel: how much rounding "
            "alone changes (--no-noise-floor leaves it out)"
        )
    return [*lines, "- the time left is estimated once the first case is measured"]


def _work(experiment: Experiment, weights_bytes: int) -> str:
    weights = f" ({format_bytes(weights_bytes)} of weights)" if weights_bytes else ""
    work = f"loads the model{weights} and writes at most {_counted(experiment.max_new_tokens, 'token')}"
    if "agreement" not in steps_of(experiment.cases()[0]):
        return work
    texts = "that answer and on 512 tokens of prose" if experiment.prose else "that answer"
    return (
        f"{work}; then the exact model is loaded too and writes its own answer, and agreement is measured on "
        f"{texts} (--no-quality leaves this out)"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def stored_weights_bytes(model: str) -> int:
    """Return the size of the checkpoint's safetensors files; 0 if they are not on this machine."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            hub = importlib.import_module("huggingface_hub")
            folder = Path(hub.snapshot_download(model, local_files_only=True))
        except (ImportError, OSError, ValueError):
            return 0
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
