"""How this app was started: its models, its budget and its limits, as frozen values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the requests of one visitor.

    Attributes:
        prompt_characters: length of a prompt.
        new_tokens: length of an answer in tokens.
        variants: variants in one run.
        rounds: how often one run may measure each variant.
        context_tokens: longest prompt of the long-context page.
        config_characters: length of a pasted config.
        case_s: seconds for one variant.
        run_s: seconds for one run, all variants together.
        runs_at_once: runs at the same time; further ones wait in the queue.
        waiting: places in the queue.
    """

    prompt_characters: int = 20_000
    new_tokens: int = 512
    variants: int = 10
    rounds: int = 5
    context_tokens: int = 8192
    config_characters: int = 50_000
    case_s: float = 1800.0
    run_s: float = 7200.0
    runs_at_once: int = 1
    waiting: int = 32


PUBLIC_LIMITS = Limits(
    prompt_characters=1200,
    new_tokens=64,
    variants=4,
    rounds=3,
    context_tokens=2048,
    config_characters=20_000,
    case_s=120.0,
    run_s=300.0,
    waiting=20,
)
"""The limits of a page that anyone can open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this app runs.

    Attributes:
        models: directories or Hub ids that may be run; empty means layerstream's default model, fetched on
            demand.
        budget: initial memory budget of the streamed variant: `min`, or a size.
        any_model: visitors may name any Hub id or directory. Use it on a private machine only.
        is_public: strangers can open this page, so nothing about this machine's folders is shown.
        in_process: run cases in this process, for hosts where child processes cannot use the GPU (ZeroGPU).
        limits: limits on the requests of one visitor.
    """

    models: tuple[str, ...] = ()
    budget: str = "100 MiB"
    any_model: bool = False
    is_public: bool = False
    in_process: bool = False
    limits: Limits = field(default_factory=Limits)


def settings_of_space(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a Space from its environment variables.

    `LAYERSTREAM_MODELS` (separated by commas) and `LAYERSTREAM_BUDGET` are this app's own variables. Hugging
    Face sets `SPACES_ZERO_GPU` where the GPU is lent to single calls.
    """
    models = tuple(
        name.strip() for name in environment.get("LAYERSTREAM_MODELS", "").split(",") if name.strip()
    )
    return Settings(
        models=models,
        budget=environment.get("LAYERSTREAM_BUDGET", "100 MiB"),
        is_public=True,
        in_process=is_zero_gpu(environment),
        limits=PUBLIC_LIMITS,
    )


def is_zero_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True on a ZeroGPU Space."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t")
