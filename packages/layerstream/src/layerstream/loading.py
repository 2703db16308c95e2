"""Plan, simulate and load: the public verbs.

Layer: composition. Each opens a model and lets planning decide; `load` then has the plan carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedConfig

from .engine.build import build
from .engine.inspect import ModelSpec, inspect_config, inspect_model
from .errors import PlanError
from .machine import describe_machine, resolve_device, trim_malloc
from .model import StreamedModel
from .planning.placement import plan_placement
from .spec.options import MemoryBudget, Workload
from .spec.plans import PlacementPlan
from .spec.profiles import Machine, ModelProfile
from .streaming.runtime import DeviceRuntime, TorchRuntime

Budget = str | int | MemoryBudget


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
) -> PlacementPlan:
    """Return where each block of a model would live on this machine, from config and headers only; no weight is read.

    Args:
        model: a directory or a Hub id.
        budget: `"auto"` (what is free here), `"min"` (the least that works), a size such as `"6 GiB"` for the device, or a
            `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        devices: several of them, which share one reading of the weights; the budget is each one's. In place of `device`.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        workload: batch, prompt and answer lengths to plan for; on each device.
        machine: plan for another machine than this one; `device` is then its. Several: one for each device.
        attn_implementation: transformers' name of the attention.
        revision: of a Hub id.
        trust_remote_code: run code from the repository; off unless asked.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        CheckpointError, ModelError, PlanError: what is wrong with the files, the model or the wish.
    """
    machines = None if machine is None else _as_list(machine)
    resolved = [] if machines is not None else _resolve_devices(device, devices)
    on_host = resolved[0].type == "cpu" if machines is None else machines[0].device_is_host
    spec = inspect_model(
        model,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        prefill_chunk_tokens=_chunk(workload),
        on_host=on_host,
        weights=False,
    )
    if machines is None:
        machines = [describe_machine(each, dtype=spec.profile.dtype) for each in resolved]
    return _plan_spec(spec, budget, workload, machines)


def simulate(
    model: str | Path | PreTrainedConfig | ModelProfile,
    *,
    machine: Machine | Sequence[Machine],
    workload: Workload | None = None,
    budget: Budget = "auto",
    dtype: str | torch.dtype = "auto",
) -> PlacementPlan:
    """Return the plan for a machine one does not have.

    The planner is the simulator: this is what `load` would do there.

    Args:
        model: a directory, a Hub id, a transformers config, or what `profile_model` returned, from which the answer comes at once.
        machine: the machine as numbers; for several devices that share one reading, one for each.
        workload: batch, prompt and answer lengths.
        budget: as for `plan`.
        dtype: the run dtype; a profile has its own.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        PlanError: a profile of another dtype than the one asked for.
    """
    machines = _as_list(machine)
    if isinstance(model, ModelProfile):
        return _plan_profile(_of_dtype(model, dtype), budget, workload, machines)
    spec = _inspect_any(model, dtype, on_host=machines[0].device_is_host, chunk=_chunk(workload))
    return _plan_spec(spec, budget, workload, machines)


def profile_model(
    model: str | Path | PreTrainedConfig, *, dtype: str | torch.dtype = "auto", device: str = "cpu"
) -> ModelProfile:
    """Return a model as numbers: parameters, bytes of every block, how memory grows with tokens. No weight is read.

    Args:
        model: a directory, a Hub id or a transformers config.
        dtype: the run dtype.
        device: the kind of device to lay slots out for; it need not exist here.
    """
    return _inspect_any(model, dtype, on_host=device.split(":")[0] == "cpu").profile


def _inspect_any(
    model: str | Path | PreTrainedConfig, dtype: str | torch.dtype, *, on_host: bool, chunk: int | None = None
) -> ModelSpec:
    if isinstance(model, PreTrainedConfig):
        return inspect_config(model, dtype=dtype, prefill_chunk_tokens=chunk, on_host=on_host)
    return inspect_model(model, dtype=dtype, prefill_chunk_tokens=chunk, on_host=on_host, weights=False)


def _chunk(workload: Workload | None) -> int | None:
    return None if workload is None else workload.prefill_chunk_tokens


def _plan_spec(
    spec: ModelSpec, budget: Budget, workload: Workload | None, machines: Sequence[Machine]
) -> PlacementPlan:
    return _plan_profile(spec.profile, budget, workload, machines)


def _plan_profile(
    profile: ModelProfile, budget: Budget, workload: Workload | None, machines: Sequence[Machine]
) -> PlacementPlan:
    requested = budget if isinstance(budget, MemoryBudget) else MemoryBudget(device=budget)
    return plan_placement(
        profile=profile,
        budget=requested,
        workload=workload or Workload(),
        machine=machines[0],
        beside=machines[1:],
    )


def _of_dtype(profile: ModelProfile, dtype: str | torch.dtype) -> ModelProfile:
    wished = str(dtype).removeprefix("torch.")
    if wished not in ("auto", profile.dtype):
        raise PlanError(
            f"the profile of {profile.name} is of {profile.dtype}, and {wished} was asked for: profile the model in {wished}"
        )
    return profile


def _as_list(machine: Machine | Sequence[Machine]) -> list[Machine]:
    machines = [machine] if isinstance(machine, Machine) else list(machine)
    if not machines:
        raise PlanError("machine is an empty list: give one machine for each device")
    return machines


def _resolve_devices(device: str, devices: Sequence[str] | None) -> list[torch.device]:
    if devices is None:
        return [resolve_device(device)]
    if device != "auto":
        raise PlanError(
            f"device={device!r} and devices={devices!r} were both given: name one device, or several"
        )
    if isinstance(devices, str) or not devices:
        raise PlanError(f"devices takes a list of devices, such as ['cuda:0', 'cuda:1']; got {devices!r}")
    return [_numbered(resolve_device(each)) for each in devices]


def _numbered(device: torch.device) -> torch.device:
    """Return `cuda` as `cuda:0` or whatever is current, so that one device under two names is one."""
    module = torch.get_device_module(device)
    if device.type == "cpu" or device.index is not None or not hasattr(module, "current_device"):
        return device
    return torch.device(device.type, module.current_device())


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
    runtime: DeviceRuntime | Sequence[DeviceRuntime] | None = None,
) -> StreamedModel:
    """Load a causal language model within a memory budget, exactly.

    What fits stays in memory; the rest is read from the original safetensors in every sweep. Use it as a context manager, or call
    `close()`. Streaming on a CPU also makes glibc return freed memory at once, for the whole process: a tight budget needs it.

    Args:
        model: a directory or a Hub id.
        budget: `"auto"` (what is free here), `"min"` (the least that works), a size such as `"6 GiB"` for the device, or a
            `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        devices: several of them, which share one reading of the weights; the budget is each one's. In place of `device`.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        workload: batch, prompt and answer lengths to keep room for; on each device.
        attn_implementation: transformers' name of the attention.
        revision: of a Hub id.
        trust_remote_code: run code from the repository; off unless asked.
        runtime: the operations of the device, or of each device; for tests.

    Returns:
        The streamed model; its `.model` is transformers' own, and its `.replicas` are one for each device.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        CheckpointError, ModelError, PlanError: what is wrong with the files, the model or the wish.
        ReadFailedError: the disk did not give what it holds.
    """
    baseline_bytes = psutil.Process().memory_info().rss
    runtimes = _resolve_runtimes(device, devices, runtime)
    spec = inspect_model(
        model,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        prefill_chunk_tokens=_chunk(workload),
        on_host=runtimes[0].is_host,
    )
    machines = [
        replace(describe_machine(each.device, dtype=spec.profile.dtype), device=each.name)
        for each in runtimes
    ]
    placement = _plan_spec(spec, budget, workload, machines)
    if runtimes[0].is_host and not placement.is_resident:
        trim_malloc()
    return StreamedModel(build(spec, placement, runtimes), baseline_bytes=baseline_bytes)


def _resolve_runtimes(
    device: str, devices: Sequence[str] | None, runtime: DeviceRuntime | Sequence[DeviceRuntime] | None
) -> list[DeviceRuntime]:
    if runtime is None:
        return [TorchRuntime(each) for each in _resolve_devices(device, devices)]
    return list(runtime) if isinstance(runtime, Sequence) else [runtime]
