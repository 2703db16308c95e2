"""Find out whether a failure has nothing to do with the variant, so that every other case would fail as well.

Runs in the worker, and only after a failure: a case that succeeds pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

import layerstream as ls

from ..case import Case
from ..protocol import one_line
from ..variants.loaded import resolve_device, resolve_dtype
from ..variants.prompts import build_prompt
from ..variants.registry import VariantUnavailableError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab*")
_SHOWN_CHARACTERS = 300


class SharedFailureError(Exception):
    """What every variant needs is missing or broken; the message says what."""


@contextmanager
def shared_failures_named(case: Case) -> Iterator[None]:
    """Turn a failure inside into one that names its cause, if what every variant needs cannot be had.

    Raises:
        SharedFailureError: the model's files, the prompt, the dtype or the device are to blame. Any other
            failure is raised unchanged.
    """
    try:
        yield
    except (VariantUnavailableError, ModuleNotFoundError):
        raise
    except Exception as error:
        if reason := shared_failure(case):
            raise SharedFailureError(reason) from error
        raise


def shared_failure(case: Case) -> str:
    """Return why every case with this model, prompt, dtype and device fails; empty if none of them does."""
    checks = (
        ("the settings cannot be used", _use_settings),
        (f"the config of {case.model} cannot be read", _read_config),
        (f"the tokenizer of {case.model} cannot be read", _read_tokenizer),
        (f"the weights of {case.model} cannot be read", _read_headers),
    )
    for what, check in checks:
        try:
            check(case)
        except SharedFailureError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  any failure here is the answer
            return f"{what}: {one_line(str(error) or type(error).__name__, limit=_SHOWN_CHARACTERS)}"
    return ""


def _use_settings(case: Case) -> None:
    resolve_dtype(case)
    torch.empty(0, device=resolve_device(case))


def _read_config(case: Case) -> None:
    AutoConfig.from_pretrained(case.model)


def _read_tokenizer(case: Case) -> None:
    folder = Path(case.model)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        raise SharedFailureError(
            f"{case.model} holds no tokenizer, such as a file tokenizer.json: copy the tokenizer's files "
            "there from where the model came from"
        )
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    try:
        build_prompt(tokenizer, case.with_changes(prompt_tokens=0))
    except Exception as error:
        raise SharedFailureError(f"the prompt cannot be used: {one_line(str(error))}") from error


def _read_headers(case: Case) -> None:
    # every case reads them for its facts, whatever holds its weights
    ls.profile_model(case.model, dtype=case.dtype)
