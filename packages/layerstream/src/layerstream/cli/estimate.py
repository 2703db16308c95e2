"""`layerstream estimate`: from parameters to bytes, for well-known models and for any config. No weights are needed.

Room: surfaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .. import profile_model
from ..architecture.known_models import KNOWN_MODELS, config_from_file, count_parameters, known_config
from ..planning.estimate import bytes_by_precision
from ..spec.sizes import parse_size
from .options import AsJson
from .printing import out_console, print_json

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
        help=f"Directories, Hub ids, config.json files, or any of {', '.join(KNOWN_MODELS)}; without one these.",
        show_default=False,
    ),
]
Memory = Annotated[
    str | None, typer.Option(help="Mark what fits into this much memory, such as 16GB.", show_default=False)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The weights of one model.

    Attributes:
        name: what it is called.
        num_parameters: elements, ties counted once.
        weight_bytes: bytes by precision, weights alone.
        fits: by precision, whether they fit into the memory that was given; empty when none was.
    """

    name: str
    num_parameters: int
    weight_bytes: Mapping[str, int]
    fits: Mapping[str, bool]


def estimate_command(models: Models = None, memory: Memory = None, as_json: AsJson = False) -> None:
    """Show the bytes of the weights at every precision, computed from configs. What comes on top is counted by 'plan'."""
    memory_bytes = parse_size(memory) if memory is not None else None
    estimates = [_estimate(name, memory_bytes) for name in models or KNOWN_MODELS]
    if as_json:
        print_json(estimates)
    else:
        out_console().print(estimate_table(estimates, memory))


def _estimate(name: str, memory_bytes: int | None) -> Estimate:
    title, num_parameters = _parameters(name)
    sizes = {key: size for key, size in bytes_by_precision(num_parameters).items() if key in _COLUMNS}
    fits = {} if memory_bytes is None else {key: size <= memory_bytes for key, size in sizes.items()}
    return Estimate(name=title, num_parameters=num_parameters, weight_bytes=sizes, fits=fits)


def _parameters(name: str) -> tuple[str, int]:
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name].title, count_parameters(known_config(name))
    if name.endswith(".json"):
        return name, count_parameters(config_from_file(Path(name)))
    return name, profile_model(name).num_parameters


def estimate_table(estimates: list[Estimate], memory: str | None) -> Table:
    """Return the estimates as a table in decimal gigabytes, as model cards have them; what fits into `memory` is ticked."""
    caption = "decimal GB, weights alone" + (f"; ✓ fits into {memory}" if memory is not None else "")
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left", header_style="bold")
    table.add_column("model", overflow="fold", min_width=min(32, max(len(each.name) for each in estimates)))
    table.add_column("parameters", justify="right", no_wrap=True)
    for title in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for each in estimates:
        cells = [_cell(each, precision) for precision in _COLUMNS]
        table.add_row(each.name, f"{each.num_parameters / 1e9:.2f} B", *cells)
    return table


def _cell(estimate: Estimate, precision: str) -> Text:
    gigabytes = estimate.weight_bytes[precision] / 1e9
    text = f"{gigabytes:.0f}" if gigabytes >= 100 else f"{gigabytes:.3g}"
    if not estimate.fits:
        return Text(text)
    return Text(f"{text} ✓", style="green") if estimate.fits[precision] else Text(f"{text}  ", style="dim")
