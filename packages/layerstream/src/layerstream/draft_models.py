"""Find the draft of a target: inspect it, check that it speaks the same tokens, open it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from .engine.inspect import ModelSpec, inspect_model
from .engine.quantized_copy import quantized_copy
from .engine.tokenizer import load_tokenizer
from .errors import CheckpointError, PlanError
from .planning.drafting import draft_dtype, model_needs
from .simulation import as_asked, own_draft_needs
from .spec.options import LOOKUP, LoadOptions, OwnCopy, Workload
from .spec.profiles import Machine
from .spec.speculation import DraftNeeds
from .speculation.confidence import FIRST_TEMPERATURE, Confidence
from .speculation.decode import Speculator
from .speculation.drafts import Draft, LookupDraft, ModelDraft
from .speculation.statistics import Statistics
from .streaming.runtime import DeviceRuntime

TREE_WIDTH = 3
"""How many tokens a draft model considers at each place by default."""

FIRST_TEMPERATURES = {OwnCopy.INT8.value: 0.125, OwnCopy.NF4.value: 0.5}
"""How sure a copy with fewer bits is at first, as measured with SmolLM2-135M (docs/lab-notes.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDraft:
    """A draft that can be loaded.

    Attributes:
        needs: its name and memory.
        options: how it is loaded.
        spec: the smaller model; None for every other draft.
    """

    needs: DraftNeeds
    options: LoadOptions
    spec: ModelSpec | None = None


def find_draft(target: ModelSpec, options: LoadOptions, machines: Sequence[Machine]) -> FoundDraft | None:
    """Return the draft that `options` name; None if they name none. No weight is read.

    Args:
        target: the model that verifies.
        options: how the target is loaded.
        machines: where both run.

    Raises:
        PlanError: target and draft have different tokens.
        CheckpointError, ModelError: the draft cannot be used.
    """
    if options.draft is None:
        return None
    name = options.draft_model
    if name is None or target.profile.draft_refusal:
        needs = own_draft_needs(target.profile, options, machines)
        assert needs is not None
        dtype = draft_dtype(target.profile.dtype, machines[0])
        return FoundDraft(needs=needs, options=replace(options, draft=None, dtype=dtype, adapter=None))
    draft_options = options.for_draft_model()
    spec = inspect_model(name, draft_options, on_host=machines[0].device_is_host)
    _check_vocabulary(target, options, spec, draft_options)
    needs = model_needs(spec.name, spec.profile, options.workload or Workload(), verified_by=target.profile)
    return FoundDraft(needs=as_asked(needs, options), options=draft_options, spec=spec)


def _check_vocabulary(
    target: ModelSpec, options: LoadOptions, draft: ModelSpec, draft_options: LoadOptions
) -> None:
    sizes = (target.profile.vocab_size, draft.profile.vocab_size)
    try:
        vocabularies = [
            load_tokenizer(spec.name, each).get_vocab()
            for spec, each in ((target, options), (draft, draft_options))
        ]
    except CheckpointError:
        # Without tokenizers, the caller makes the tokens.
        vocabularies = list(sizes)
    if vocabularies[0] != vocabularies[1]:
        raise PlanError(
            f"{draft.name} cannot draft for {target.name}: their tokenizers differ ({sizes[1]:,} and "
            f"{sizes[0]:,} tokens); give a smaller model of the same family, or draft={LOOKUP!r}"
        )


def open_draft(
    draft: FoundDraft,
    target: str,
    options: LoadOptions,
    runtime: DeviceRuntime,
    load_model: Callable[[FoundDraft], tuple[PreTrainedModel, Callable[[], None]]],
) -> Speculator:
    """Load a draft, and return what decodes with it.

    Args:
        draft: the draft.
        target: the directory or Hub id of the model that verifies.
        options: how the target is loaded.
        runtime: the device of both.
        load_model: loads a smaller model; returns it and what frees it.
    """
    width = options.draft_width or (TREE_WIDTH if options.exact_ties else 1)
    close: Callable[[], None] | None = None
    make: Callable[[], Draft]
    if draft.needs.name == LOOKUP:
        make = LookupDraft
    else:
        if draft.spec is None:
            spec = inspect_model(target, draft.options, on_host=runtime.is_host)
            model = quantized_copy(spec, OwnCopy(draft.needs.name), runtime)
        else:
            model, close = load_model(draft)

        confidence = Confidence(FIRST_TEMPERATURES.get(draft.needs.name, FIRST_TEMPERATURE))

        def make() -> Draft:
            return ModelDraft(model, width=width, confidence=confidence, around=runtime.on_new_stream())

    return Speculator(
        make,
        Statistics(draft=draft.needs.name),
        exact_ties=options.exact_ties,
        fixed_tokens=options.draft_tokens,
        close=close,
    )
