"""The child process that profiles models: lines of JSON in, lines of JSON out.

It is the only module of the app that loads torch and transformers. Each line asks one question and gets one
line, `{"error": text}` if there is no answer. It reads no weights; `default_model` downloads them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

import layerstream as ls

MAX_LAYERS = 512
MAX_WIDTH = 262_144


class QuestionError(Exception):
    """A question that cannot be answered; the message says why."""


def answer(question: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one question.

    Raises:
        QuestionError: the question is unknown or makes no sense.
        LayerstreamError: layerstream cannot answer it.
    """
    if question == "profile":
        return {"profile": profile(**arguments).to_dict()}
    if question == "default_model":
        return {"path": str(ls.default_model_path())}
    if question == "this_machine":
        return {"machine": ls.probe_machine().to_dict()}
    raise QuestionError(f"no such question: {question}")


def profile(*, model: str, known: str, config: str, dtype: str, device: str) -> ls.ModelProfile:
    """Return the profile of a model; exactly one of `model`, `known` and `config` is not empty.

    Args:
        model: a directory or Hub id.
        known: layerstream's name of a well-known model.
        config: the text of a `config.json`.
        dtype: the run dtype.
        device: the kind of device to plan for.
    """
    subject = ls.known_config(known) if known else _config(config) if config else model
    return ls.profile_model(subject, dtype=dtype, device=device)


def _config(text: str) -> PreTrainedConfig:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise QuestionError(
            f"This is not JSON: {error}. Paste the whole content of a config.json."
        ) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise QuestionError('This config has no "model_type". Paste the whole content of a config.json.')
    _check_sizes(fields)
    fields.pop("auto_map", None)  # never run code from a repository
    if fields.get("quantization_config"):
        raise QuestionError(
            "This config belongs to a quantized checkpoint. Paste the config of the original weights."
        )
    try:
        config: PreTrainedConfig = AutoConfig.for_model(**fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise QuestionError(f"transformers does not accept this config: {_one_line(error)[:200]}") from error
    config.name_or_path = str(fields.get("_name_or_path") or fields["model_type"])
    return config


def _check_sizes(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        limit = MAX_LAYERS if "layer" in name else MAX_WIDTH
        is_size = name.startswith(("num_", "n_", "hidden", "inter", "d_"))
        if isinstance(value, int) and is_size and abs(value) > limit:
            raise QuestionError(f"{name} is {value}; the limit here is {limit}.")


def main() -> None:
    """Answer the lines of standard input until it closes."""
    # libraries print to standard output, which must not get between the answers
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        output.write(json.dumps(_answer_or_error(request.pop("question"), request)) + "\n")


def _answer_or_error(question: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return answer(question, arguments)
    except (ls.LayerstreamError, QuestionError) as error:
        return {"error": _one_line(error)}
    except Exception as error:  # noqa: BLE001  a config can break any part of transformers; the next question needs us
        return {"error": f"transformers cannot build this model: {_one_line(error)[:200]}"}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
