"""The error whose text is shown to visitors."""

from __future__ import annotations


class VisitorError(Exception):
    """A request that cannot be met.

    The message is for the visitor: what is wrong and what to do, without paths or a traceback.
    """
