"""Without a network: what the cache or a copy has is used, and anything else fails once and at once."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from kit.fake_hub import fabricate_cache

from layerstream.checkpoint import hub_reach
from layerstream.checkpoint.hub import downloads, resolve_model
from layerstream.checkpoint.made_copies import DEFAULT_HUB_ID, default_copy
from layerstream.errors import CheckpointNotFoundError
from layerstream.spec.options import LoadOptions

OFFLINE = LoadOptions(local_files_only=True)


class Unreachable:
    """A network without an answer: counts who asks, and stands in for the Hub's cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Take the place of huggingface_hub's session, cache directory and this user's cache."""
        self.requests = 0
        monkeypatch.setattr(hub_reach, "_last", hub_reach._Outcome())
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: self)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def head(self, url: str, *, timeout: float) -> None:
        self.requests += 1
        raise hub_reach.HttpError("no route to host")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Unreachable:
    """No answer from the Hub."""
    return Unreachable(monkeypatch, tmp_path)


def test_without_a_network_a_missing_model_fails_once_and_says_where_it_was_looked_for(
    network: Unreachable, tmp_path: Path
) -> None:
    for _ in range(3):
        with pytest.raises(CheckpointNotFoundError) as caught:
            resolve_model("org/name", weights=True)
    message = str(caught.value)
    assert "'org/name' is neither a directory here nor in the local cache" in message
    assert str(tmp_path / "hub") in message
    assert "https://huggingface.co cannot be reached (no route to host)" in message
    assert "download it once with a connection, or give a local directory" in message
    assert network.requests == 1, "an unreachable Hub is asked once, not at every step"


def test_without_a_network_a_cached_model_is_used(network: Unreachable, tmp_path: Path) -> None:
    snapshot = fabricate_cache(tmp_path / "hub")
    assert resolve_model("org/name", weights=True) == snapshot
    assert not downloads("org/name"), "the headers are read from the cache too"


def test_a_path_is_never_a_question_for_the_hub(network: Unreachable, tmp_path: Path) -> None:
    assert not downloads(str(tmp_path))
    assert not downloads("/no/such/place")
    assert network.requests == 0


def test_the_hub_is_asked_again_after_a_while(network: Unreachable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_reach.offline_reason() is not None
    monkeypatch.setattr(network, "head", lambda url, *, timeout: None)
    assert hub_reach.offline_reason() is not None
    monkeypatch.setattr(hub_reach._last, "until_s", 0.0)
    assert hub_reach.offline_reason() is None


def test_the_given_cache_directory_is_where_it_was_looked_for(network: Unreachable, tmp_path: Path) -> None:
    snapshot = fabricate_cache(tmp_path / "mine")
    options = LoadOptions(cache_dir=tmp_path / "mine")
    assert resolve_model("org/name", options, weights=True) == snapshot
    with pytest.raises(CheckpointNotFoundError, match=str(tmp_path / "mine")):
        resolve_model("org/other", options, weights=True)


def test_files_that_must_be_local_are_not_asked_for(network: Unreachable) -> None:
    with pytest.raises(CheckpointNotFoundError, match="local_files_only forbids a download"):
        resolve_model("org/name", OFFLINE, weights=True)
    assert network.requests == 0


def make_copy() -> Path:
    copy = default_copy()
    copy.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (copy / name).touch()
    return copy


@pytest.mark.parametrize("weights", [False, True])
def test_without_a_network_the_default_model_is_the_copy_that_was_made_of_it(
    weights: bool, network: Unreachable
) -> None:
    copy = make_copy()
    with pytest.warns(UserWarning, match="using the copy that layerstream made"):
        assert resolve_model(DEFAULT_HUB_ID, weights=weights) == copy
    with pytest.warns(UserWarning, match="local_files_only forbids a download: using the copy"):
        assert resolve_model(DEFAULT_HUB_ID, OFFLINE, weights=weights) == copy


def test_the_copy_does_not_stand_in_for_particular_files(network: Unreachable, tmp_path: Path) -> None:
    make_copy()
    for options in (
        LoadOptions(revision="v1"),
        LoadOptions(variant="fp16"),
        LoadOptions(subfolder="onnx"),
        LoadOptions(cache_dir=tmp_path),
    ):
        with pytest.raises(CheckpointNotFoundError, match="local cache"):
            resolve_model(DEFAULT_HUB_ID, options, weights=True)
    with pytest.raises(CheckpointNotFoundError, match="org/name"):
        resolve_model("org/name", weights=True)


def test_without_a_copy_the_error_says_how_to_make_one(network: Unreachable) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"layerstream\.default_model_path\(\) makes a copy"):
        resolve_model(DEFAULT_HUB_ID, weights=True)


def test_a_cached_default_model_goes_before_its_copy(network: Unreachable, tmp_path: Path) -> None:
    make_copy()
    snapshot = fabricate_cache(tmp_path / "hub", DEFAULT_HUB_ID)
    assert resolve_model(DEFAULT_HUB_ID, weights=True) == snapshot
