"""Keep `torch.compile` out of functions that wait for weights.

A graph would hold on to weights that have moved, and the compiler cannot follow threads. What such a function
calls is not compiled either. `torch.compiler.disable` does the same, but every call of every hook would pay
for its wrapper. Room: streaming.

Source: `skip_code` and `DisableContext` in torch/_dynamo (torch 2.11 to 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
    set_eval_frame,
)

EAGER_WARNING = (
    "a streamed model is not compiled and runs eagerly: its weights come and go, and a compiled graph would "
    "hold on to old ones"
)


def run_eagerly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark `function`, and every function of the same code, as one that the compiler leaves alone."""
    _never_compile(function, callees=_FrameAction.SKIP)
    return function


def warn_when_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as one that runs eagerly, with a warning where it was called from compiled code."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        compiler = set_eval_frame(None)
        try:
            if compiler:
                warnings.warn(EAGER_WARNING, UserWarning, stacklevel=2)
            return function(*args, **kwargs)
        finally:
            set_eval_frame(compiler)

    _never_compile(run, callees=_FrameAction.DEFAULT)
    return run


def _never_compile(function: Callable[..., Any], *, callees: _FrameAction) -> None:
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, callees))
    # Without this the compiler would inline the function into its caller.
    function.__dict__["_torchdynamo_disable"] = True
    function.__dict__["_torchdynamo_disable_msg"] = EAGER_WARNING
