"""A checkpoint's folder on a web server, read with Python's own HTTP client.

Room: bytes. A web server lists nothing, so a checkpoint's usual names are tried one by one. Servers that
ignore ranges are read from the start, and what is there already is passed over.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from ..errors import CheckpointNotFoundError, FetchError, first_line
from .index import CONFIG_NAME, index_name, single_name
from .remote import READ_BYTES, RemoteChangedError, RemoteFile, read_range

TIMEOUT_S = 60.0
"""How long a server may say nothing."""

_NAMES = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_ABSENT = (404, 410)
_REFUSED = (401, 403)
_NO_HEAD = (405, 501)


class HttpFolder:
    """A folder at an http:// or https:// URL.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: str) -> None:
        """Store the URL; this sends no request."""
        self.url = url

    def list_files(self, variant: str | None) -> dict[str, RemoteFile]:
        """Return the files with a checkpoint's usual names, and those that its index names.

        Raises:
            CheckpointNotFoundError: there is no config, or access is refused.
            FetchError: the server cannot be reached or fails.
        """
        config = self.look(CONFIG_NAME)
        if config is None:
            raise CheckpointNotFoundError(
                f"{self.url} has no {CONFIG_NAME}; a web server lists no files, so give the URL of the "
                "folder that holds it and model.safetensors or its index"
            )
        found = {CONFIG_NAME: config}
        for name in (*_NAMES[1:], single_name(variant), index_name(variant)):
            file = self._look_if_allowed(name)
            if file is not None:
                found[name] = file
        if single_name(variant) not in found and index_name(variant) in found:
            for name in self._shards(found[index_name(variant)]):
                file = self.look(name)
                if file is not None:
                    found[name] = file
        return found

    def look(self, name: str) -> RemoteFile | None:
        """Return what the server says of a file now; None if it is not there.

        Raises:
            CheckpointNotFoundError: access is refused.
            FetchError: the server cannot be reached or fails.
        """
        try:
            with self._open(name, method="HEAD") as answer:
                length = answer.headers.get("Content-Length")
                return RemoteFile(name=name, size=_as_size(length), tag=_tag_of(answer.headers))
        except urllib.error.HTTPError as error:
            if error.code in _ABSENT:
                return None
            if error.code in _NO_HEAD:
                return self._look_by_reading(name)
            raise self._refused(name, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(name, error) from error

    def stream(self, file: RemoteFile, start: int, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end`, or to the file's end, in pieces.

        Raises:
            CheckpointNotFoundError: access is refused.
            FetchError: the connection fails, or the file is another one by now.
        """
        last = "" if end is None else end - 1
        try:
            with self._open(file.name, range_=f"bytes={start}-{last}") as answer:
                tag = _tag_of(answer.headers)
                if tag and file.tag and tag != file.tag:
                    raise RemoteChangedError(
                        f"{self.url}/{file.name} changed while it was copied; start again for the new one"
                    )
                skip = 0 if answer.status == http.client.PARTIAL_CONTENT else start
                left = None if end is None else end - start
                while left is None or left > 0:
                    # What has come, not a whole piece: somebody may be waiting for it.
                    data = answer.read1(READ_BYTES)
                    if not data:
                        return
                    data, skip = data[skip:], max(0, skip - len(data))
                    if left is not None:
                        data = data[:left]
                        left -= len(data)
                    if data:
                        yield data
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            raise self._refused(file.name, error) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, FetchError):
                raise
            raise self._failed(file.name, error) from error

    def _look_if_allowed(self, name: str) -> RemoteFile | None:
        """Return what the server says of a file that need not be there; some refuse what they do not have."""
        try:
            return self.look(name)
        except CheckpointNotFoundError:
            return None

    def _look_by_reading(self, name: str) -> RemoteFile | None:
        try:
            with self._open(name, range_="bytes=0-0") as answer:
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if answer.status != http.client.PARTIAL_CONTENT:
                    total = answer.headers.get("Content-Length")
                return RemoteFile(name=name, size=_as_size(total), tag=_tag_of(answer.headers))
        except urllib.error.HTTPError as error:
            if error.code in _ABSENT:
                return None
            raise self._refused(name, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(name, error) from error

    def _shards(self, index: RemoteFile) -> list[str]:
        # What is wrong with an index is reported where it is read from the copy.
        try:
            names = json.loads(read_range(self, index, 0, index.size or 1 << 30))["weight_map"].values()
            return sorted({name for name in names if isinstance(name, str) and "/" not in name})
        except (ValueError, KeyError, TypeError, AttributeError):
            return []

    def _open(self, name: str, *, method: str = "GET", range_: str = "") -> Any:
        headers = {"User-Agent": "layerstream", "Accept-Encoding": "identity"}
        if range_:
            headers["Range"] = range_
        request = urllib.request.Request(f"{self.url}/{quote(name)}", headers=headers, method=method)
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)

    def _refused(self, name: str, error: urllib.error.HTTPError) -> CheckpointNotFoundError | FetchError:
        where = f"{self.url}/{name}"
        error.close()
        if error.code in _REFUSED:
            return CheckpointNotFoundError(
                f"the server refuses access to {where} ({error.code} {error.reason}); ask for access, or "
                "copy the folder here and give its path"
            )
        if error.code in _ABSENT:
            return CheckpointNotFoundError(f"{where} is not there any more; start again")
        return FetchError(f"the server answered {error.code} {error.reason} for {where}; try again later")

    def _failed(self, name: str, error: Exception) -> FetchError:
        return FetchError(
            f"{self.url}/{name} cannot be read: {first_line(error)}; check the URL and the network"
        )


def _as_size(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _tag_of(headers: Any) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")
