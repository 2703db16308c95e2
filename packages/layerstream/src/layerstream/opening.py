"""Carry out `plan` and `load` with the options as one value: inspect, plan, build, and open the draft."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .checkpoint.url_copy import OnFetch, begin_download
from .checkpoint.urls import is_url
from .draft_models import FoundDraft, find_draft, open_draft
from .engine.build import OnProgress, build
from .engine.inspect import ModelSpec, inspect_model
from .engine.peak_memory import held_host_bytes
from .engine.verification import refuse_difference
from .errors import PinningError
from .machine import describe_machine, resolve_device, trim_malloc
from .model import StreamedModel
from .planning.forward_limits import forward_limits
from .planning.placement import device_limit_bytes
from .simulation import list_machines, plan_profile, with_room_for_drafts
from .spec.options import LoadOptions, Workload
from .spec.plans import PlacementPlan
from .spec.profiles import HostPinning, Machine
from .spec.speculation import DraftNeeds
from .speculation.decode import Speculator
from .streaming.runtime import DeviceRuntime, TorchRuntime


def plan_with(
    model: str | Path, options: LoadOptions, *, machine: Machine | Sequence[Machine] | None = None
) -> PlacementPlan:
    """Return the plan that `plan` makes, with the options as one value."""
    options = with_room_for_drafts(options)
    if machine is not None:
        machines = list_machines(machine)
        spec = inspect_model(model, options, on_host=machines[0].device_is_host, weights=False)
    else:
        devices = resolve_devices(options)
        spec = inspect_model(model, options, on_host=devices[0].type == "cpu", weights=False)
        machines = [describe_machine(each, dtype=spec.profile.dtype) for each in devices]
    return plan_profile(spec.profile, options, machines, _needs(find_draft(spec, options, machines)))


def _needs(draft: FoundDraft | None) -> DraftNeeds | None:
    return None if draft is None else draft.needs


def load_with(
    model: str | Path,
    options: LoadOptions,
    *,
    verify: bool = False,
    on_progress: OnProgress | None = None,
    on_fetch: OnFetch | None = None,
    runtime: DeviceRuntime | Sequence[DeviceRuntime] | None = None,
) -> StreamedModel:
    """Return the model that `load` loads, with the options as one value.

    The weights at a URL arrive in the background, and are read as they come. `on_fetch` is called with how
    far they are, on another thread, also after this has returned.
    """
    load_here = partial(_load_here, verify=verify, on_progress=on_progress, runtime=runtime)
    download = begin_download(str(model), options, on_fetch=on_fetch) if is_url(str(model)) else None
    if download is None:
        return load_here(model, options, None)
    with ExitStack() as if_it_fails:
        if_it_fails.callback(download.stop)
        streamed = load_here(model, options, download.stop)
        if_it_fails.pop_all()
    return streamed


def _load_here(
    model: str | Path,
    options: LoadOptions,
    stop_download: Callable[[], None] | None,
    *,
    verify: bool,
    on_progress: OnProgress | None,
    runtime: DeviceRuntime | Sequence[DeviceRuntime] | None,
) -> StreamedModel:
    options = with_room_for_drafts(options)
    runtimes = _resolve_runtimes(options, runtime)
    baseline_bytes = held_host_bytes(runtimes[0])
    spec = inspect_model(model, options, on_host=runtimes[0].is_host)
    machines = _machines_of(runtimes, spec)
    draft = find_draft(spec, options, machines)
    if not runtimes[0].is_host:
        # The device's driver takes memory of its own when it is first asked.
        baseline_bytes = held_host_bytes(runtimes[0])
    load_on = partial(
        _load_on, baseline_bytes=baseline_bytes, on_progress=on_progress, on_close=stop_download
    )
    refusal = ""
    try:
        streamed = load_on(spec, options, runtimes, machines, draft=draft)
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
        del spec, draft
        gc.collect()  # models have cycles
        spec = inspect_model(model, options, on_host=False)
        draft = find_draft(spec, options, machines)
        streamed = load_on(spec, options, runtimes, machines, draft=draft)
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
    on_progress: OnProgress | None = None,
    draft: FoundDraft | None = None,
    on_close: Callable[[], None] | None = None,
) -> StreamedModel:
    placement = plan_profile(spec.profile, options, machines, _needs(draft))
    if runtimes[0].is_host and not placement.is_resident:
        trim_malloc()
    limits = forward_limits(
        placement,
        spec.profile,
        options.workload or Workload(),
        device_limit_bytes(placement, options.memory_budget, machines),
    )
    with ExitStack() as if_it_fails:
        speculation = None
        if draft is not None and not draft.needs.refusal:
            speculation = _open_draft(draft, spec.name, options, runtimes, machines)
            if_it_fails.callback(speculation.close)
        built = build(spec, placement, runtimes, on_progress)
        if_it_fails.pop_all()
    return StreamedModel(
        built, baseline_bytes=baseline_bytes, limits=limits, speculation=speculation, on_close=on_close
    )


def _open_draft(
    draft: FoundDraft,
    target: str,
    options: LoadOptions,
    runtimes: Sequence[DeviceRuntime],
    machines: Sequence[Machine],
) -> Speculator:
    """Load the draft beside its target, and return what decodes with it."""

    def load_model(found: FoundDraft) -> tuple[PreTrainedModel, Callable[[], None]]:
        assert found.spec is not None
        baseline_bytes = held_host_bytes(runtimes[0])
        resident = _load_on(found.spec, found.options, runtimes, machines, baseline_bytes=baseline_bytes)
        return resident.model, resident.close

    return open_draft(draft, target, options, runtimes[0], load_model)


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
