"""What `layerstream serve` refuses before anything is loaded, and how it names itself."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
from kit.listener import Held

import layerstream as ls
from layerstream.cli import serve
from layerstream.cli.app import main
from layerstream.uses.serving.service import GenerationService


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_missing_extra_is_named(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else object())
    text = refused([str(tiny_llama_dir)], capsys)
    assert "not installed (fastapi): pip install 'layerstream[serve]'" in text


def test_a_context_beyond_the_models_is_refused(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused([str(tiny_llama_dir), "--context-tokens", "100000"], capsys)
    assert "--context-tokens 100000 is more than the 512 tokens that this model can see" in text


@pytest.mark.enable_socket
def test_an_address_of_another_machine_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_llama_dir), "--host", "192.0.2.1", "--budget", "min", "--context-tokens", "64"]
    text = refused([*arguments, "--folder", str(tmp_path / "kept"), "--quiet"], capsys)
    assert "cannot listen at 192.0.2.1, port 8000" in text


def test_a_folder_that_cannot_be_used_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = [str(tiny_llama_dir), "--budget", "min", "--context-tokens", "64", "--quiet"]
    assert "file" in refused([*arguments, "--folder", str(tmp_path / "file")], capsys)


def test_a_wrong_size_of_the_prefix_cache_is_refused(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'much' is not a size" in refused([str(tiny_llama_dir), "--prefix-cache", "much"], capsys)


def test_a_budget_that_is_too_small_names_the_options_to_lower(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_llama_dir), "--budget", "100KiB", "--together", "3", "--context-tokens", "64"]
    text = refused([*arguments, "--quiet"], capsys)
    assert "lower --together (now 3) or --context-tokens (tried down to 64)" in text
    assert "prefix" not in text
    text = refused([*arguments, "--prefix-cache", "1MiB"], capsys)
    assert "prefix cache 1 MiB" in text
    assert (
        "lower --together (now 3), --context-tokens (tried down to 64) or --prefix-cache (now 1MiB)" in text
    )


def test_several_devices_serve_together(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[int, ...]] = []

    def serve_model(streamed: ls.StreamedModel, serving: object, *, on_ready: object) -> None:
        assert len(streamed.replicas) == 2
        with closing(GenerationService(streamed)) as service:
            request = ls.GenerationRequest(prompt="The sea is", max_new_tokens=4)
            gate = threading.Event()
            listeners = [Held(gate) for _ in range(4)]
            for listener in listeners:
                service.submit(request, listener)
            gate.set()
            answers.extend(listener.wait().result.tokens for listener in listeners)
        assert all(replica.group.sweeps for replica in streamed.replicas)

    monkeypatch.setattr(serve.backend, "serve_model", serve_model)
    arguments = [str(tiny_llama_dir), "--budget", "min", "--context-tokens", "64", "--quiet"]
    assert main(["serve", *arguments, "--folder", str(tmp_path), "--device", "cpu,cpu"]) == 0
    assert len(answers) == 4 and len(set(answers)) == 1


@pytest.mark.parametrize(("option", "value"), [("--draft", "lookup"), ("--prefix-cache", "1MiB")])
def test_what_needs_one_device_is_refused_with_several(
    option: str, value: str, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused([str(tiny_llama_dir), "--device", "cpu,cpu", option, value], capsys)
    assert "works on one device; got devices=['cpu', 'cpu']" in text
