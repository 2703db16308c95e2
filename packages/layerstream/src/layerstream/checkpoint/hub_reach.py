"""Find out whether the Hub can be asked at all, once and quickly.

Room: bytes. huggingface_hub's own requests have no time limit of ours: some are repeated for half a minute,
and one to a network that swallows packets never ends. So one short request comes first, and its outcome
counts for a minute.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from ..errors import first_line

# The HTTP library differs between versions of huggingface_hub; its errors' common base is the first base of
# this one.
HttpError: type[Exception] = HfHubHTTPError.__bases__[0]

_TIMEOUT_S = 5.0
_COUNTS_FOR_S = 60.0


@dataclass(slots=True)
class _Outcome:
    """What the last request found, and until when that counts."""

    problem: str | None = None
    until_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


_last = _Outcome()


def offline_reason(*, local_files_only: bool = False) -> str | None:
    """Return why nothing can be downloaded, as a clause for a message; None if the Hub answers."""
    if local_files_only:
        return "local_files_only forbids a download"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "offline mode (HF_HUB_OFFLINE) forbids a download"
    with _last.lock:
        if time.monotonic() >= _last.until_s:
            _last.problem = _ask_hub()
            _last.until_s = time.monotonic() + _COUNTS_FOR_S
        return _last.problem


def _ask_hub() -> str | None:
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        # Any answer will do: whether it knows the model is the next question.
        huggingface_hub.get_session().head(endpoint, timeout=_TIMEOUT_S)
    except (HttpError, OSError) as error:
        return f"the Hub at {endpoint} cannot be reached ({first_line(error)})"
    return None
