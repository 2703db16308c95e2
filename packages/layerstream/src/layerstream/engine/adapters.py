"""Put adapters on a model with peft, and tell beforehand how much memory they take.

The only module that imports peft, which is an optional extra, and only when there are adapters. The model
stays transformers' own: peft changes it in place. Prompt learning cannot be put in place; there, peft's model
around it is what computes.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..checkpoint.hub import ADAPTER_CONFIG, resolve_adapter
from ..errors import AdapterError, UnsupportedModelError, first_line
from ..spec.options import LoadOptions

_UNSUPPORTED_TYPES = frozenset({"ADAPTION_PROMPT", "POLY", "XLORA"})
"""Kinds that need more than their layers: peft's own forward, or arguments in each call."""

_PEFT_ERRORS = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter's files.

    Attributes:
        name: what it is called in the model.
        source: its directory or Hub id, as the user gave it.
        directory: where its files are.
    """

    name: str
    source: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSizes:
    """What adapters take in addition to the model.

    Attributes:
        num_bytes: their weights, as peft holds them.
        virtual_tokens: tokens that prompt learning puts in front of each sequence; 0 for other kinds.
        distinct: the name of one adapter for each configuration.
    """

    num_bytes: int
    virtual_tokens: int
    distinct: tuple[str, ...]


def find_adapters(options: LoadOptions, *, weights: bool) -> tuple[Adapter, ...]:
    """Return the adapters that `options` name, fetched from the Hub where they are not here.

    Args:
        options: only `adapter`, token, cache directory and `local_files_only` are used.
        weights: fetch a Hub id's weights too, not only its config.

    Raises:
        AdapterError: peft is not installed.
        CheckpointNotFoundError: an adapter is neither here nor on the Hub, or the Hub cannot be reached.
    """
    if options.adapters:
        _import_peft()
    return tuple(
        Adapter(name=name, source=source, directory=resolve_adapter(source, options, weights=weights))
        for name, source in options.adapters
    )


def measure_adapters(model: PreTrainedModel, adapters: Sequence[Adapter], *, weights: bool) -> AdapterSizes:
    """Put `adapters` on an empty model and return what they take.

    Args:
        model: a model on the meta device. It keeps the adapters, on the meta device too.
        adapters: the adapters; the first becomes active.
        weights: also check that their files fit; else only the configs are read.

    Raises:
        AdapterError: an adapter cannot be used with this model.
    """
    own = [*model.parameters(), *model.buffers()]
    with warnings.catch_warnings():
        # also torch's warnings that weights are not copied to the meta device
        warnings.simplefilter("ignore")
        peft_model = put_adapters(model, adapters, weights=weights, device=torch.device("meta"))
    known = {id(tensor) for tensor in own}
    new = {id(tensor): tensor for tensor in (*peft_model.parameters(), *peft_model.buffers())}
    return AdapterSizes(
        num_bytes=sum(tensor.nbytes for key, tensor in new.items() if key not in known),
        virtual_tokens=max(
            getattr(config, "num_virtual_tokens", 0) or 0 if config.is_prompt_learning else 0
            for config in peft_model.peft_config.values()
        ),
        distinct=tuple(
            {_signature(config): name for name, config in peft_model.peft_config.items()}.values()
        ),
    )


def _signature(config: Any) -> str:
    settings = config.to_dict().items()
    return repr(sorted((name, sorted(v) if isinstance(v, set) else v) for name, v in settings))


def put_adapters(
    model: PreTrainedModel,
    adapters: Sequence[Adapter],
    *,
    weights: bool = True,
    device: torch.device | None = None,
) -> Any:
    """Put `adapters` on `model` as `PeftModel.from_pretrained` and `load_adapter` do; return the `PeftModel`.

    Args:
        model: the model, which peft changes in place.
        adapters: at least one; the first becomes active.
        weights: load their weights; else they are as peft initializes them.
        device: where new tensors are made; None leaves that to peft.

    Raises:
        AdapterError: an adapter cannot be used with this model.
    """
    with warnings.catch_warnings():
        # peft asks for what transformers has renamed (transformers 5.23 and 5.24)
        warnings.simplefilter("ignore", FutureWarning)
        peft_model = _put_each(model, adapters, weights, device)
    peft_model.eval()
    if not is_prompt_learning(peft_model):
        # So that transformers' own set_adapter(), disable_adapters() and delete_adapter() work.
        model._hf_peft_config_loaded = True
    return peft_model


def _put_each(
    model: PreTrainedModel, adapters: Sequence[Adapter], weights: bool, device: torch.device | None
) -> Any:
    peft = _import_peft()
    peft_model: Any = None
    for adapter in adapters:
        config = _read_config(adapter)
        with _errors_translated(adapter, model):
            with device or nullcontext():
                if peft_model is None:
                    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
                    peft_model = kind(model, config, adapter.name)
                else:
                    peft_model.add_adapter(adapter.name, config)
            if weights:
                # On the CPU first: peft would take any accelerator there is, planned for or not.
                loaded = peft_model.load_adapter(str(adapter.directory), adapter.name, torch_device="cpu")
                _check_complete(adapter, config, loaded)
    return peft_model


def is_prompt_learning(peft_model: Any) -> bool:
    """Return whether the adapters are prompts, which only `peft_model` itself applies."""
    return bool(peft_model.active_peft_config.is_prompt_learning)


def _import_peft() -> Any:
    try:
        import peft  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise AdapterError(
            f"adapters need peft, which cannot be imported ({first_line(error)}): "
            "run `pip install 'layerstream[adapters]'`"
        ) from error
    return peft


def _read_config(adapter: Adapter) -> Any:
    """Return an adapter's config for inference."""
    peft = _import_peft()
    where = f"the adapter {adapter.source!r}"
    if not (adapter.directory / ADAPTER_CONFIG).is_file():
        raise AdapterError(
            f"{where} has no {ADAPTER_CONFIG}: give the directory that peft's save_pretrained() wrote"
        )
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter.directory))
    except _PEFT_ERRORS as error:
        raise AdapterError(
            f"peft {peft.__version__} cannot use the {ADAPTER_CONFIG} of {where}: "
            f"{type(error).__name__}: {first_line(error)}; is the file complete, and peft new enough?"
        ) from error
    config.inference_mode = True
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind in _UNSUPPORTED_TYPES or getattr(config, "alora_invocation_tokens", None):
        kind = "aLoRA" if kind == "LORA" else kind
        raise AdapterError(
            f"{where} is of type {kind}, which works through peft's own model only: load without it, and use "
            "PeftModel.from_pretrained(streamed.model, ...)"
        )
    return config


@contextmanager
def _errors_translated(adapter: Adapter, model: PreTrainedModel) -> Iterator[None]:
    where = f"the adapter {adapter.source!r}"
    kind = type(model).__name__
    try:
        yield
    except AdapterError:
        raise
    except UnsupportedModelError as error:
        raise AdapterError(
            f"{where} needs weights that peft computes from the model's own, but this {kind} is streamed: "
            f"{first_line(error)}. Convert it to plain LoRA with peft's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        ) from error
    except _PEFT_ERRORS as error:
        raise AdapterError(
            f"{where} cannot be put on this {kind}: {_reason(error)}; is it complete, and for this model?"
        ) from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next(
        (line for line in lines if "size mismatch" in line), f"{type(error).__name__}: {first_line(error)}"
    )


def _check_complete(adapter: Adapter, config: Any, loaded: Any) -> None:
    """Refuse an adapter whose file lacks weights, or has some that the model has no place for."""
    # peft finds the adapter's keys by whether its name is anywhere in them
    missing = [key for key in loaded.missing_keys if adapter.name in key.split(".")]
    # and it loads prompts apart from all other weights, and reports them as unexpected
    extra = [] if config.is_prompt_learning else loaded.unexpected_keys
    for keys, problem in ((missing, "lacks"), (extra, "holds weights that the model has no place for:")):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise AdapterError(
                f"the adapter {adapter.source!r} {problem} {some}: it is for another model, or incomplete"
            )
