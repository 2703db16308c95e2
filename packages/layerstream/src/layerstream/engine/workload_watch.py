"""Watch that forwards keep within the workload that the plan reserves memory for.

Reads the size of a forward or a `generate()` from its arguments; `planning.forward_limits` judges it. It
knows nothing of units or sweeps. There is no warning about tasks that share sweeps: whoever runs tasks plans
what they take together. A task's forward that is too large for the budget by itself is refused.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import Cache, PreTrainedModel

from ..architecture import compat
from ..errors import WorkloadExceededError
from ..planning.forward_limits import ForwardLimits, ForwardSize, Verdict
from ..spec.options import Workload
from ..spec.sizes import format_bytes
from ..streaming.binding import as_streaming_hook
from ..streaming.sweep_group import SweepGroup


class WorkloadWatch:
    """Warns once about forwards beyond the planned workload, and refuses those beyond the budget.

    All replicas of a model share one.
    """

    def __init__(self, limits: ForwardLimits | None) -> None:
        """Watch over `limits`; None lets everything pass."""
        self._limits = limits
        self._has_warned = False
        self._num_lifted = 0
        self._lock = threading.Lock()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let everything pass inside this context."""
        with self._lock:
            self._num_lifted += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_lifted -= 1

    def check(self, size: ForwardSize, *, is_task: bool, what: str) -> None:
        """Warn or raise if a forward is larger than planned.

        Args:
            size: what it computes.
            is_task: it belongs to a task that shares sweeps.
            what: its name in messages.

        Raises:
            WorkloadExceededError: it cannot fit the budget.
        """
        limits = self._limits
        if limits is None or self._num_lifted:
            return
        verdict = limits.judge(size)
        if verdict is Verdict.BEYOND_BUDGET:
            raise _exceeded(limits, size, what)
        if verdict is Verdict.BEYOND_WORKLOAD and not is_task and self._is_first():
            warnings.warn(_warning(limits, size, what), stacklevel=2)

    def _is_first(self) -> bool:
        with self._lock:
            is_first, self._has_warned = not self._has_warned, True
        return is_first


class ForwardSizes:
    """Finds how large each forward of one replica is, and lets a `WorkloadWatch` check it.

    The gate checks the model's own forward. Submodules that are models themselves, such as the backbone, may
    be called on their own; a hook checks them. `generate()` is checked as a whole when it starts.
    """

    def __init__(self, model: PreTrainedModel, group: SweepGroup, watch: WorkloadWatch) -> None:
        """Attach to `model`; the caller calls `check_forward`."""
        self._group, self._watch = group, watch
        self._reader = _ArgumentReader(model)
        self._undo = [compat.before_generation(model, self._check_generation)]
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module is not model:
                hook = as_streaming_hook(self._submodule_hook(_ArgumentReader(module)))
                self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def detach(self) -> None:
        """Remove everything from the model."""
        for undo in self._undo:
            undo()
        self._undo.clear()

    def check_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check a forward of the model.

        Raises:
            WorkloadExceededError: it cannot fit the budget.
        """
        self._check(self._reader.size(args, kwargs), "a forward")

    def _submodule_hook(self, reader: _ArgumentReader) -> Callable[..., None]:
        def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._check(reader.size(args, kwargs), "a forward")

        return check

    def _check_generation(
        self,
        *,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        beams = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        caches = [value for value in model_kwargs.values() if isinstance(value, Cache)]
        tokens = self._prompt_tokens(generation_config, model_kwargs, max_cache_length)
        # the ledger counts the last token too, which is never cached
        held = max_cache_length + 1
        if generation_config.use_cache is False:
            # without a cache, the last forward computes the whole text
            tokens, held = max_cache_length, 0
        elif caches:
            past = compat.held_tokens(caches[0], 0)
            tokens, held = max(1, tokens - (past or 0)), 0 if past is None else max(held, past)
        elif generation_config.cache_implementation not in (None, "dynamic", "static"):
            held = 0
        size = ForwardSize(rows=batch_size * beams, tokens=tokens, cached_tokens=held)
        self._check(size, "this generate()")

    def _prompt_tokens(self, config: Any, model_kwargs: dict[str, Any], max_cache_length: int) -> int:
        """Return the tokens of the longest forward: the prompt's, or one piece of a prompt that is cut."""
        mask = model_kwargs.get("attention_mask")
        tokens: int = 1 if mask is None else mask.shape[-1]
        if config.max_new_tokens is not None:
            tokens = max_cache_length + 1 - config.max_new_tokens
        return max(1, min(tokens, config.prefill_chunk_size or tokens))

    def _check(self, size: ForwardSize | None, what: str) -> None:
        if size is not None:
            self._watch.check(size, is_task=self._group.is_task_thread(), what=what)


class _ArgumentReader:
    """Reads the size of a module's forward from its arguments, positional or not."""

    def __init__(self, module: PreTrainedModel) -> None:
        parameters = inspect.signature(type(module).forward).parameters
        self._places = {name: place for place, name in enumerate(list(parameters)[1:])}
        self._cache_keyword = compat.cache_keyword(module)
        self._uses_cache = bool(getattr(module.config, "use_cache", False))
        self._keeps_logits = "logits_to_keep" in parameters

    def size(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardSize | None:
        """Return the forward's size; None when it has neither tokens nor embeddings."""
        argument = partial(self._argument, args, kwargs)
        inputs = argument("input_ids")
        inputs = argument("inputs_embeds") if inputs is None else inputs
        shape: tuple[int, ...] = getattr(inputs, "shape", ())
        if len(shape) < 2:
            return None
        rows, tokens = shape[0], shape[1]
        return ForwardSize(
            rows=rows,
            tokens=tokens,
            cached_tokens=self._cached_tokens(argument, tokens),
            logit_rows=self._logit_rows(argument("logits_to_keep"), tokens),
        )

    def _argument(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None) -> Any:
        if name in kwargs:
            return kwargs[name]
        place = self._places.get(name or "", len(args))
        return args[place] if place < len(args) else None

    def _cached_tokens(self, argument: Callable[[str | None], Any], tokens: int) -> int:
        cache = argument(self._cache_keyword)
        # 5.24 still takes the old name
        cache = argument("past_key_values") if cache is None else cache
        if cache is not None:
            return compat.held_tokens(cache, tokens) or 0
        uses_cache = argument("use_cache")
        return tokens if (self._uses_cache if uses_cache is None else uses_cache) else 0

    def _logit_rows(self, kept: Any, tokens: int) -> int:
        # a model without the argument computes all logits in the profile's forward too
        if not self._keeps_logits:
            return 0
        if isinstance(kept, int) or kept is None:
            return min(kept or tokens, tokens)
        return int(kept.shape[-1])


def _exceeded(limits: ForwardLimits, size: ForwardSize, what: str) -> WorkloadExceededError:
    needed_bytes, workload = limits.needed_bytes(size), limits.workload
    return WorkloadExceededError(
        f"{what} of {_size_text(size)} takes {_bytes_text(needed_bytes)}, weights included, but the budget "
        f"is {_bytes_text(limits.limit_bytes)}: nothing was computed. {_planned_text(limits)}. "
        f"Load the model with {_load_text(limits, size)}, which keeps fewer weights in memory, "
        f"give a larger budget, or run fewer or shorter rows at a time{_logits_text(size)}",
        needed_bytes=needed_bytes,
        budget_bytes=limits.limit_bytes,
        asked=_sizes(size.rows, size.tokens, max(size.tokens, size.cached_tokens)),
        planned=_sizes(workload.batch_size, workload.prompt_tokens, workload.context_tokens),
    )


def _warning(limits: ForwardLimits, size: ForwardSize, what: str) -> str:
    held_bytes, working_bytes = limits.held_bytes(size), limits.working_bytes(size)
    return (
        f"{what} of {_size_text(size)} is larger than planned: {format_bytes(held_bytes)} of cache and "
        f"{format_bytes(working_bytes)} of activations, where {format_bytes(limits.cache_bytes)} and "
        f"{format_bytes(limits.activation_bytes)} are reserved. With the weights it takes "
        f"{_bytes_text(limits.needed_bytes(size))}, within the limit of {format_bytes(limits.limit_bytes)}. "
        f"{_planned_text(limits)}. To reserve its memory, load the model with {_load_text(limits, size)}. "
        "This warning comes once"
    )


def _sizes(batch_size: int, prompt_tokens: int, context_tokens: int) -> dict[str, int]:
    return {
        "batch_size": batch_size,
        "prompt_tokens": prompt_tokens,
        "context_tokens": context_tokens,
    }


def _size_text(size: ForwardSize) -> str:
    rows = "1 row" if size.rows == 1 else f"{size.rows} rows"
    tokens = "1 token" if size.tokens == 1 else f"{size.tokens} tokens"
    cached = f", {size.cached_tokens} in the cache," if size.cached_tokens > size.tokens else ""
    return f"{rows} of {tokens}{cached}"


def _bytes_text(num_bytes: int) -> str:
    return f"{format_bytes(num_bytes)} ({num_bytes} bytes)"


def _planned_text(limits: ForwardLimits) -> str:
    return f"The plan takes {_bytes_text(limits.planned_bytes)} for {_workload_text(limits.workload)}"


def _load_text(limits: ForwardLimits, size: ForwardSize) -> str:
    return f"workload={_workload_text(limits.fitting_workload(size))}"


def _workload_text(workload: Workload) -> str:
    chunk = workload.prefill_chunk_tokens
    return (
        f"Workload(batch_size={workload.batch_size}, prompt_tokens={workload.prompt_tokens}, "
        f"new_tokens={workload.new_tokens}{'' if chunk is None else f', prefill_chunk_tokens={chunk}'})"
    )


def _logits_text(size: ForwardSize) -> str:
    return "; logits_to_keep=1 leaves out most of the logits" if size.logit_rows > 1 else ""
