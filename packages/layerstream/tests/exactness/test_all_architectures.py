"""Every causal language model type of transformers in a tiny size: streamed, each equals its plain model.

A type is left out of the comparison only if it cannot be built, or if its plain model cannot compute logits
or generate greedily. Such types are in `OUT_OF_REACH`, with the reason. `python -m kit.architectures` prints
the whole table.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.architectures import MODEL_TYPES, Outcome, compare, prepare

OUT_OF_REACH: dict[str, str] = {
    "blt": "generate() needs a number of layers that its config does not have",
    "dots3_note": "its vision part does not shrink by the names of its sizes",
    "emu3": "saves the config of its text part, which AutoModelForCausalLM does not know",
    "gemma3n": "needs timm",
    "gemma4_assistant": "works only on another model's cache",
    "gemma4_unified_assistant": "works only on another model's cache",
    "mllama": "saves the config of its text part, which AutoModelForCausalLM does not know",
    "musicgen": "needs the config of its decoder",
    "musicgen_melody": "needs the config of its decoder",
}
"""Types that transformers itself cannot run alone at a tiny size."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in OUT_OF_REACH])
def test_streamed_equals_plain_for(model_type: str, tmp_path: Path) -> None:
    """Logits of a left-padded batch and greedy generation, in fp32."""
    trial = prepare(model_type, tmp_path / model_type)
    if isinstance(trial, Outcome):
        pytest.fail(f"the plain model cannot serve as a reference ({trial.status.value}): {trial.reason}")
    compare(trial)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name in OUT_OF_REACH])
def test_a_type_in_out_of_reach_still_cannot_run(model_type: str, tmp_path: Path) -> None:
    """As soon as one of them can run, it belongs in the comparison."""
    outcome = prepare(model_type, tmp_path / model_type)
    assert isinstance(outcome, Outcome), f"{model_type} runs: take it out of OUT_OF_REACH"
