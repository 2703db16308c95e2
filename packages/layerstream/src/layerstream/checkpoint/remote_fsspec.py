"""A checkpoint's folder in any storage that fsspec knows: S3, Google Cloud, a shared folder, memory.

Room: bytes. Each storage has a driver, a package of its own, with credentials and errors of its own.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fsspec  # type: ignore[import-untyped]

from ..errors import CheckpointNotFoundError, FetchError, first_line
from .index import CONFIG_NAME, some
from .remote import READ_BYTES, RemoteFile
from .urls import scheme_of

REQUESTS_AT_ONCE = 4
"""How many pieces are asked for at a time, where the driver takes several requests."""

_PIECE_BYTES = 2 * READ_BYTES
_DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "hdfs": "pyarrow",
    "oss": "ossfs",
    "oci": "ocifs",
}
_TAGS = (
    "ETag",
    "etag",
    "e_tag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


class FsspecFolder:
    """A folder that fsspec can open.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: str) -> None:
        """Open the storage's driver.

        Raises:
            FetchError: the driver is missing, unknown or cannot start.
        """
        self.url = url
        scheme = scheme_of(url)
        try:
            self._system, self._path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = _DRIVERS.get(scheme)
            advice = f"install it: pip install {package}" if package else first_line(error)
            raise FetchError(
                f"{url} needs the package {package or 'of its driver'}, which is not installed; {advice}"
            ) from error
        except ValueError as error:
            raise FetchError(
                f"{url} cannot be opened: {first_line(error)}; give s3://, gs://, http(s)://, hf://, file:// "
                "or another protocol that fsspec knows"
            ) from error
        # Drivers raise errors of their own libraries' kinds.
        except Exception as error:
            raise self._failed(error) from error

    def list_files(self, variant: str | None) -> dict[str, RemoteFile]:
        """Return the files of the folder by name.

        Raises:
            CheckpointNotFoundError: there is no such folder, it has no config, or access is refused.
            FetchError: the storage or its driver fails.
        """
        files = self._list()
        if CONFIG_NAME not in files:
            raise CheckpointNotFoundError(
                f"{self.url} has no {CONFIG_NAME}, but {some(sorted(files)) or 'no files'}; give the folder "
                "that holds it and the weights"
            )
        return files

    def look(self, name: str) -> RemoteFile | None:
        """Return what the storage says of a file now; None if it is not there.

        Raises:
            CheckpointNotFoundError: access is refused.
            FetchError: the storage or its driver fails.
        """
        # Some drivers describe a single file in other words than in a list.
        return self._list().get(name)

    def _list(self) -> dict[str, RemoteFile]:
        try:
            self._system.invalidate_cache()
            entries = self._system.ls(self._path, detail=True)
        # Drivers raise errors of their own libraries' kinds.
        except Exception as error:
            raise self._failed(error) from error
        files = {}
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if entry.get("type") == "file" and name:
                files[name] = _described(name, entry)
        return files

    def stream(self, file: RemoteFile, start: int, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end`, or to the file's end, in pieces.

        Raises:
            CheckpointNotFoundError: the file is gone or access is refused.
            FetchError: the storage or its driver fails.
        """
        stop = file.size if end is None else end
        path = f"{self._path}/{file.name}"
        try:
            if stop is None:
                yield self._system.cat_file(path, start=start)
            else:
                yield from self._pieces(path, start, stop if file.size is None else min(stop, file.size))
        # Drivers raise errors of their own libraries' kinds.
        except Exception as error:
            raise self._failed(error) from error

    def _pieces(self, path: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes in order; several pieces are on their way where the driver takes that."""
        places = [(at, min(end, at + _PIECE_BYTES)) for at in range(start, end, _PIECE_BYTES)]
        if not self._system.async_impl or len(places) < 2:
            for first, last in places:
                yield self._system.cat_file(path, start=first, end=last)
            return
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="layerstream-fetch") as pool:
            coming: deque[Future[bytes]] = deque()
            try:
                for first, last in places:
                    coming.append(pool.submit(self._system.cat_file, path, start=first, end=last))
                    if len(coming) == REQUESTS_AT_ONCE:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                for each in coming:
                    each.cancel()

    def _failed(self, error: Exception) -> CheckpointNotFoundError | FetchError:
        reason = first_line(error)
        if isinstance(error, CheckpointNotFoundError | FetchError):
            return error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return CheckpointNotFoundError(
                f"there is no {self.url} ({reason}); check the spelling of the bucket and the folder"
            )
        if isinstance(error, PermissionError) or "credentials" in reason.lower():
            return CheckpointNotFoundError(
                f"access to {self.url} is refused ({reason}); give credentials the way that the driver of "
                f"{scheme_of(self.url)}:// expects them, such as its environment variables"
            )
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        return FetchError(
            f"{self.url} cannot be read: {reason}; "
            f"{'free some space' if full else 'check the URL and the network'}"
        )


def _described(name: str, entry: dict[str, Any]) -> RemoteFile:
    size = entry.get("size")
    tag = next((str(entry[key]) for key in _TAGS if entry.get(key)), "")
    return RemoteFile(name=name, size=size if isinstance(size, int) else None, tag=tag)
