"""Try every causal language model type in a tiny size: does the streamed model equal the plain one?

Test kit and script: `python -m kit.architectures [type ...]` in the tests' folder prints a table of type,
status and reason.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .budgets import load
from .compare import ESSENTIAL, ReferenceResults, assert_equals_reference, compute_reference, reference
from .families import save_tiny_config
from .quiet import quiet_and_single_threaded
from .shrink import shrunken_config

MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MAX_PARAMETERS = 20_000_000


class Status(Enum):
    """The result for one type."""

    EQUAL = "equal"
    NOT_EQUAL = "not equal"
    NOT_BUILT = "not built"
    PLAIN_FAILS = "plain model fails"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row of the table."""

    model_type: str
    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A tiny checkpoint of a type and what the plain model computes from it."""

    path: Path
    results: ReferenceResults


def prepare(model_type: str, directory: Path) -> Trial | Outcome:
    """Write a tiny checkpoint of `model_type` and run the plain model; an `Outcome` says why that failed."""
    try:
        config = shrunken_config(model_type)
        with torch.device("meta"):
            size = sum(
                parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters()
            )
        if size > MAX_PARAMETERS:
            return Outcome(
                model_type=model_type, status=Status.NOT_BUILT, reason=f"does not shrink: {size:,} parameters"
            )
        save_tiny_config(config, directory)
    except Exception as error:  # noqa: BLE001 - every error of a config class or constructor is a row
        return Outcome(model_type=model_type, status=Status.NOT_BUILT, reason=_first_line(error))
    try:
        results = compute_reference(reference(directory, torch.float32), ESSENTIAL)
        assert_equals_reference(
            reference(directory, torch.float32), results, ESSENTIAL, "the plain model, loaded again"
        )
    except Exception as error:  # noqa: BLE001 - the plain model's own limit
        return Outcome(model_type=model_type, status=Status.PLAIN_FAILS, reason=_first_line(error))
    return Trial(path=directory, results=results)


def compare(trial: Trial, budget: str = "min") -> None:
    """Assert that the model streamed under `budget` computes what the plain model did.

    Raises:
        Exception: whatever the streamed model raises.
        AssertionError: naming the first different tensor.
    """
    with load(trial.path, "float32", budget) as streamed:
        assert_equals_reference(streamed.model, trial.results, ESSENTIAL, trial.path.name)


def outcome_of(model_type: str, directory: Path) -> Outcome:
    """Return the row of `model_type`."""
    trial = prepare(model_type, directory)
    if isinstance(trial, Outcome):
        return trial
    try:
        compare(trial)
    except Exception as error:  # noqa: BLE001 - the table shows the error; the test raises it
        return Outcome(model_type=model_type, status=Status.NOT_EQUAL, reason=_first_line(error))
    return Outcome(model_type=model_type, status=Status.EQUAL)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def table(model_types: tuple[str, ...]) -> Iterator[str]:
    """Yield the table: one line per type when it is done, and the counts at the end."""
    counts: Counter[str] = Counter()
    for model_type in model_types:
        with tempfile.TemporaryDirectory() as directory:
            outcome = outcome_of(model_type, Path(directory) / model_type)
        counts[outcome.status.value] += 1
        yield f"{outcome.model_type:<28}{outcome.status.value:<20}{outcome.reason}"
    yield ", ".join(f"{count} {status}" for status, count in counts.most_common())


if __name__ == "__main__":
    with quiet_and_single_threaded():
        for line in table(tuple(sys.argv[1:]) or MODEL_TYPES):
            print(line, flush=True)  # noqa: T201 - the output of a script
