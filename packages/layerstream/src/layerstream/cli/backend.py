"""The slow-to-import parts of the library that the commands use, imported on first use.

Commands write `backend.load_with(...)`. So `--help`, `--version` and a mistyped option load neither torch nor
transformers. The first use also silences what these libraries would print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from platformdirs import user_data_path
    from torch import manual_seed

    from ..architecture.configs import config_from_file, count_parameters, known_config
    from ..checkpoint.fingerprint import digest_file, fingerprint_adapter, fingerprint_model
    from ..conversion.convert import prepare_conversion
    from ..default_model import default_model_path
    from ..engine.inspect import inspect_any
    from ..engine.tokenizer import load_tokenizer
    from ..engine.verification import refuse_difference
    from ..loading import profile_model
    from ..machine import probe_machine
    from ..opening import load_with, plan_with
    from ..planning.simulate import simulate_spans
    from ..server.batches.settings import BatchSettings
    from ..server.run import ServingOptions
    from ..server.settings import ServerSettings
    from ..server.start import Serving, serve_model
    from ..simulation import plan_with_own_draft
    from ..uses.batching.chat import check_messages, encode_messages
    from ..uses.batching.generate import generate_many
    from ..uses.batching.progress import BatchProgress
    from ..uses.scoring.requests import ScoringTokenizer
    from ..uses.scoring.score import score
    from ..uses.scoring.score_fields import score_fields
    from .chat_answer import answer_in_chat
    from .quiet import silence_libraries
    from .quiet_hub import copy_from_url, download_weights, silence_hub
    from .session import encode_prompt, generate_answer, load_text_parts

__all__ = [
    "BatchProgress",
    "BatchSettings",
    "ScoringTokenizer",
    "ServerSettings",
    "Serving",
    "ServingOptions",
    "answer_in_chat",
    "check_messages",
    "config_from_file",
    "copy_from_url",
    "count_parameters",
    "default_model_path",
    "digest_file",
    "download_weights",
    "encode_messages",
    "encode_prompt",
    "fingerprint_adapter",
    "fingerprint_model",
    "generate_answer",
    "generate_many",
    "inspect_any",
    "known_config",
    "load_text_parts",
    "load_tokenizer",
    "load_with",
    "manual_seed",
    "plan_with",
    "plan_with_own_draft",
    "prepare_conversion",
    "probe_machine",
    "profile_model",
    "refuse_difference",
    "score",
    "score_fields",
    "serve_model",
    "silence_hub",
    "silence_libraries",
    "simulate_spans",
    "user_data_path",
]

_import, __dir__ = lazy_exports(
    __name__,
    {
        "layerstream.architecture.configs": ("config_from_file", "count_parameters", "known_config"),
        "layerstream.checkpoint.fingerprint": ("digest_file", "fingerprint_adapter", "fingerprint_model"),
        "layerstream.cli.chat_answer": ("answer_in_chat",),
        "layerstream.cli.quiet": ("silence_libraries",),
        "layerstream.cli.quiet_hub": ("copy_from_url", "download_weights", "silence_hub"),
        "layerstream.cli.session": ("encode_prompt", "generate_answer", "load_text_parts"),
        "layerstream.conversion.convert": ("prepare_conversion",),
        "layerstream.default_model": ("default_model_path",),
        "layerstream.engine.inspect": ("inspect_any",),
        "layerstream.engine.tokenizer": ("load_tokenizer",),
        "layerstream.engine.verification": ("refuse_difference",),
        "layerstream.loading": ("profile_model",),
        "layerstream.machine": ("probe_machine",),
        "layerstream.opening": ("load_with", "plan_with"),
        "layerstream.planning.simulate": ("simulate_spans",),
        "layerstream.server.batches.settings": ("BatchSettings",),
        "layerstream.server.run": ("ServingOptions",),
        "layerstream.server.settings": ("ServerSettings",),
        "layerstream.server.start": ("Serving", "serve_model"),
        "layerstream.simulation": ("plan_with_own_draft",),
        "layerstream.uses.batching.chat": ("check_messages", "encode_messages"),
        "layerstream.uses.batching.generate": ("generate_many",),
        "layerstream.uses.batching.progress": ("BatchProgress",),
        "layerstream.uses.scoring.requests": ("ScoringTokenizer",),
        "layerstream.uses.scoring.score": ("score",),
        "layerstream.uses.scoring.score_fields": ("score_fields",),
        "platformdirs": ("user_data_path",),
        "torch": ("manual_seed",),
    },
)

# A job that is refused, or has nothing to do, loads no model library.
_WITHOUT_TRANSFORMERS = ("copy_from_url", "digest_file", "fingerprint_adapter", "fingerprint_model")


def __getattr__(name: str) -> object:
    value = _import(name)
    _import("silence_hub" if name in _WITHOUT_TRANSFORMERS else "silence_libraries")()  # type: ignore[operator]
    return value
