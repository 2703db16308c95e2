"""Rows of a data set of the Hub: read, from the cache without a connection, by revision, and what is refused.

Each command runs in a process of its own against a small Hub on a local port.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.dataset_hub import DatasetHub, dataset_hub

pytest.importorskip("datasets")
pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]

MAIN, TAGGED = "1" * 40, "2" * 40

_READ = """
import json, sys
from layerstream.cli.row_columns import Columns
from layerstream.cli.row_sources import RowSource, read_source
from layerstream.errors import JobError

def read(text, config, local_only=False):
    source = RowSource(text=text, config=config, split="test", columns=Columns(prompt="question"))
    try:
        rows = read_source(source, command="batch", local_files_only=local_only, shown=True)
    except JobError as error:
        return str(error)
    return [row.fields["prompt"] for row in rows]

print(json.dumps([read(*arguments) for arguments in json.loads(sys.argv[1])]))
"""

Read = Callable[..., tuple[list[Any], str]]


def write(folder: Path, **prompts: str) -> Path:
    for name, prompt in prompts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "test.jsonl").write_text(json.dumps({"question": prompt}) + "\n")
    configs = [
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test.jsonl"
        for name in prompts
    ]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[DatasetHub]:
    revisions = {
        "main": (MAIN, write(tmp_path / "main", easy="new", hard="new and hard")),
        "v1": (TAGGED, write(tmp_path / "v1", easy="old")),
    }
    with dataset_hub(DatasetHub("org/maths", revisions)) as served:
        yield served


@pytest.fixture
def environment(hub: DatasetHub, tmp_path: Path) -> dict[str, str]:
    # what is not asked of the Hub itself is switched off
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "USE_PARQUET_EXPORT": "0",
    }


@pytest.fixture
def read(environment: dict[str, str], tmp_path: Path) -> Read:
    """Read data sets in one new process; return the prompts of each, or the error, and what was said."""

    def run(*asked: tuple[Any, ...], **more: str) -> tuple[list[Any], str]:
        done = subprocess.run(
            [sys.executable, "-c", _READ, json.dumps(asked)],
            env={**environment, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), " ".join(done.stderr.split())

    return run


EASY, HARD = ("org/maths", "easy"), ("org/maths", "hard")


def test_without_a_connection_what_was_read_once_comes_from_the_cache(hub: DatasetHub, read: Read) -> None:
    (error,), _ = read(EASY, HF_HUB_OFFLINE="1")
    assert "not in the local cache" in error and "offline mode (HF_HUB_OFFLINE) forbids a download" in error
    rows, said = read(EASY)
    assert (rows, said) == ([["new"]], f"org/maths, easy, test (commit {MAIN[:12]}): 1 row; read: question")
    hub.requests.clear()
    for asked, settings, why in (
        (EASY, {"HF_HUB_OFFLINE": "1"}, "offline mode (HF_HUB_OFFLINE) forbids a download"),
        (EASY, {"HF_DATASETS_OFFLINE": "1"}, "offline mode (HF_DATASETS_OFFLINE) forbids a download"),
        (EASY, {"HF_ENDPOINT": "http://127.0.0.1:1"}, "the Hub at http://127.0.0.1:1 cannot be reached"),
        ((*EASY, True), {}, "local_files_only forbids a download"),
    ):
        rows, said = read(asked, **settings)
        assert rows == [["new"]]
        assert f"(commit {MAIN[:12]}, from the cache because {why}" in said
    assert hub.requests == []


def test_a_configuration_that_is_not_in_the_cache_is_reported(read: Read) -> None:
    read(EASY)
    (error,), _ = read(HARD, HF_HUB_OFFLINE="1")
    assert error.endswith("Available configs in the cache: ['easy']; choose one with --config")
    read(HARD)
    (error,), _ = read(("org/maths", None), HF_HUB_OFFLINE="1")
    assert "multiple 'org/maths' configurations in the cache" in error
    assert error.endswith("; choose one with --config")


def test_a_revision_is_read_and_never_mistaken_for_another(read: Read) -> None:
    assert read(("org/maths@v1", "easy"))[0] == [["old"]]
    found, _ = read(
        ("org/maths@v1", "easy"),
        (f"hf://datasets/org/maths@{TAGGED}", "easy"),
        ("org/maths@main", "easy"),
        HF_HUB_OFFLINE="1",
    )
    assert found[:2] == [["old"], ["old"]]
    assert found[2].startswith("the revision 'main' of the data set org/maths cannot be read: offline mode")
    assert f"the cache's latest copy is of the commit {TAGGED}" in found[2]
    assert read(("org/maths@main", "easy"))[0] == [["new"]]


def test_without_a_connection_no_other_revision_is_taken_for_the_main_branch(read: Read) -> None:
    read(EASY)
    assert read(("org/maths@v1", "easy"))[0] == [["old"]]
    found, _ = read(EASY, (f"org/maths@{TAGGED}", "easy"), HF_HUB_OFFLINE="1")
    assert found[0].startswith("the revision 'main' of the data set org/maths cannot be read: offline mode")
    assert found[0].endswith(f"or take that copy: org/maths@{TAGGED}")
    assert found[1] == ["old"]


def test_what_the_hub_does_not_have_is_one_error(hub: DatasetHub, read: Read) -> None:
    messages = {
        ("org/math", None): "there is no file or folder org/math here, and the Hub has no such data set",
        ("org/maths@v2", None): "the data set org/maths@v2 has no revision 'v2'",
        ("org/maths", None): "org/maths has several configurations; choose one with --config: easy, hard",
        ("org/maths", "esay"): "no configuration 'esay'; choose one with --config: easy, hard",
    }
    found, _ = read(*messages)
    for error, message in zip(found, messages.values(), strict=True):
        assert message in error
    hub.is_gated = True
    (error,), _ = read(EASY)
    assert "access to the data set org/maths is restricted" in error


def test_the_command_takes_an_id_of_the_hub(
    environment: dict[str, str], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    chosen = ("--config", "hard", "--prompt-column", "question")
    model = ("--model", str(tiny_llama_dir), "--budget", "min", "-n", "3")
    done = subprocess.run(
        [sys.executable, "-m", "layerstream", "batch", "org/maths", "results.jsonl", *chosen, *model],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "org/maths, hard, test (commit 111111111111): 1 row; read: question" in done.stderr
    _, result = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert (result["row"], result["id"], result["prompt_tokens"]) == (1, 1, len("new and hard"))
