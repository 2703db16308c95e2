"""The guide on serving: its commands and its Python run against a real server on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from document_blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "guides" / "serving.md"
SHOWN_ADDRESS = "http://127.0.0.1:8000"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NAME = "SmolLM2-135M-Instruct"
PATIENCE_S = 90


def shown(language: str, word: str) -> str:
    """Return the page's code block in this language with this word in it."""
    found = [block.code for block in blocks_of(PAGE) if block.language == language and word in block.code]
    assert len(found) == 1, f"{len(found)} blocks with {word!r}"
    return found[0]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment whose home is empty, and where nothing is fetched."""
    home = str(tmp_path_factory.mktemp("home"))
    known = {"HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return {**os.environ, **known, **paths, "XDG_DATA_HOME": home, "XDG_CACHE_HOME": home}


@pytest.fixture(scope="module")
def address(tiny_llama_dir: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start the page's own command on a tiny model, yield its address, and end it as a user does."""
    line = shown("bash", "layerstream serve").replace(MODEL, str(tiny_llama_dir))
    command = [sys.executable, "-m", *line.split(), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        told = []
        try:
            for text in server.stderr:
                told.append(text)
                if match := re.search(r"serving at (http://\S+)/v1", text):
                    yield match[1]
                    break
            else:
                pytest.fail("".join(told))
        finally:
            server.send_signal(signal.SIGINT)
            rest = server.communicate(timeout=PATIENCE_S)[1]
        assert server.returncode == 0, rest
        assert "Traceback" not in rest


@pytest.mark.timeout(300)  # starts a process that imports torch
def test_the_pages_curl_gets_an_answer(address: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = shown("bash", "curl ").replace(SHOWN_ADDRESS, address)
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    body = json.loads(done.stdout)
    assert body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens"] <= 16


WAIT_FOR_BATCH = """
while batch.status not in ("completed", "failed", "cancelled", "expired"):
    batch = client.batches.retrieve(batch.id)
print("\\nBATCH", batch.status)
print(client.files.content(batch.output_file_id).text)
"""


@pytest.mark.timeout(300)
def test_the_pages_python_streams_and_batches(
    address: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    write_lines(tmp_path / "requests.jsonl")
    blocks = [shown("python", word) for word in ("stream = ", "batches.create")]
    code = "\n".join([*blocks, WAIT_FOR_BATCH]).replace(SHOWN_ADDRESS, address)
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True,
        cwd=tmp_path, env=environment, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, _, results = done.stdout.partition("\nBATCH completed\n")
    assert answer.strip(), "the stream was printed"
    assert sorted(json.loads(line)["custom_id"] for line in results.split("\n") if line) == ["a", "b"]


def write_lines(path: Path) -> None:
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": NAME, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]},
        }
        for name in ("a", "b")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.timeout(300)
def test_the_same_lines_run_without_a_server(
    tiny_llama_dir: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    write_lines(tmp_path / "requests.jsonl")
    line = shown("bash", "layerstream batch").replace(MODEL, str(tiny_llama_dir))
    subprocess.run(
        [sys.executable, "-m", *line.split()], check=True, cwd=tmp_path, env=environment, timeout=PATIENCE_S
    )
    rows = [json.loads(row) for row in (tmp_path / "results.jsonl").read_text().splitlines()]
    answers = [row for row in rows if "custom_id" in row]
    assert [row["custom_id"] for row in answers] == ["a", "b"]
    assert all(row["response"]["body"]["choices"][0]["message"]["content"] for row in answers)


@pytest.mark.timeout(300)
def test_a_chat_answers_each_line(tiny_llama_dir: Path, environment: dict[str, str]) -> None:
    line = shown("bash", "layerstream chat").replace(MODEL, str(tiny_llama_dir))
    done = subprocess.run(
        [sys.executable, "-m", *line.split(), "--max-new-tokens", "4"],
        check=False, input="Hello\n/exit\n", capture_output=True, text=True,
        env=environment, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
