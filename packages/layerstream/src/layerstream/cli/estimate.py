"""`layerstream estimate`: the size of a model's weights at every precision, computed from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..planning.estimate import bytes_by_precision
from ..spec.known_models import KNOWN_MODELS
from ..spec.sizes import parse_size
from . import backend, lazy_rich
from .options import AsJson
from .printing import out_console, print_json, working

_COLUMNS = {
    "float32": "fp32",
    "float16": "16-bit",
    "8-bit": "8-bit",
    "4-bit": "4-bit",
    "3-bit": "3-bit",
    "2-bit": "2-bit",
}

Models = Annotated[
    list[str] | None,
    typer.Argument(
        help="Directories, Hub ids or config.json files, or known models, which are the default: "
        f"{', '.join(KNOWN_MODELS)}.",
        show_default=False,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Mark what fits into this much memory, such as 16GB.", show_default=False
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The size of one model's weights.

    Attributes:
        name: the model's name.
        num_parameters: elements, ties counted once.
        weight_bytes: bytes by precision, weights alone.
        fits: by precision, whether the weights fit into the given memory; empty if none was given.
    """

    name: str
    num_parameters: int
    weight_bytes: Mapping[str, int]
    fits: Mapping[str, bool]


def estimate_command(models: Models = None, memory: Memory = None, as_json: AsJson = False) -> None:
    """Show the size of a model's weights at every precision. 'plan' adds the memory beside the weights."""
    memory_bytes = parse_size(memory) if memory is not None else None
    with working("reading configs"):
        estimates = [_estimate(name, memory_bytes) for name in models or KNOWN_MODELS]
    if as_json:
        print_json([asdict(estimate) for estimate in estimates])
    else:
        out_console().print(estimate_table(estimates, memory))


def _estimate(name: str, memory_bytes: int | None) -> Estimate:
    title, num_parameters = _parameters(name)
    sizes = {key: size for key, size in bytes_by_precision(num_parameters).items() if key in _COLUMNS}
    fits = {} if memory_bytes is None else {key: size <= memory_bytes for key, size in sizes.items()}
    return Estimate(name=title, num_parameters=num_parameters, weight_bytes=sizes, fits=fits)


def _parameters(name: str) -> tuple[str, int]:
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name].title, KNOWN_MODELS[name].num_parameters
    if name.endswith(".json"):
        return name, backend.count_parameters(backend.config_from_file(Path(name)))
    return name, backend.profile_model(name).num_parameters


def estimate_table(estimates: list[Estimate], memory: str | None) -> lazy_rich.Table:
    """Return a table in decimal gigabytes, as on model cards, with a tick where `memory` is enough."""
    caption = "decimal GB, weights alone" + (f"; ✓ fits into {memory}" if memory is not None else "")
    table = lazy_rich.Table(
        box=None, pad_edge=False, caption=caption, caption_justify="left", header_style="bold"
    )
    longest_name = max(len(estimate.name) for estimate in estimates)
    table.add_column("model", overflow="fold", min_width=min(32, longest_name))
    table.add_column("parameters", justify="right", no_wrap=True)
    for title in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for estimate in estimates:
        cells = [_cell(estimate, precision) for precision in _COLUMNS]
        table.add_row(estimate.name, f"{estimate.num_parameters / 1e9:.2f} B", *cells)
    return table


def _cell(estimate: Estimate, precision: str) -> lazy_rich.Text:
    gigabytes = estimate.weight_bytes[precision] / 1e9
    text = f"{gigabytes:.0f}" if gigabytes >= 100 else f"{gigabytes:.3g}"
    if not estimate.fits:
        return lazy_rich.Text(text)
    return (
        lazy_rich.Text(f"{text} ✓", style="green")
        if estimate.fits[precision]
        else lazy_rich.Text(f"{text}  ", style="dim")
    )
