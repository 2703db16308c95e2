"""Copies of checkpoints from URLs: once per machine, file by file, and in the background while a model loads.

Room: bytes. The files go into the user's cache, or a folder of the user's. What is there already and has not
changed is not copied again. `layerstream.load` reads a file while it still arrives.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import (
    CheckpointError,
    CheckpointNotFoundError,
    FetchError,
    LayerstreamError,
    StreamClosedError,
    first_line,
)
from ..spec.fetch import FetchProgress
from ..spec.options import LoadOptions
from .arrivals import announce, announce_end, announce_failure
from .copy_record import RECORD_NAME, CopyRecord, locked, part_of
from .file_copy import FileCopy, check_space
from .header import LENGTH_BYTES, describe_header, header_bytes_of
from .index import CONFIG_NAME, Checkpoint, collect_tensors, index_name, open_checkpoint, read_index
from .remote import (
    RemoteFile,
    RemoteFolder,
    is_small_file,
    outside_blocks_first,
    read_range,
    weights_of,
)
from .remote_fsspec import FsspecFolder
from .remote_http import HttpFolder
from .urls import check_url, copy_folder, scheme_of

OnFetch = Callable[[FetchProgress], None]
"""Called with how far a copy is."""

_COUNTS_FOR_S = 60.0
"""Seconds for which a server's listing is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPlace:
    """A checkpoint at a URL and where its copy lies.

    Attributes:
        url: the folder with the config and the weights.
        folder: the copy of that folder.
        root: what stands for the URL that the user gave: `folder`, or a folder above it.
        variant: which weights, as in `model.<variant>.safetensors`.
    """

    url: str
    folder: Path
    root: Path
    variant: str | None

    def is_whole(self) -> bool:
        """Return whether the copy can be opened, and all its files are of one listing."""
        shards = self.shards()
        return bool(shards) and CopyRecord(self.folder).is_whole(shards)

    def shards(self) -> tuple[str, ...]:
        """Return the names of the copy's files of weights; none if it cannot be opened."""
        try:
            return open_checkpoint(self.folder, variant=self.variant).shards
        except CheckpointError:
            return ()


_JOIN_TIMEOUT_S = 10.0

_asked: dict[tuple[UrlPlace, bool], float] = {}
"""Until when a copy counts as up to date, with or without its weights."""

_running: dict[Path, Download] = {}
"""The copies that go on in the background, by their folder."""


def _is_trusted(place: UrlPlace, weights: bool) -> bool:
    return time.monotonic() < _asked.get((place, weights), 0.0)


def _trust(place: UrlPlace, weights: bool) -> None:
    _asked[place, weights] = _asked[place, False] = time.monotonic() + _COUNTS_FOR_S


def place_of(name: str, options: LoadOptions, folder: Path | None = None) -> UrlPlace:
    """Return where the checkpoint at the URL `name` is copied to.

    Raises:
        CheckpointNotFoundError: the URL cannot be used.
    """
    url = check_url(name)
    root = copy_folder(url, options.cache_dir) if folder is None else folder
    inside = options.subfolder.strip("/")
    return UrlPlace(
        url=f"{url}/{inside}" if inside else url,
        folder=root / inside if inside else root,
        root=root,
        variant=options.variant,
    )


def open_remote(url: str) -> RemoteFolder:
    """Return the folder at `url`; nothing is listed yet.

    Raises:
        FetchError: the driver of its protocol is missing.
    """
    return HttpFolder(url) if scheme_of(url) in ("http", "https") else FsspecFolder(url)


def copy_checkpoint(
    place: UrlPlace, *, weights: bool, local_only: bool = False, on_fetch: OnFetch | None = None
) -> Path:
    """Copy what is missing of a checkpoint, and return `place.root`.

    Args:
        place: where it comes from and goes to.
        weights: copy the weights too, not only config, tokenizer and other small files.
        local_only: copy nothing.
        on_fetch: called after each piece.

    Raises:
        CheckpointNotFoundError: there is no such checkpoint, access is refused, or nothing may be copied and
            there is no copy.
        FetchError: the driver, the server or the disk failed.
        ShardCorruptError: a file's header does not fit its size; with `path`.
    """
    if _is_trusted(place, weights) and (place.folder / CONFIG_NAME).is_file():
        return place.root
    if local_only:
        return _kept_copy(place, weights, "local_files_only forbids a download")
    try:
        source = open_remote(place.url)
        listed = source.list_files(place.variant)
    except FetchError as error:
        return _kept_copy(place, weights, str(error), warn=True, cause=error)
    # Another process may hold the lock for as long as it copies weights that are not asked for here.
    if weights or not _Copying(place, source, listed).has_small():
        with locked(place.folder):
            _Copying(place, source, listed, on_fetch).run(weights=weights)
    _trust(place, weights)
    return place.root


def _kept_copy(
    place: UrlPlace,
    weights: bool,
    reason: str,
    *,
    warn: bool = False,
    cause: FetchError | None = None,
) -> Path:
    """Return the copy of an earlier time when its URL cannot be asked."""
    has_small = CopyRecord(place.folder).is_whole([CONFIG_NAME])
    is_whole = place.is_whole()
    if is_whole:
        for shard in place.shards():
            announce_end(place.folder / shard)
    if is_whole or (has_small and not weights):
        if warn:
            warnings.warn(f"{reason}. The copy of an earlier time is used: {place.folder}", stacklevel=2)
        return place.root
    if cause is not None:
        raise cause
    raise CheckpointNotFoundError(f"there is no whole copy of {place.url} in {place.folder}, and {reason}")


class _Copying:
    """What is to be copied of one checkpoint. Its folder's lock must be held."""

    def __init__(
        self,
        place: UrlPlace,
        source: RemoteFolder,
        listed: dict[str, RemoteFile],
        on_fetch: OnFetch | None = None,
    ) -> None:
        self._place, self._source, self._listed = place, source, listed
        self._on_fetch = on_fetch
        self._others: dict[str, RemoteFile] = {}
        self._record = CopyRecord(place.folder)
        self._done = self._total = 0
        self.stop = threading.Event()

    def run(self, *, weights: bool) -> None:
        """Copy the small files, then the weights."""
        self.copy_small()
        if weights:
            self.copy_missing(self.weights())

    def copy_small(self) -> None:
        """Copy all files but the weights, and remove those that the URL does not have any more."""
        for name in self._record.names:
            # A web server lists other names for other variants.
            if name not in self._listed and (file := self._source.look(name)) is not None:
                self._others[name] = file
        everything = {**self._listed, **self._others}
        self._record.note_listing(everything)
        for name in self._record.names:
            if name not in everything:
                self._record.remove(name)
        self.copy_missing(self._small())

    def has_small(self) -> bool:
        """Return whether all files but the weights are there."""
        return not self.missing(self._small())

    def _small(self) -> list[RemoteFile]:
        everything = {**self._listed, **self._others}
        small = [file for name, file in sorted(everything.items()) if is_small_file(name)]
        return [file for file in small if file.name != RECORD_NAME]

    def weights(self) -> list[RemoteFile]:
        """Return the files that hold the weights; the small files must be there."""
        index = self._place.folder / index_name(self._place.variant)
        weight_map = read_index(index)[0] if index.is_file() else {}
        return weights_of(self._place.url, self._listed, weight_map, self._place.variant)

    def missing(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Return the files that the folder does not have as they are now."""
        return [file for file in files if not self._record.has(file)]

    def end_waits(self, files: Sequence[RemoteFile]) -> None:
        """Let those of `files` be read that another process finished after a copy of them stopped here."""
        for file in files:
            if self._record.has(file):
                announce_end(self._place.folder / file.name)

    def copy_missing(self, files: Sequence[RemoteFile]) -> None:
        """Copy those of `files` that are not there."""
        missing = self.missing(files)
        self.end_waits(files)
        check_space(self._place.folder, missing, self._record)
        self._done, self._total = 0, sum(file.size or 0 for file in missing)
        for file in missing:
            FileCopy(
                self._source,
                file,
                self._place.folder,
                self._record,
                stop=self.stop,
                on_bytes=partial(self._report, file.name),
            ).run()

    def _report(self, name: str, num_bytes: int) -> None:
        self._done += num_bytes
        if self._on_fetch is not None:
            self._on_fetch(
                FetchProgress(file=name, done_bytes=self._done, total_bytes=max(self._total, self._done))
            )

    def headers(self, files: Sequence[RemoteFile]) -> Checkpoint:
        """Return the table of contents from the headers of `files`, with the places of their copies."""
        folder, shards = self._place.folder, {}
        for file in files:
            path = str(folder / file.name)
            if file.size is None:
                raise FetchError(
                    f"the server does not say how large {self._place.url}/{file.name} is; run "
                    "layerstream.fetch with the same URL and options first, then load"
                )
            length = header_bytes_of(read_range(self._source, file, 0, LENGTH_BYTES), file.size, path)
            raw = read_range(self._source, file, LENGTH_BYTES, LENGTH_BYTES + length)
            shards[file.name] = describe_header(raw, file.size, path)
        index = folder / index_name(self._place.variant)
        is_sharded = index.is_file() and len(files) > 1
        weight_map, metadata = read_index(index) if is_sharded else ({}, {})
        tensors = collect_tensors(shards, weight_map)
        return Checkpoint(
            name=self._place.url, directory=folder, tensors=tensors, shards=tuple(shards), metadata=metadata
        )


class Download:
    """A copy that goes on in a thread of its own.

    Attributes:
        checkpoint: what the files will hold, and where.
    """

    def __init__(
        self,
        place: UrlPlace,
        copying: _Copying,
        files: list[RemoteFile],
        checkpoint: Checkpoint,
        release: ExitStack,
    ) -> None:
        """Announce `files` and start to copy them; `release` gives the folder's lock back in the end."""
        self.checkpoint = checkpoint
        self._place, self._copying, self._release = place, copying, release
        self._missing = outside_blocks_first(copying.missing(files), checkpoint)
        self._error: LayerstreamError | None = None
        for file in self._missing:
            path = place.folder / file.name
            announce(path, part_of(path))
        _running[place.folder] = self
        self._thread = threading.Thread(target=self._work, name="layerstream-download", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until all files are there.

        Raises:
            CheckpointError: the copy failed.
            StreamClosedError: it was stopped.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the copy, unless it is done; the next one goes on from there.

        A server that sends nothing is waited for a few seconds only: the thread then ends by itself.
        """
        self._copying.stop.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _work(self) -> None:
        try:
            self._copying.copy_missing(self._missing)
            _trust(self._place, True)
        except LayerstreamError as error:
            self._error = error
        # Any other error goes to the threads that wait for the files, too.
        except Exception as error:  # noqa: BLE001
            self._error = FetchError(f"{self._place.url} cannot be copied: {first_line(error)}")
        finally:
            stopped = isinstance(self._error, StreamClosedError)
            for file in self._missing:
                announce_failure(self._place.folder / file.name, None if stopped else self._error)
            _running.pop(self._place.folder, None)
            self._release.close()


def begin_download(name: str, options: LoadOptions, *, on_fetch: OnFetch | None = None) -> Download | None:
    """Copy a checkpoint's small files, start to copy its weights, and return at once.

    Returns:
        The download; None if there is nothing to copy, or nothing may be copied.

    Raises:
        CheckpointError: as for `copy_checkpoint`.
    """
    place = place_of(name, options)
    if options.local_files_only or _is_trusted(place, True):
        return None
    try:
        source = open_remote(place.url)
        listed = source.list_files(place.variant)
    except FetchError:
        return None  # whoever needs the files says why they are not there, or that an earlier copy is used
    with ExitStack() as release:
        release.enter_context(locked(place.folder))
        copying = _Copying(place, source, listed, on_fetch)
        copying.copy_small()
        files = copying.weights()
        copying.end_waits(files)
        _trust(place, False)
        if not copying.missing(files):
            _trust(place, True)
            return None
        check_space(place.folder, copying.missing(files), CopyRecord(place.folder))
        checkpoint = copying.headers(files)
        return Download(place, copying, files, checkpoint, release.pop_all())


def url_checkpoint(name: str, options: LoadOptions, *, weights: bool) -> tuple[Checkpoint, Path]:
    """Return the table of contents of the checkpoint at a URL, and the directory of its small files.

    Without its weights, and while they are copied in the background, the files' headers are asked for alone.

    Raises:
        CheckpointError: as for `copy_checkpoint`.
    """
    place = place_of(name, options)
    running = _running.get(place.folder)
    if running is not None:
        return running.checkpoint, place.root
    copy_checkpoint(place, weights=weights, local_only=options.local_files_only)
    if weights or place.is_whole():
        return open_checkpoint(place.folder, place.url, variant=place.variant), place.root
    source = open_remote(place.url)
    copying = _Copying(place, source, source.list_files(place.variant))
    return copying.headers(copying.weights()), place.root
