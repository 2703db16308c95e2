"""Options that several commands share, and what their text means.

Room: surfaces.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..default_model import default_model_path
from ..errors import PlanError
from ..spec.profiles import Machine
from ..spec.sizes import parse_size
from .printing import err_console

Model = Annotated[
    str | None,
    typer.Argument(
        help="A checkpoint's directory or Hub id; without one a small chat model is fetched.",
        show_default=False,
    ),
]
Budget = Annotated[
    str,
    typer.Option(help="Memory to keep to: auto (what is free), min (the least that works), or a size: 6GiB."),
]
Device = Annotated[
    str,
    typer.Option(help="A torch device such as cpu or cuda:0; auto takes an accelerator where there is one."),
]
Devices = Annotated[
    str,
    typer.Option(
        help="A torch device such as cpu or cuda:0, or several as cuda:0,cuda:1; auto takes an accelerator if any."
    ),
]
Dtype = Annotated[str, typer.Option(help="auto keeps the checkpoint's; else float16, bfloat16 or float32.")]
Attention = Annotated[
    str | None, typer.Option(help="sdpa, eager, flash_attention_2, ...", show_default="transformers' choice")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default=False)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that the checkpoint brings along.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
MachineText = Annotated[
    str | None,
    typer.Option(
        "--machine",
        help="Plan for another machine: a file written by 'probe --json', or text such as gpu=16GB,ram=32GB,disk=2.5GB.",
        show_default=False,
    ),
]

_MEMORY_FIELDS = ("device_memory_bytes", "host_memory_bytes", "runtime_bytes")


def model_or_default(model: str | None) -> str:
    """Return `model`, or the path of the default model, saying on a terminal that it is fetched."""
    if model is not None:
        return model
    with err_console().status(
        "getting the default model, SmolLM2-135M-Instruct; the first time takes half a minute"
    ):
        return str(default_model_path())


def named_devices(text: str) -> dict[str, Any]:
    """Return what `load` takes for one device, or for several, separated by commas, that share one reading of the weights."""
    return {"devices": [name.strip() for name in text.split(",")]} if "," in text else {"device": text}


def machine_from_text(text: str) -> Machine:
    """Return the machine that `text` names.

    Args:
        text: the path of a JSON file with `Machine`'s fields (sizes may be text such as `"16GB"`), or
            `gpu=16GB,ram=32GB,disk=2.5GB`, where `gpu` and `disk` may be left out.

    Raises:
        PlanError: when the file cannot be read or the text is neither.
    """
    return _machine_from_file(Path(text)) if "=" not in text else _machine_from_pairs(text)


def _machine_from_file(path: Path) -> Machine:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(
            f"cannot read the machine {path}: {error}; write one with 'layerstream probe --json'"
        ) from error
    known = {each.name for each in fields(Machine)}
    if not isinstance(given, dict) or not set(given) <= known:
        raise PlanError(f"{path} is no machine: it may hold the keys {', '.join(sorted(known))}")
    given = {
        key: parse_size(value) if key in _MEMORY_FIELDS and isinstance(value, str) else value
        for key, value in given.items()
    }
    missing = {"device_memory_bytes", "host_memory_bytes"} - set(given)
    if missing:
        raise PlanError(f"the machine {path} lacks {', '.join(sorted(missing))}")
    return Machine(**given)


def _machine_from_pairs(text: str) -> Machine:
    given: dict[str, int] = {}
    for pair in text.split(","):
        key, _, value = pair.partition("=")
        if key.strip() not in ("gpu", "ram", "disk"):
            raise PlanError(
                f"{key.strip()!r} in the machine {text!r} is unknown: write gpu=16GB,ram=32GB,disk=2.5GB (a second)"
            )
        given[key.strip()] = parse_size(value.removesuffix("/s"))
    if "ram" not in given:
        raise PlanError(f"the machine {text!r} lacks ram=...: host memory is needed")
    made: dict[str, Any] = {
        "host_memory_bytes": given["ram"],
        "device_memory_bytes": given.get("gpu", given["ram"]),
    }
    if "disk" in given:
        made["disk_bytes_per_s"] = float(given["disk"])
    if "gpu" in given:
        # cards with so little memory read it at 300 GB/s and more and multiply at 65 TFLOP/s (a T4)
        made |= {
            "device": "cuda:0",
            "memory_bytes_per_s": 3.0e11,
            "flops_per_s": 6.5e13,
            "runtime_bytes": 512 * 1024**2,
        }
    return Machine(name=text, measured=False, **made)
