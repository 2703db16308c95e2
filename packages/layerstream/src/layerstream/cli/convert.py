"""`layerstream convert`: pickled or GGUF weights become a safetensors checkpoint, in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..spec.options import LoadOptions
from ..spec.sizes import format_bytes, parse_size
from . import backend
from .printing import note, out_console
from .terminal import StatusLine

if TYPE_CHECKING:
    from ..spec.conversion import ConversionProgress

_BAR_CELLS = 12

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder with pytorch_model.bin files or a .gguf file, one such file, or a Hub id.",
        show_default=False,
    ),
]
Target = Annotated[
    Path, typer.Argument(metavar="TARGET", help="The new folder for the checkpoint.", show_default=False)
]
StoredDtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Store weights as float16, bfloat16 or float32. auto changes no value, and stores quantized "
        "GGUF weights as float16.",
    ),
]
MaxShardSize = Annotated[
    str, typer.Option("--max-shard-size", metavar="SIZE", help="The largest file of weights to write.")
]
GgufFile = Annotated[
    str | None,
    typer.Option("--gguf-file", metavar="NAME", help="Which GGUF file of SOURCE.", show_default=False),
]
Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the Hub.", show_default=False)
]
CacheDir = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="The directory of the Hub's cache.", show_default="huggingface_hub's"),
]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Download nothing.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code from the model's repository.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]


def convert_command(
    source: Source,
    target: Target,
    dtype: StoredDtype = "auto",
    max_shard_size: MaxShardSize = "5GB",
    gguf_file: GgufFile = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Convert .bin or GGUF weights to safetensors, piece by piece, so that `run` can stream them.

    It takes little memory, whatever the model, and runs no code from the files. Interrupted, it goes on.
    """
    options = LoadOptions(
        dtype=dtype,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    conversion = backend.prepare_conversion(
        source, target, options, gguf_file=gguf_file, max_shard_bytes=parse_size(max_shard_size)
    )
    if not quiet:
        note(f"writing {format_bytes(conversion.weight_bytes)} of weights to {target}")
        for sentence in conversion.notes:
            note(sentence)
    shown = _Shown()
    try:
        with StatusLine(shown.line, shown=not quiet):
            report = conversion.run(shown.update)
    except KeyboardInterrupt:
        if not quiet:
            note(shown.interrupted())
        raise
    if not quiet:
        out_console().print(f"{target}: {report.explain()}", markup=False)
        note(f"next: layerstream run {target}")


class _Shown:
    """The last progress, as text."""

    def __init__(self) -> None:
        self._last: ConversionProgress | None = None

    def update(self, progress: ConversionProgress) -> None:
        self._last = progress

    def line(self) -> str:
        if self._last is None:
            return "checking the files"
        filled = int(_BAR_CELLS * self._last.bytes_done / max(1, self._last.total_bytes))
        return f"{'━' * filled}{'╌' * (_BAR_CELLS - filled)} {self._last.explain()}"

    def interrupted(self) -> str:
        done, count = (self._last.files_done, self._last.num_files) if self._last else (0, 0)
        kept = f"{done} of {count} files of weights are complete and kept" if done else "no file is complete"
        return f"\ninterrupted: {kept}; the same command goes on from there, and the target is not usable yet"
