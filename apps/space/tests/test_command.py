"""The command line rejects invalid options with one message, before a page is served."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from layerstream_space.__main__ import main

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999"], "99999 is not a port: give a number from 1 to 65535"),
        (["--port", "http"], "http is not a port"),
        (["--budget", "plenty"], "the budget is 'plenty': give min, or a size such as 6 GiB"),
        (["--model", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is not an address of this machine"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_invalid_option_is_reported_and_nothing_is_served(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_port_in_use_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "layerstream_space", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr
