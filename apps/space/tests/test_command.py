"""The command line refuses what makes no sense before a page is served, in one message."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from layerstream_space.__main__ import main

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "99999"], "99999 is no port: give a number from 1 to 65535"),
        (["--port", "http"], "http is no port"),
        (["--budget", "plenty"], "the budget is 'plenty': give min, or a size such as 6 GiB"),
        (["--model", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is no address of this machine"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_wrong_option_is_told_and_nothing_is_served(options, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "layerstream_space", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr
