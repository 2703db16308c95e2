"""How this app was started: which models, which budget, which limits. Frozen values, read once.

It knows the command line's and a Space's requests; it deliberately knows nothing of pages, jobs or models' contents.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one visitor may ask for.

    Attributes:
        prompt_characters: length of a prompt.
        new_tokens: tokens of an answer.
        variants: columns of one run.
        context_tokens: the longest prompt of the long-context page.
        config_characters: length of a pasted config.
        case_s: seconds of one variant.
        run_s: seconds of one run, all variants together.
        runs_at_once: runs at the same time; others wait in the queue.
        waiting: places in the queue.
    """

    prompt_characters: int = 20_000
    new_tokens: int = 512
    variants: int = 10
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
    context_tokens=2048,
    config_characters=20_000,
    case_s=120.0,
    run_s=300.0,
    waiting=20,
)
"""The limits of a page that anybody can open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this app runs.

    Attributes:
        models: directories or Hub ids that may be run; empty means layerstream's default model, which is fetched on demand.
        budget: the streamed column's memory at first: `min`, or a size.
        any_model: visitors may name any Hub id or directory, to run and to plan. For one's own machine only.
        is_public: others can open this page: tight limits, and nothing of this machine's folders is told.
        in_process: run cases in this process, for hosts that allow no children with their GPU (ZeroGPU).
        limits: what one visitor may ask for.
    """

    models: tuple[str, ...] = ()
    budget: str = "100 MiB"
    any_model: bool = False
    is_public: bool = False
    in_process: bool = False
    limits: Limits = field(default_factory=Limits)


def settings_of_space(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a Space, as its environment variables tell them.

    `LAYERSTREAM_MODELS` (separated by commas) and `LAYERSTREAM_BUDGET` are the Space's own variables; `SPACES_ZERO_GPU` is set by
    Hugging Face where the GPU is lent to single calls.
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
    """Return whether this is a ZeroGPU Space."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t")
