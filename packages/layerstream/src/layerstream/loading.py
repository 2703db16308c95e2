"""Plan and load a model on this machine: the public verbs `plan`, `load` and `profile_model`.

Each of them inspects the model and plans; `load` also carries out the plan. The module is not called `load`
because a submodule of that name would hide the lazily exported function.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Never, TypeAlias

import torch
from transformers import PreTrainedConfig

from .engine.build import OnProgress, build
from .engine.inspect import ModelSpec, inspect_any, inspect_model
from .engine.peak_memory import held_host_bytes
from .engine.verification import refuse_difference
from .errors import PinningError
from .machine import describe_machine, resolve_device, trim_malloc
from .model import StreamedModel
from .planning.forward_limits import forward_limits
from .planning.placement import device_limit_bytes
from .simulation import dtype_name, list_machines, plan_profile
from .spec.keywords import refuse_keywords
from .spec.options import LoadOptions, MemoryBudget, Workload
from .spec.plans import PlacementPlan
from .spec.profiles import HostPinning, Machine, ModelProfile
from .streaming.runtime import DeviceRuntime, TorchRuntime

Budget = str | int | MemoryBudget
ConfigSettings: TypeAlias = Mapping[str, Any] | PreTrainedConfig | None

_KEYWORDS = tuple(field.name for field in fields(LoadOptions))
AdapterPath = str | Path | Mapping[str, str | Path] | None


def plan(
    model: str | Path,
    *,
    budget: Budget = "auto",
    device: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: str | torch.dtype = "auto",
    workload: Workload | None = None,
    machine: Machine | Sequence[Machine] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    variant: str | None = None,
    config: ConfigSettings = None,
    adapter: AdapterPath = None,
    allow_sliced_head: bool = False,
    **unknown: Never,
) -> PlacementPlan:
    """Return where each block of a model would live on this machine. Reads config and headers only.

    Args:
        model: a directory or a Hub id.
        budget: `"auto"` (what is free here), `"min"` (the least that works), a size such as `"6 GiB"` for the
            device, or a `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        devices: several devices in place of `device`. They share each read; the budget applies per device.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        workload: batch, prompt and answer lengths to plan for, per device.
        machine: plan for this machine's figures in place of the ones found here, and for its device,
            not `device`. For several devices, one machine per device.
        attn_implementation: transformers' name of the attention implementation, or the Hub id of a kernel,
            such as `"kernels-community/flash-attn2"`, which needs the package `kernels`.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run code from the repository; off by default.
        token: the access token for the Hub; None is the one of `HF_TOKEN` or `hf auth login`.
        cache_dir: the directory of the Hub's cache.
        local_files_only: download nothing.
        subfolder: the folder of the checkpoint that holds config, weights and tokenizer.
        variant: which files hold the weights: `"fp16"` is `model.fp16.safetensors`.
        config: a mapping of settings that replace the checkpoint's, or a transformers config that replaces
            its config. Settings that change the weights' shapes are refused.
        adapter: an adapter's directory or Hub id, or several by name, as for `load`.
        allow_sliced_head: as for `load`.
        unknown: takes nothing; it turns other keywords of `from_pretrained` into an error with advice.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        CheckpointError, ModelError, PlanError: the files, the model or the options cannot be used.
        UnsupportedOptionError: a keyword is none of these; the message says what to use instead.
    """
    refuse_keywords("plan", unknown, _KEYWORDS)
    options = LoadOptions(
        budget=budget,
        device=device,
        devices=devices,
        dtype=dtype_name(dtype),
        workload=workload,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder=subfolder,
        variant=variant,
        config=config,
        adapter=adapter,
        allow_sliced_head=allow_sliced_head,
    )
    return plan_with(model, options, machine=machine)


def plan_with(
    model: str | Path, options: LoadOptions, *, machine: Machine | Sequence[Machine] | None = None
) -> PlacementPlan:
    """Return the plan that `plan` makes, with the options as one value."""
    if machine is not None:
        machines = list_machines(machine)
        spec = inspect_model(model, options, on_host=machines[0].device_is_host, weights=False)
        return plan_profile(spec.profile, options, machines)
    devices = resolve_devices(options)
    spec = inspect_model(model, options, on_host=devices[0].type == "cpu", weights=False)
    return plan_profile(
        spec.profile, options, [describe_machine(each, dtype=spec.profile.dtype) for each in devices]
    )


def profile_model(
    model: str | Path | PreTrainedConfig,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    variant: str | None = None,
    config: ConfigSettings = None,
    **unknown: Never,
) -> ModelProfile:
    """Return a model's sizes: parameters, bytes per block, how memory grows with tokens. Reads no weight.

    Args:
        model: a directory, a Hub id or a transformers config, for which no option may say where files are.
        dtype: the run dtype.
        device: the kind of device to lay slots out for; it need not exist here.
        attn_implementation: transformers' name of the attention implementation, or the Hub id of a kernel,
            such as `"kernels-community/flash-attn2"`, which needs the package `kernels`.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run code from the repository; off by default.
        token: the access token for the Hub; None is the one of `HF_TOKEN` or `hf auth login`.
        cache_dir: the directory of the Hub's cache.
        local_files_only: download nothing.
        subfolder: the folder of the checkpoint that holds config, weights and tokenizer.
        variant: which files hold the weights: `"fp16"` is `model.fp16.safetensors`.
        config: a mapping of settings that replace the checkpoint's, or a transformers config that replaces
            its config. Settings that change the weights' shapes are refused.
        unknown: takes nothing; it turns other keywords of `from_pretrained` into an error with advice.

    Raises:
        CheckpointError, ModelError, PlanError: the files, the model or the options cannot be used.
        UnsupportedOptionError: a keyword is none of these; the message says what to use instead.
    """
    refuse_keywords("profile_model", unknown, _KEYWORDS)
    options = LoadOptions(
        dtype=dtype_name(dtype),
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder=subfolder,
        variant=variant,
        config=config,
    )
    on_host = device.split(":")[0] == "cpu"
    return inspect_any(model, options, on_host=on_host).profile


def load(
    model: str | Path,
    *,
    budget: Budget = "auto",
    device: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: str | torch.dtype = "auto",
    workload: Workload | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    variant: str | None = None,
    config: ConfigSettings = None,
    adapter: AdapterPath = None,
    allow_sliced_head: bool = False,
    verify: bool = False,
    on_progress: OnProgress | None = None,
    runtime: DeviceRuntime | Sequence[DeviceRuntime] | None = None,
    **unknown: Never,
) -> StreamedModel:
    """Load a causal language model within a memory budget, exactly.

    What fits stays in memory; the rest is read from the original safetensors in every sweep. Use the result
    as a context manager, or call `close()`. Streaming on a CPU also makes glibc return freed memory at once,
    for the whole process, because a tight budget needs it.

    Args:
        model: a directory or a Hub id.
        budget: `"auto"` (what is free here), `"min"` (the least that works), a size such as `"6 GiB"` for the
            device, or a `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        devices: several devices in place of `device`. They share each read; the budget applies per device.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        workload: batch, prompt and answer lengths to reserve memory for, per device.
        attn_implementation: transformers' name of the attention implementation, or the Hub id of a kernel,
            such as `"kernels-community/flash-attn2"`, which needs the package `kernels`.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run code from the repository; off by default.
        token: the access token for the Hub; None is the one of `HF_TOKEN` or `hf auth login`.
        cache_dir: the directory of the Hub's cache.
        local_files_only: download nothing.
        subfolder: the folder of the checkpoint that holds config, weights and tokenizer.
        variant: which files hold the weights: `"fp16"` is `model.fp16.safetensors`.
        config: a mapping of settings that replace the checkpoint's, or a transformers config that replaces
            its config. Settings that change the weights' shapes are refused.
        adapter: a directory that peft's `save_pretrained` wrote, or a Hub id; several in a mapping from their
            names. The first one is active; `set_adapter` and each request may name another. They stay in
            memory.
        allow_sliced_head: on accelerators, let a head that is larger than a slot be computed in vocabulary
            slices, which needs less memory. Another kernel may then run, and the last bit may differ; the
            plan says so. The CPU slices such a head anyway: there the result is exact.
        verify: compare some streamed units and the head with resident copies of them, bit for bit, before
            returning (`StreamedModel.verify`). It takes one sweep and reads those units once more.
        on_progress: called with a `LoadProgress` after each part that stays in memory has been read.
        unknown: takes nothing; it turns other keywords of `from_pretrained` into an error with advice.
        runtime: the operations of the device, or of each device; for tests.

    Returns:
        The streamed model. Its `.model` is transformers' own; `.replicas` has one replica per device.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        CheckpointError, ModelError, PlanError: the files, the model or the options cannot be used.
        UnsupportedOptionError: a keyword is none of these; the message says what to use instead.
        ReadFailedError: the disk did not return the bytes it holds.
        VerificationError: with `verify`, a unit differs from its resident copy.
    """
    refuse_keywords("load", unknown, (*_KEYWORDS, "verify", "on_progress"))
    options = LoadOptions(
        budget=budget,
        device=device,
        devices=devices,
        dtype=dtype_name(dtype),
        workload=workload,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder=subfolder,
        variant=variant,
        config=config,
        adapter=adapter,
        allow_sliced_head=allow_sliced_head,
    )
    return load_with(model, options, verify=verify, on_progress=on_progress, runtime=runtime)


def load_with(
    model: str | Path,
    options: LoadOptions,
    *,
    verify: bool = False,
    on_progress: OnProgress | None = None,
    runtime: DeviceRuntime | Sequence[DeviceRuntime] | None = None,
) -> StreamedModel:
    """Return the model that `load` loads, with the options as one value."""
    runtimes = _resolve_runtimes(options, runtime)
    baseline_bytes = held_host_bytes(runtimes[0])
    spec = inspect_model(model, options, on_host=runtimes[0].is_host)
    machines = _machines_of(runtimes, spec)
    if not runtimes[0].is_host:
        # The device's driver takes memory of its own when it is first asked.
        baseline_bytes = held_host_bytes(runtimes[0])
    load_on = partial(_load_on, baseline_bytes=baseline_bytes, on_progress=on_progress)
    refusal = ""
    try:
        streamed = load_on(spec, options, runtimes, machines)
    except PinningError as error:
        if machines[0].host_pinning is not HostPinning.ALL:
            raise
        refusal = str(error)
    if refusal:  # Outside the handler: the error's frames hold what was loaded by then.
        warnings.warn(
            f"{refusal}. The model is loaded all the same: only the staging buffers are pinned, and units in "
            "host memory pass through them; the plan says how fast that is",
            stacklevel=2,
        )
        machines = [replace(machine, host_pinning=HostPinning.STAGING) for machine in machines]
        del spec
        gc.collect()  # models have cycles
        streamed = load_on(inspect_model(model, options, on_host=False), options, runtimes, machines)
    if verify:
        _verify(streamed)
    return streamed


def _load_on(
    spec: ModelSpec,
    options: LoadOptions,
    runtimes: Sequence[DeviceRuntime],
    machines: Sequence[Machine],
    *,
    baseline_bytes: int,
    on_progress: OnProgress | None,
) -> StreamedModel:
    placement = plan_profile(spec.profile, options, machines)
    if runtimes[0].is_host and not placement.is_resident:
        trim_malloc()
    limits = forward_limits(
        placement,
        spec.profile,
        options.workload or Workload(),
        device_limit_bytes(placement, options.memory_budget, machines),
    )
    built = build(spec, placement, runtimes, on_progress)
    return StreamedModel(built, baseline_bytes=baseline_bytes, limits=limits)


def _verify(streamed: StreamedModel) -> None:
    """Verify `streamed`, which is closed if that fails; its report starts afterwards."""
    try:
        refuse_difference(streamed.verify())
    except BaseException:
        streamed.close()
        raise
    streamed.reset_report()


def _machines_of(runtimes: Sequence[DeviceRuntime], spec: ModelSpec) -> list[Machine]:
    dtype = spec.profile.dtype
    return [replace(describe_machine(each.device, dtype=dtype), device=each.name) for each in runtimes]


def _resolve_runtimes(
    options: LoadOptions, runtime: DeviceRuntime | Sequence[DeviceRuntime] | None
) -> list[DeviceRuntime]:
    if runtime is None:
        return [TorchRuntime(each) for each in resolve_devices(options)]
    return list(runtime) if isinstance(runtime, Sequence) else [runtime]


def resolve_devices(options: LoadOptions) -> list[torch.device]:
    """Return the torch devices that `options` name.

    Raises:
        PlanError: this machine lacks one of them.
    """
    if options.devices is None:
        return [resolve_device(options.device)]
    return [_with_index(resolve_device(each)) for each in options.devices]


def _with_index(device: torch.device) -> torch.device:
    """Return `cuda` as `cuda:0` or whichever is current, so that one device under two names is one device."""
    module = torch.get_device_module(device)
    if device.type == "cpu" or device.index is not None or not hasattr(module, "current_device"):
        return device
    return torch.device(device.type, module.current_device())
