"""Exit a worker when its parent is gone, that is, when its event pipe has no reader any more.

Without this, a worker whose parent was killed would run on until its next line and disturb later
measurements. No torch: it starts before torch is imported.
"""

from __future__ import annotations

import os
import select
import signal
import threading


def exit_with_reader(events_fd: int) -> None:
    """Kill this process, and its process group if it leads one, once the pipe's reading end is closed.

    A daemon thread sleeps in the kernel until then. A descriptor that is not a pipe never wakes it.
    """
    threading.Thread(target=_wait_for_reader, args=(events_fd,), name="parent watch", daemon=True).start()


def _wait_for_reader(events_fd: int) -> None:
    poller = select.poll()
    # poll always reports errors, and the only one at a pipe's writing end is that it has no reader any more
    poller.register(events_fd, 0)
    poller.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
