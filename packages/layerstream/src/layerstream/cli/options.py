"""Options about the model, which most commands share, and how they become values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PlanError
from ..spec.options import DEFAULT_ADAPTER, LoadOptions
from . import backend, parts
from .interrupts import kept_if_interrupted
from .printing import working

Model = Annotated[
    str | None,
    typer.Argument(
        help="A checkpoint's directory, its id on the Hugging Face Hub, or its URL. Without one, a small "
        "chat model is downloaded.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", hidden=True, help="The model, as with 'batch' and 'score'."),
]
_PATHS = ("/", "./", "../", "~")
"""How a name begins that is no Hub id."""

_LOADING = "Loading the model"

Budget = Annotated[
    str,
    typer.Option(
        help="Memory limit: auto (what is free), min (the least that works), or a size such as 6GiB.",
        metavar="SIZE",
        rich_help_panel=_LOADING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="A torch device such as cpu or cuda:0. auto is the accelerator if there is one.",
        metavar="NAME",
        rich_help_panel=_LOADING,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        help="A torch device such as cpu or cuda:0, or several, such as cuda:0,cuda:1. "
        "auto is the accelerator if there is one.",
        metavar="NAME",
        rich_help_panel=_LOADING,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float16, bfloat16 or float32. auto keeps the checkpoint's dtype.",
        metavar="NAME",
        rich_help_panel=_LOADING,
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="Attention implementation: sdpa, eager, flash_attention_2, a kernel's Hub id, ...",
        metavar="NAME",
        show_default="transformers' choice",
        rich_help_panel=_LOADING,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit on the Hub.",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_LOADING,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code from the checkpoint's repository.",
        rich_help_panel=_LOADING,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="The directory of the Hub's cache.",
        metavar="PATH",
        show_default="huggingface_hub's",
        rich_help_panel=_LOADING,
    ),
]
LocalFilesOnly = Annotated[
    bool,
    typer.Option("--local-files-only", help="Download nothing.", rich_help_panel=_LOADING),
]
Subfolder = Annotated[
    str,
    typer.Option(
        help="The folder of the checkpoint that holds config, weights and tokenizer.",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_LOADING,
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        help="Which weights: fp16 reads model.fp16.safetensors.",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_LOADING,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="An adapter's directory or Hub id. Repeat it for several, each with a name; "
        "the first is active.",
        metavar="[NAME=]PATH",
        show_default=False,
        rich_help_panel=_LOADING,
    ),
]
AllowSlicedHead = Annotated[
    bool,
    typer.Option(
        "--allow-sliced-head",
        help="On accelerators, compute a large head in slices: less memory, but not bit-exact.",
        rich_help_panel=_LOADING,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help="Guess tokens ahead and check several per sweep; the text stays the same: int8, nf4, lookup, "
        "auto, or a smaller model.",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_LOADING,
    ),
]
PrefixCache = Annotated[
    str,
    typer.Option(
        help="Memory of a server for the keys and values of earlier conversations, such as 1GiB, so that "
        "the next turn does not compute them again (its answer may differ in the last bit). It is host "
        "memory; on a CPU, part of --budget. 0 keeps none.",
        metavar="SIZE",
        rich_help_panel=_LOADING,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
MachineText = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="TEXT",
        help="Plan for another machine: a file from 'probe --json', or text "
        "such as gpu=16GB,ram=32GB,disk=2.5GB,pcie=12GB (rates per second).",
        show_default=False,
    ),
]


def takes_load_options(
    *, several_devices: bool = False, draft: bool = False, prefix_cache: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of `load`, and passes them on as one value.

    The options take the place of the command's parameter `options: LoadOptions`. There is none for an access
    token, which every user of the machine could read in the list of processes: it comes from `HF_TOKEN` or
    `hf auth login`. Where the model is an argument, `--model` names it too, as where the arguments are files.

    Args:
        several_devices: `--device` may name several devices, separated by commas.
        draft: there is `--draft`.
        prefix_cache: there is `--prefix-cache`.
    """
    shared = {
        "budget": (Budget, "auto"),
        "device": (Devices if several_devices else Device, "auto"),
        "dtype": (Dtype, "auto"),
        "attn_implementation": (Attention, None),
        "revision": (Revision, None),
        "trust_remote_code": (TrustRemoteCode, False),
        "cache_dir": (CacheDir, None),
        "local_files_only": (LocalFilesOnly, False),
        "subfolder": (Subfolder, ""),
        "variant": (Variant, None),
        "adapter": (Adapters, None),
        "allow_sliced_head": (AllowSlicedHead, False),
        **({"draft": (Draft, None)} if draft else {}),
        **({"prefix_cache": (PrefixCache, "0")} if prefix_cache else {}),
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            each
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            for each in _parameters_for(parameter, shared)
        ]

        @wraps(command)
        def with_options(**arguments: Any) -> None:
            arguments["model"] = _one_model(arguments["model"], arguments.pop("model_option", None))
            given = {name: arguments.pop(name) for name in shared}
            given["adapter"] = adapter_mapping(given["adapter"])
            if several_devices:
                given |= _split_devices(given["device"])
            load_options = LoadOptions(**given)
            with kept_if_interrupted(partial(_kept_of_model, arguments["model"])):
                command(**arguments, options=load_options)

        # typer reads a command's options from these two
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return decorate


def _parameters_for(parameter: Parameter, shared: Mapping[str, tuple[Any, object]]) -> Iterator[Parameter]:
    """Yield what a command has in place of `parameter`: `shared` for `options`, else itself.

    Args:
        parameter: one of the command's own.
        shared: annotation and default by name.
    """
    added = shared
    if parameter.name != "options":
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)
        added = {"model_option": (ModelOption, None)} if parameter.annotation == Model else {}
    for name, (annotation, default) in added.items():
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _one_model(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise PlanError(f"two models are given, {argument} and --model {option}: give one")
    return option if argument is None else argument


def _kept_of_model(model: str | None) -> str:
    if model is not None and Path(model).expanduser().is_dir():
        return "nothing was saved"
    return "nothing was saved, but files of the model that were downloaded whole stay in the cache"


def _split_devices(text: str) -> dict[str, Any]:
    if "," not in text:
        return {"device": text}
    return {"device": "auto", "devices": tuple(name.strip() for name in text.split(","))}


def adapter_mapping(texts: list[str] | None) -> dict[str, str] | None:
    """Return the adapters that `--adapter` names.

    Raises:
        PlanError: two adapters have the same name, or none.
    """
    adapters: dict[str, str] = {}
    for text in texts or ():
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_dir():
            name, path = DEFAULT_ADAPTER, text
        if name in adapters:
            raise PlanError(f"two adapters are called {name!r}: name each, as in --adapter NAME=PATH")
        adapters[name] = path
    return adapters or None


def model_or_default(model: str | None, options: LoadOptions) -> str:
    """Return `model`, or the path of the default model, with a status on the terminal while it is fetched.

    Raises:
        CheckpointError: a local model cannot be loaded; nothing slow was imported to find that out.
    """
    if model is not None:
        if model.startswith(_PATHS) or Path(model).is_dir():
            parts.check_local_model(model, options)
        return model
    name = "SmolLM2-135M-Instruct"
    with working(f"looking for the default model, {name}") as say:
        return str(
            backend.default_model_path(
                on_fetch=lambda: say(f"getting the default model, {name}; this takes half a minute, once")
            )
        )
