"""Receives a file that a client uploads: its bytes go to disk as they come, never all into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .errors import BatchApiError
from .files import FileTable
from .folder import NewFile
from .settings import BatchSettings
from .threads import in_thread
from .values import INPUT_PURPOSE, StoredFile

_MOST_PARTS = 16
_MOST_FIELD_BYTES = 1024
_MOST_NAME_CHARS = 255
_MOST_OVERHEAD_BYTES = 64 * 1024


async def receive_upload(request: Request, files: FileTable, settings: BatchSettings) -> StoredFile:
    """Read the form of an upload and keep its file; when this returns, it is on disk.

    Raises:
        BatchApiError: it is no such form, its purpose is not `"batch"`, or exceeds a limit; nothing is kept.
    """
    _check_announced_size(request, settings)
    await in_thread(files.refuse_if_full)
    with files.new_file() as new:
        form = _Form(request.headers.get("content-type", ""), new, settings)
        async for chunk in request.stream():
            form.read(chunk)
            pieces = form.take_pieces()
            if pieces:
                await in_thread(new.write, pieces)
        name = form.check_end()
        return await in_thread(files.keep_upload, new, name)


class _Form:
    """The parts of a form, piece by piece: fields are collected, and the file's bytes are handed on."""

    def __init__(self, content_type: str, new: NewFile, settings: BatchSettings) -> None:
        """Prepare for a form with this content type."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _bad_form("send multipart/form-data with the fields file and purpose")
        self._new = new
        self._settings = settings
        self._fields: dict[str, bytes] = {}
        self._file_name: str | None = None
        self._num_parts = 0
        self._is_over = False
        self._header = [b"", b""]
        self._disposition = b""
        self._field = ""
        self._is_file = False
        self._pieces: list[bytes] = []
        self._num_piece_bytes = 0
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self._add(data[start:end]),
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], cast(Any, callbacks))
        except FormParserError as error:
            raise _bad_form("its boundary is too long") from error

    def read(self, chunk: bytes) -> None:
        """Read the next bytes of the request."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _bad_form("it is damaged") from error

    def take_pieces(self) -> bytes:
        """Return the file's bytes that have come since the last call."""
        pieces, self._pieces, self._num_piece_bytes = b"".join(self._pieces), [], 0
        return pieces

    def check_end(self) -> str:
        """Check that all fields are there, and return the file's name as it is shown."""
        if not self._is_over:
            raise _bad_form("it ends too early")
        if self._file_name is None:
            raise BatchApiError("the form has no file", status=400, param="file")
        purpose = self._fields.pop("purpose", None)
        if purpose is None:
            raise BatchApiError("the form has no purpose; give 'batch'", status=400, param="purpose")
        if purpose != INPUT_PURPOSE.encode():
            raise BatchApiError(
                f"purpose must be {INPUT_PURPOSE!r}: this server keeps files for batches only",
                status=400,
                param="purpose",
            )
        if self._fields:
            name = ascii(next(iter(self._fields)))
            raise BatchApiError(f"this server does not have the parameter {name}", status=400)
        return self._file_name

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MOST_PARTS:
            raise _bad_form(f"it has more than {_MOST_PARTS} parts")
        self._disposition = b""

    def _add_header(self, place: int, piece: bytes) -> None:
        self._header[place] += piece

    def _end_header(self) -> None:
        name, value = self._header
        self._header = [b"", b""]
        if name.lower() == b"content-disposition":
            self._disposition = value

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._field == "file"
        if self._field in self._fields or (self._is_file and self._file_name is not None):
            raise _bad_form(f"it has the part {self._field!a} twice")
        if self._is_file:
            self._file_name = _shown_name(options.get(b"filename", b""))
        else:
            self._fields[self._field] = b""

    def _add(self, piece: bytes) -> None:
        if not self._is_file:
            self._fields[self._field] += piece
            if len(self._fields[self._field]) > _MOST_FIELD_BYTES:
                raise _bad_form(f"the part {self._field!a} is too long")
            return
        self._pieces.append(piece)
        self._num_piece_bytes += len(piece)
        if self._new.num_bytes + self._num_piece_bytes > self._settings.most_file_bytes:
            raise _too_large(self._settings)

    def _end(self) -> None:
        self._is_over = True


def _check_announced_size(request: Request, settings: BatchSettings) -> None:
    """Refuse an upload that says itself that it is too large, before it is sent."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > settings.most_file_bytes + _MOST_OVERHEAD_BYTES:
        raise _too_large(settings)


def _shown_name(raw: bytes) -> str:
    """Return the last part of a file's name without what could not be shown; it never becomes a path."""
    name = raw.decode(errors="replace").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(char for char in name if char.isprintable())[:_MOST_NAME_CHARS] or "upload"


def _bad_form(reason: str) -> BatchApiError:
    return BatchApiError(f"the form of the upload cannot be read: {reason}", status=400)


def _too_large(settings: BatchSettings) -> BatchApiError:
    return BatchApiError(
        f"a file can have {settings.most_file_bytes:,} bytes at most; split it",
        status=413,
        param="file",
        code="file_too_large",
    )
