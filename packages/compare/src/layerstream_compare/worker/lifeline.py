"""A worker's tie to its parent: when nobody reads its events any more, it ends.

It knows one file descriptor. No torch, no layerstream. Without it a worker whose parent was killed would go on until its next line,
and disturb whatever is measured after it.
"""

from __future__ import annotations

import os
import select
import signal
import threading


def end_with_reader(events_fd: int) -> None:
    """End this process, and its group where it leads one, as soon as the pipe's reading end is closed.

    A daemon thread sleeps in the kernel until then. A descriptor that is no pipe never wakes it.
    """
    threading.Thread(target=_wait_for_reader, args=(events_fd,), name="lifeline", daemon=True).start()


def _wait_for_reader(events_fd: int) -> None:
    poller = select.poll()
    # no event asked for: errors are always told, and the only one of a pipe's writing end is that its readers are gone
    poller.register(events_fd, 0)
    poller.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
