"""Start an assembled Space as its host would, ask it for a plan and a comparison, and stop it.

Usage: `python apps/space/try_space.py FOLDER`, in an environment with the folder's requirements.txt and
nothing of this checkout.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from gradio_client import Client

START_WITHIN_S = 180.0


def main(folder: Path) -> int:
    """Return 0 if the Space answers correctly."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment) as process:
        try:
            wait_until_ready(address, process)
            check_endpoints(Client(address, verbose=False))
        finally:
            process.terminate()
    return 0


def check_endpoints(client: Client) -> None:
    """Call every endpoint and check the answers."""
    choices = client.predict(api_name="/choices")
    answer = client.predict("Llama-2-70B", choices["machines"][0], api_name="/plan")
    assert answer["plan"]["units"], answer
    results = client.predict(
        "What is the capital of France?",
        ["streamed", "resident"],
        8,
        "100 MiB",
        "",
        "none",
        api_name="/compare",
    )
    assert [result["status"] for result in results] == ["ok", "ok"], results
    assert results[0]["token_ids"] == results[1]["token_ids"], results
    sys.stdout.write(f"the Space answered: {results[0]['text']!r}, the same streamed and in memory\n")


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the Space serves its page.

    Raises:
        RuntimeError: the app ended or did not answer in time.
    """
    deadline_s = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urlopen(address, timeout=5) as page:
                if page.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"the Space did not answer at {address}; exit status {process.poll()}")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
