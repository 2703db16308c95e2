"""Run and measure one case, emitting events.

The order is: imports, baseline, load, warm-up, the measured generation, and only then everything that would
disturb the figures: operator traces and quality. It does not know what a variant is.
"""

from __future__ import annotations

import importlib
import os
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Protocol

import torch

import layerstream as ls

from ..case import Case
from ..measurement import Agreement, Memory, Timing
from ..protocol import one_line
from ..variants.loaded import Loaded, resolve_device
from ..variants.prompts import Prompt, build_prompt
from ..variants.registry import VariantUnavailableError, find_variant
from .background_load import BackgroundLoadMeter
from .detokenize import Detokenizer, decode, token_texts
from .diagnosis import SharedFailureError, shared_failures_named
from .generation import Generated, generate_greedily
from .memory import PhaseMeter, Reading, held_bytes, mapped_held_bytes, read_disk_bytes, read_memory
from .nvml import gpu_facts
from .operator_trace import kernel_facts
from .teacher_forcing import measure_quality

WARMUP_PROMPT_TOKENS = 512
"""Most prompt tokens of the warm-up: more would take as long as the measurement."""

_KERNEL_PROMPT_TOKENS = 8
_NOISY_SPREAD = 2.0
_NOISY_CORES = 0.25
_REFUSALS = ("No available kernel", "No viable backend")


class Emit(Protocol):
    """Receives events: `phase`, `token`, ..., and last `result`, `unavailable` or `failed`."""

    def __call__(self, kind: str, **data: Any) -> None:
        """Receive one event."""


def run_case(case: Case, emit: Emit) -> None:
    """Run `case` in this process and emit its events.

    The last event is `result` with the measurement's fields, `unavailable` if a library is missing or the
    model's shapes are not supported, or `failed` after any other exception, whose traceback goes to standard
    error; `hits_every_case` is true if no variant could have succeeded. Only exceptions outside `Exception`
    (an interrupt, an exit) are raised.
    """
    try:
        emit("result", **_measure_case(case, emit))
    except VariantUnavailableError as error:
        emit("unavailable", reason=_reason(error))
    except ModuleNotFoundError as error:
        traceback.print_exc()
        emit("unavailable", reason=f"{case.label} needs the package {error.name}, which is not installed")
    except SharedFailureError as error:
        traceback.print_exc()
        emit("failed", reason=_reason(error), stderr_tail=_tail(error), hits_every_case=True)
    except Exception as error:  # noqa: BLE001  a failed case is a result
        traceback.print_exc()
        if backend := _refused_backend(case, error):
            reason = (
                f"{case.attention}: torch's {backend} has no kernel for this model's shapes and dtype here"
            )
            emit("unavailable", reason=reason)
        else:
            emit("failed", reason=f"{type(error).__name__}: {_reason(error)}", stderr_tail=_tail(error))


def _refused_backend(case: Case, error: Exception) -> str:
    """Return the attention backend that the case forces, if the error is that it refuses the model."""
    # torch says only this much; on an accelerator it warns of its reasons on standard error
    is_refusal = isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
    return find_variant(case.attention, "attention").backend if is_refusal else ""


def _measure_case(case: Case, emit: Emit) -> dict[str, Any]:
    load = _import_variant(case)
    with shared_failures_named(case):
        return _measure_loaded(case, load, emit)


def _measure_loaded(case: Case, load: Callable[[Case], Loaded], emit: Emit) -> dict[str, Any]:
    load_average = os.getloadavg()[0]
    if case.threads:
        torch.set_num_threads(case.threads)
    meter = PhaseMeter(resolve_device(case))
    emit("phase", phase="import")
    meter.start("import")
    meter.stop()
    baseline = read_memory()
    emit("phase", phase="load")
    meter.start("load")
    start = time.perf_counter()
    loaded = load(case)
    load_s = time.perf_counter() - start
    meter.stop()
    try:
        return _Run(case, loaded, meter, emit).measure(baseline, load_s, load_average)
    finally:
        loaded.close()


def _import_variant(case: Case) -> Callable[[Case], Loaded]:
    """Import the variant's module, and with it its libraries, and return its `load`.

    Raises:
        VariantUnavailableError: this machine lacks something that the variant or its attention needs.
    """
    for kind, name in (("weights", case.variant), ("attention", case.attention)):
        reason = find_variant(name, kind).availability()
        if reason is not None:
            raise VariantUnavailableError(reason)
    name = find_variant(case.variant, "weights").module
    module = importlib.import_module(f"..variants.{name}", __package__)
    load: Callable[[Case], Loaded] = module.load
    return load


class _Run:
    """Takes a loaded variant through warm-up, measurement and quality."""

    def __init__(self, case: Case, loaded: Loaded, meter: PhaseMeter, emit: Emit) -> None:
        self._case, self._loaded, self._meter, self._emit = case, loaded, meter, emit
        self._prompt = build_prompt(loaded.tokenizer, case)
        self._detokenizer = Detokenizer(loaded.tokenizer)
        # the first forward may repack the weights: `held_bytes` is taken after it, this figure is a fact
        self._held_after_load_bytes = held_bytes(loaded.model) + loaded.extra_held_bytes

    def measure(self, baseline: Reading, load_s: float, load_average: float) -> dict[str, Any]:
        """Measure, and return the result's fields."""
        first_forward_s = self._warm_up()
        cpu_start_s, disk_start_bytes = time.process_time(), read_disk_bytes()
        background = BackgroundLoadMeter()
        generated = self._generate()
        cpu_s, bytes_read = time.process_time() - cpu_start_s, read_disk_bytes() - disk_start_bytes
        background_cores = background.cores()
        timing = Timing(
            load_s=load_s,
            first_forward_s=first_forward_s or generated.first_token_s,
            first_token_s=generated.first_token_s,
            inter_token_median_s=generated.median_s,
            inter_token_p95_s=generated.p95_s,
            tokens_per_s=generated.tokens_per_s,
            cpu_s=cpu_s,
            bytes_read=bytes_read,
            load_average=load_average,
            background_cores=background_cores,
            is_noisy=_is_noisy(self._case, generated, background_cores),
        )
        memory = self._memory(baseline)
        facts = self._facts(memory, generated)
        agreements: tuple[Agreement, ...] = ()
        if self._case.quality:
            self._emit("phase", phase="quality")
            agreements, reference_facts = measure_quality(self._case, self._loaded, self._prompt)
            facts |= reference_facts
        return {
            "prompt_tokens": self._prompt.num_tokens,
            "token_ids": generated.token_ids,
            "token_texts": token_texts(self._loaded.tokenizer, generated.token_ids),
            "text": decode(self._loaded.tokenizer, generated.token_ids),
            "memory": asdict(memory),
            "timing": asdict(timing),
            "agreements": [asdict(agreement) for agreement in agreements],
            "facts": facts,
        }

    def _warm_up(self) -> float:
        """Generate a few tokens, unmeasured; return the seconds of the first forward, 0 without a warm-up."""
        if not self._case.warmup_tokens:
            return 0.0
        self._start("warm-up")
        prompt = self._prompt
        if prompt.num_tokens > WARMUP_PROMPT_TOKENS:
            prompt = Prompt(token_ids=prompt.token_ids[:, :WARMUP_PROMPT_TOKENS], messages=None)
        generated = generate_greedily(
            self._loaded, prompt, self._case.warmup_tokens, lambda index, token: None
        )
        self._meter.stop()
        return generated.first_token_s

    def _generate(self) -> Generated:
        self._start("first-token")
        timeline = self._loaded.timeline if self._case.timeline else None
        with nullcontext() if timeline is None else timeline.emit_to(self._emit):
            generated = generate_greedily(
                self._loaded, self._prompt, self._case.max_new_tokens, self._on_token
            )
        self._meter.stop()
        return generated

    def _on_token(self, index: int, token: int) -> None:
        if index == 0:
            self._meter.stop()
            self._start("decode")
            self._detokenizer = Detokenizer(self._loaded.tokenizer)
        self._emit("token", index=index, id=token, text=self._detokenizer.push(token))

    def _start(self, phase: str) -> None:
        self._emit("phase", phase=phase)
        self._meter.start(phase)

    def _memory(self, baseline: Reading) -> Memory:
        loaded, phases = self._loaded, {phase.phase: phase for phase in self._meter.phases}
        load = phases["load"]
        peak = max(phase.peak_bytes for name, phase in phases.items() if name != "import")
        return Memory(
            baseline_bytes=baseline.resident_bytes,
            held_bytes=held_bytes(loaded.model) + loaded.extra_held_bytes,
            mapped_held_bytes=mapped_held_bytes(loaded.model),
            device_held_bytes=held_bytes(loaded.model, on_accelerator_only=True)
            + loaded.extra_device_held_bytes,
            peak_over_baseline_bytes=peak - baseline.resident_bytes,
            load_spike_bytes=load.peak_bytes - load.resident_bytes,
            phases=tuple(self._meter.phases),
        )

    def _facts(self, memory: Memory, generated: Generated) -> dict[str, Any]:
        # first: the streamed variant's report must cover only what was measured
        facts = self._loaded.facts()
        profile = ls.profile_model(self._case.model, dtype=self._case.dtype)
        missing_flags = find_variant(self._case.variant, "weights").missing_cpu_flags()
        prompt_ids = self._prompt.token_ids[:, :_KERNEL_PROMPT_TOKENS].to(self._loaded.model.device)
        return {
            **facts,
            **kernel_facts(self._loaded, prompt_ids),
            **gpu_facts(self._loaded.model.device),
            **({"cpu_lacks": list(missing_flags)} if missing_flags and facts["device"] == "cpu" else {}),
            "margins": list(generated.margins),
            "parameters": profile.num_parameters,
            "unquantized_weight_bytes": profile.weight_bytes,
            "held_after_load_bytes": self._held_after_load_bytes,
            "effective_bits_per_weight": memory.held_bytes * 8 / profile.num_parameters,
            "threads": torch.get_num_threads(),
            "peak_is_reset": self._meter.peak_is_reset,
        }


def _is_noisy(case: Case, generated: Generated, background_cores: float) -> bool:
    # with a draft, sweeps give few tokens or many, however quiet the machine is
    is_uneven = not case.draft and generated.p95_s > _NOISY_SPREAD * generated.median_s
    return background_cores > _NOISY_CORES or is_uneven


def _reason(error: BaseException) -> str:
    return one_line(str(error)) or "no reason was given"


def _tail(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]
