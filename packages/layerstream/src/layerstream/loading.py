"""Plan and load a model on this machine: the public verbs `plan`, `load` and `profile_model`.

Each of them inspects the model and plans; `load` also carries out the plan. The module is not called `load`
because a submodule of that name would hide the lazily exported function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Never, TypeAlias

import torch
from transformers import PreTrainedConfig

from .engine.build import OnProgress
from .engine.inspect import inspect_any
from .model import StreamedModel
from .opening import load_with, plan_with
from .simulation import dtype_name
from .spec.keywords import refuse_keywords
from .spec.options import LoadOptions, MemoryBudget, Workload
from .spec.plans import PlacementPlan
from .spec.profiles import Machine, ModelProfile
from .streaming.runtime import DeviceRuntime

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
    draft: str | Path | None = None,
    draft_tokens: int | None = None,
    draft_acceptance: float | None = None,
    exact_ties: bool = True,
    prefix_cache: int | str = 0,
    **unknown: Never,
) -> PlacementPlan:
    """Return where each block of a model would live on this machine. Reads config and headers only.

    Args:
        model: a directory, a Hub id or a URL such as `s3://bucket/model`, see `fetch`.
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
        draft: as for `load`; its memory is part of the plan, which predicts the tokens per sweep.
        draft_tokens: as for `load`.
        draft_acceptance: the chance to assume that a drafted token is accepted if those before it were; None
            assumes what was measured with a small model.
        exact_ties: as for `load`.
        prefix_cache: as for `load`; it is a line of the plan.
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
        draft=draft,
        draft_tokens=draft_tokens,
        draft_acceptance=draft_acceptance,
        exact_ties=exact_ties,
        prefix_cache=prefix_cache,
    )
    return plan_with(model, options, machine=machine)


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
    draft: str | Path | None = None,
    draft_tokens: int | None = None,
    draft_width: int | None = None,
    exact_ties: bool = True,
    prefix_cache: int | str = 0,
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
        model: a directory, a Hub id or a URL such as `s3://bucket/model`, see `fetch`.
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
        draft: what proposes tokens, which one sweep then verifies together: `"int8"` or `"nf4"` (the same
            model with fewer bits, in memory; nf4 needs bitsandbytes), `"lookup"` (what followed the last
            words earlier in the text; no model), the directory or Hub id of a smaller model with the same
            tokenizer, or `"auto"` (int8, nf4 or lookup, whichever the plan says is fastest, or none). Greedy
            text stays that of plain generation, and so does sampled text with the same seed.
        draft_tokens: draft this many tokens for each sweep; None measures how many are fastest.
        draft_width: how many tokens a draft model considers at each place: 1 makes chains, more makes trees,
            which branch where the draft is unsure. None considers three.
        exact_ties: with a draft, verify each token by a forward of its own, all in one sweep, so that every
            bit is that of plain generation. False verifies a chain by one forward: on a CPU that computes
            less, but where two tokens score almost the same, the other one may be chosen.
        prefix_cache: memory for the keys and values of earlier conversations, which `layerstream serve` uses
            and `generate()` does not: bytes or a size such as `"1 GiB"`. It is host memory; on a CPU device,
            a part of the budget. 0 keeps none.
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
        draft=draft,
        draft_tokens=draft_tokens,
        draft_width=draft_width,
        exact_ties=exact_ties,
        prefix_cache=prefix_cache,
    )
    return load_with(model, options, verify=verify, on_progress=on_progress, runtime=runtime)
