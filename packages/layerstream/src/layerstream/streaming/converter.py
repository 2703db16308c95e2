"""Convert units whose tensors are not stored as the model uses them, once they are read.

A conversion reads its own sources and computes, so it has a thread of its own: the reader's threads must go
on reading. Room: streaming.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from ..checkpoint.reader import DiskReader
from ..errors import LayerstreamError, StreamClosedError, StreamError
from .fetches import Fetch, StreamedUnit


class Converter:
    """A thread that converts one fetch after another, in the order in which they were read."""

    def __init__(
        self,
        units: Sequence[StreamedUnit],
        reader: DiskReader,
        *,
        on_done: Callable[[Fetch, LayerstreamError | None], None],
    ) -> None:
        """Start the thread.

        Args:
            units: the units that fetches are of.
            reader: reads what conversions need.
            on_done: called with each fetch and its error, on this thread.
        """
        self._units, self._reader, self._on_done = units, reader, on_done
        self._fetches: queue.SimpleQueue[Fetch | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="layerstream-convert", daemon=True)
        self._thread.start()

    def put(self, fetch: Fetch) -> None:
        """Convert `fetch` after all earlier ones; its unit is read."""
        self._fetches.put(fetch)

    def close(self) -> None:
        """End after the conversion that is under way; later ones fail."""
        self._is_closed = True
        self._fetches.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (fetch := self._fetches.get()) is not None:
            self._on_done(fetch, self._convert(fetch))

    def _convert(self, fetch: Fetch) -> LayerstreamError | None:
        if self._is_closed:
            return StreamClosedError("the model was closed before the unit was converted")
        unit, buffer = self._units[fetch.unit], fetch.buffer
        assert buffer is not None
        try:
            unit.source.convert([unit.source.host_views(buffer.host.bytes)], self._reader)
        except LayerstreamError as error:
            return error
        except (OSError, RuntimeError, ValueError) as error:
            failure = StreamError(f"unit {unit.name!r} could not be converted: {error}")
            failure.__cause__ = error
            return failure
        return None
