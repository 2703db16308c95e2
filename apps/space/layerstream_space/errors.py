"""What a visitor did or met that has no result: one line that says what to do. Its text is shown as it is."""

from __future__ import annotations


class VisitorError(Exception):
    """A request that cannot be fulfilled; the message is for the visitor, without paths and without a traceback."""
