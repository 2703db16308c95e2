"""What every test of the repository starts from."""

from __future__ import annotations

import signal

# a job in the background of a shell ignores Ctrl-C, and so would every process that is started here; some
# tests press it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
