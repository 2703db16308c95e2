"""Copies from URLs that are killed, that two processes start at once, and that a model is loaded during."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from kit.url_copies import ask_each_time
from kit.web_folder import WebFolder
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.checkpoint import url_copy
from layerstream.checkpoint.copy_record import part_of

pytestmark = pytest.mark.enable_socket

WEIGHTS = "model.safetensors"
PATIENCE_S = 20.0
SHORT = ls.Workload(prompt_tokens=4, new_tokens=5)
PROMPT = torch.tensor([[1, 5, 9, 17]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_each_time(monkeypatch, tmp_path / "cache", (0.0,))


@pytest.fixture
def sharded(shared: Path) -> Path:
    """The same model in several files, the last of which holds norm and head."""
    model = AutoModelForCausalLM.from_pretrained(shared)
    (shared / WEIGHTS).unlink()
    model.save_pretrained(shared, max_shard_size="200KB")
    assert len(list(shared.glob("*.safetensors"))) > 3
    return shared


@pytest.fixture
def by_blocks(tiny_llama_dir: Path) -> int:
    """A budget that streams whole blocks, all of them: nothing but norm and embedding is read by `load`."""
    least = ls.plan(tiny_llama_dir, budget="min", workload=SHORT, device="cpu").ledger.device_bytes
    budget = least + 245 * 1024
    plan = ls.plan(tiny_llama_dir, budget=budget, workload=SHORT, device="cpu")
    assert plan.granularity is ls.Granularity.BLOCK
    assert plan.count(ls.Residency.DISK) == len(plan.units)
    return budget


def start(url: str, target: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kit.fetch_process", url, str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def answer(streamed: ls.StreamedModel) -> list[int]:
    return streamed.generate(PROMPT, max_new_tokens=5, do_sample=False).tolist()[0]  # type: ignore[no-any-return]


@pytest.fixture
def expected(tiny_llama_dir: Path) -> list[int]:
    """The tokens of the plain model."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    return model.generate(PROMPT, max_new_tokens=5, do_sample=False).tolist()[0]  # type: ignore[no-any-return]


def test_a_killed_copy_goes_on_where_it_was(web: WebFolder, shared: Path, tmp_path: Path) -> None:
    target, killed = tmp_path / "copy", threading.Event()

    def hold(name: str, place: int) -> None:
        if name == WEIGHTS and place >= 320 * 1024:
            killed.wait(PATIENCE_S)

    web.before_piece = hold
    process = start(web.address, target)
    assert process.stdout is not None
    part = part_of(target / WEIGHTS)
    for _ in process.stdout:
        if part.exists() and part.stat().st_size == 320 * 1024:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    killed.set()
    assert not (target / WEIGHTS).exists()
    web.requests.clear()
    ls.fetch(web.address, target)
    assert web.bodies_of(WEIGHTS) == [320 * 1024]
    assert (target / WEIGHTS).read_bytes() == (shared / WEIGHTS).read_bytes()


def test_of_two_processes_one_copies_and_the_other_waits(
    web: WebFolder, shared: Path, tmp_path: Path
) -> None:
    target, both_ask, go_on = tmp_path / "copy", threading.Event(), threading.Event()
    configs = 0

    def hold(name: str, place: int) -> None:
        if name == WEIGHTS and place >= 100_000:
            go_on.wait(PATIENCE_S)

    web.before_piece = hold
    processes = [start(web.address, target) for _ in range(2)]
    # Both have listed the files once each has asked for the index, the last name that is tried.
    while not both_ask.is_set():
        configs = sum(name.endswith("index.json") for _, name, _ in list(web.requests))
        both_ask.wait(0.01) if configs < 2 else both_ask.set()
    go_on.set()
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(output == "done\n" for output in outputs) == [False, True]
    assert web.bodies_of(WEIGHTS) == [0]
    assert (target / WEIGHTS).read_bytes() == (shared / WEIGHTS).read_bytes()


def test_small_files_that_are_there_are_not_waited_for(web: WebFolder, tmp_path: Path) -> None:
    place = url_copy.place_of(web.address, ls.LoadOptions())
    url_copy.copy_checkpoint(place, weights=False)
    with url_copy.locked(place.folder):
        assert url_copy.copy_checkpoint(place, weights=False) == place.folder


@pytest.mark.parametrize("budget", ["min", "1GiB"])
def test_a_model_from_a_url_answers_as_the_plain_model(
    budget: str, web: WebFolder, expected: list[int]
) -> None:
    with ls.load(web.address, budget=budget, device="cpu") as streamed:
        assert answer(streamed) == expected
    assert web.bodies_of(WEIGHTS).count(0) == 2  # its length, then all of it


def test_a_model_is_loaded_and_runs_before_its_last_blocks_are_there(
    web: WebFolder, sharded: Path, expected: list[int], by_blocks: int
) -> None:
    loaded, held = threading.Event(), set()
    index = url_copy.read_index(sharded / "model.safetensors.index.json")[0]
    late = index["model.layers.2.mlp.down_proj.weight"]

    def hold(name: str, place: int) -> None:
        if name == late and place >= 64 * 1024 and not loaded.is_set():
            held.add(name)
            loaded.wait(PATIENCE_S)

    web.before_piece = hold
    with ls.load(web.address, budget=by_blocks, workload=SHORT, device="cpu") as streamed:
        loaded.set()
        assert answer(streamed) == expected
    assert held == {late}


def test_verifying_waits_for_the_files(web: WebFolder, sharded: Path) -> None:
    with ls.load(web.address, budget="min", device="cpu", verify=True) as streamed:
        assert streamed.verify()


def load_and_close(web: WebFolder, sharded: Path, by_blocks: int) -> None:
    """Load the model and close it while one of its files is still on its way."""
    loaded = threading.Event()
    index = url_copy.read_index(sharded / "model.safetensors.index.json")[0]
    late = index["model.layers.2.mlp.down_proj.weight"]

    def hold(name: str, place: int) -> None:
        if name == late and place >= 64 * 1024:
            loaded.wait(PATIENCE_S)

    web.before_piece = hold
    streamed = ls.load(web.address, budget=by_blocks, workload=SHORT, device="cpu")
    # The server waits for `loaded`, and the copy for the server.
    threading.Timer(0.0, loaded.set).start()
    streamed.close()


def test_closing_a_model_ends_the_copy_and_the_next_load_goes_on(
    web: WebFolder, sharded: Path, expected: list[int], by_blocks: int
) -> None:
    load_and_close(web, sharded, by_blocks)
    with ls.load(web.address, budget="min", device="cpu") as again:
        assert answer(again) == expected


@pytest.mark.parametrize("way", ["load", "fetch, then load", "load local files only", "without a server"])
def test_a_stopped_copy_that_another_process_finished_is_loaded(
    way: str, web: WebFolder, sharded: Path, expected: list[int], by_blocks: int
) -> None:
    load_and_close(web, sharded, by_blocks)
    directory = url_copy.place_of(web.address, ls.LoadOptions()).folder
    other = start(web.address, directory)
    assert other.communicate(timeout=PATIENCE_S)[0].endswith("done\n")
    if way == "fetch, then load":
        ls.fetch(web.address)
    with warnings.catch_warnings():
        if way == "without a server":
            web.refuses = 503
            warnings.filterwarnings("ignore", "(?s).*copy of an earlier time", UserWarning)
        local_only = way == "load local files only"
        with ls.load(web.address, budget="min", device="cpu", local_files_only=local_only) as again:
            assert answer(again) == expected


def test_a_copy_that_fails_during_the_load_is_the_error_of_the_load(web: WebFolder, shared: Path) -> None:
    def lose(name: str, place: int) -> None:
        if name == WEIGHTS and place >= 100_000:
            (shared / WEIGHTS).unlink(missing_ok=True)
            raise ConnectionResetError

    web.before_piece = lose
    with pytest.raises(ls.ReadFailedError, match="did not arrive whole"):
        ls.load(web.address, budget="min", device="cpu")


def test_a_budget_that_is_too_small_ends_the_copy_too(web: WebFolder) -> None:
    with pytest.raises(ls.BudgetTooSmallError):
        ls.load(web.address, budget="1 KiB", device="cpu")
    assert not url_copy._running


def test_a_plan_reads_headers_only(web: WebFolder, tiny_llama_dir: Path) -> None:
    assert ls.plan(web.address, budget="min", device="cpu").ledger == (
        ls.plan(tiny_llama_dir, budget="min", device="cpu").ledger
    )
    assert sum(method == "GET" and name == WEIGHTS for method, name, _ in web.requests) == 2


def test_models_at_urls_are_told_apart_by_their_contents(web: WebFolder, tiny_llama_dir: Path) -> None:
    assert ls.fingerprint_model(web.address) == ls.fingerprint_model(str(tiny_llama_dir))
