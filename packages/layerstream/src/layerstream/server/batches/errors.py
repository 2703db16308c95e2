"""What goes wrong with files and batches: a client's mistake, or a folder that cannot be used."""

from __future__ import annotations

from ...errors import LayerstreamError


class BatchApiError(LayerstreamError):
    """A request about files or batches is refused; the app turns it into OpenAI's error object.

    Attributes:
        status: the HTTP status.
        message: what was asked, what was found, what to do; nothing about this machine.
        param: the parameter it is about; None if it is about none.
        code: a word that a program can compare; None if there is none.
    """

    def __init__(
        self, message: str, *, status: int, param: str | None = None, code: str | None = None
    ) -> None:
        """Store the message and the fields."""
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code


class BatchStoreError(LayerstreamError, OSError):
    """The folder for files and batches cannot be used: it is in use, unwritable, or from another version."""
