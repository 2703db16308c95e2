"""From names to directories: local ones, a fabricated Hub cache, and every refusal of the Hub."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from safetensors.numpy import save_file

from layerstream.checkpoint import hub_reach
from layerstream.checkpoint.hub import remote_checkpoint, resolve_model
from layerstream.checkpoint.index import open_checkpoint
from layerstream.errors import (
    CheckpointNotFoundError,
    ShardCorruptError,
    TensorMissingError,
    UnsupportedFormatError,
)
from layerstream.spec.options import LoadOptions

OFFLINE = LoadOptions(local_files_only=True)


class FakeHub:
    """One repository on disk; downloads copy what the patterns select, as `snapshot_download` does."""

    def __init__(self, repository: Path, snapshot: Path) -> None:
        """Serve `repository` into `snapshot`."""
        self.repository, self.snapshot = repository, snapshot
        self.asked: list[dict[str, Any]] = []
        repository.mkdir()

    def add(self, name: str, content: str | None = None) -> None:
        path = self.repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            save_file({f"w in {name}": np.zeros(3, np.float32)}, path)
        else:
            path.write_text(content)

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | Path | None,
        local_files_only: bool,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        self.asked.append({"revision": revision, "token": token, "cache_dir": cache_dir})
        self.snapshot.mkdir(exist_ok=True)
        for path in self.repository.rglob("*"):
            file = str(path.relative_to(self.repository))
            selected = any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            if (
                path.is_file()
                and selected
                and not any(fnmatch.fnmatch(file, pattern) for pattern in ignore_patterns)
            ):
                (self.snapshot / file).parent.mkdir(exist_ok=True)
                shutil.copy(path, self.snapshot / file)
        return str(self.snapshot)

    @property
    def downloaded(self) -> set[str]:
        return {str(path.relative_to(self.snapshot)) for path in self.snapshot.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_reach, "_last", hub_reach._Outcome())
    monkeypatch.setattr(hub_reach, "_ask_hub", lambda: None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A Hub with one repository that holds a config, a tokenizer, and many files that are not needed."""
    fake = FakeHub(tmp_path / "repository", tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    for name in (
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "merges.txt",
        "chat_template.jinja",
        "tokenizer.model",
    ):
        fake.add(name, "{}")
    for name in ("pytorch_model.bin", "README.md", "onnx/model.onnx", "original/config.json"):
        fake.add(name, "{}")
    fake.add("original/model.safetensors")
    return fake


SMALL = {
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
}


def raising(error: Exception) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function


def test_a_local_directory_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", raising(AssertionError("a request went to the Hub"))
    )
    assert resolve_model(str(tmp_path), weights=True) == tmp_path


@pytest.mark.parametrize(
    "name",
    ["/no/such/place", "./missing", "../missing", "~/missing-model", "a/b/c", "missing/", "C:\\models\\x"],
)
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", raising(AssertionError("a request went to the Hub"))
    )
    with pytest.raises(CheckpointNotFoundError, match="no directory"):
        resolve_model(name, weights=False)


def test_a_file_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        resolve_model(str(tmp_path / "model.safetensors"), weights=True)


def test_without_weights_only_small_files_are_fetched(hub: FakeHub) -> None:
    hub.add("model.safetensors")
    assert resolve_model("org/name", weights=False) == hub.snapshot
    assert hub.downloaded == SMALL


def test_the_single_file_is_fetched_and_no_other_copy_of_the_weights(hub: FakeHub) -> None:
    for name in ("model.safetensors", "consolidated.safetensors", "model.fp16.safetensors"):
        hub.add(name)
    resolve_model("org/name", weights=True)
    assert hub.downloaded == {*SMALL, "model.safetensors"}


def test_the_shards_that_the_index_names_are_fetched_and_no_others(hub: FakeHub) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"):
        hub.add(name)
    weight_map = {f"w in {name}": name for name in ("model-1.safetensors", "model-2.safetensors")}
    hub.add("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    directory = resolve_model("org/name", weights=True)
    assert hub.downloaded == {
        *SMALL,
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
    }
    assert set(open_checkpoint(directory).tensors) == set(weight_map)


def test_a_safetensors_file_of_another_name_is_fetched_when_there_is_nothing_else(hub: FakeHub) -> None:
    hub.add("weights.safetensors")
    resolve_model("org/name", weights=True)
    assert hub.downloaded == {*SMALL, "weights.safetensors"}


def test_a_repository_without_safetensors_is_refused_with_the_way_to_convert(hub: FakeHub) -> None:
    with pytest.raises(UnsupportedFormatError, match="spaces/safetensors/convert"):
        resolve_model("org/name", weights=True)


def refused(kind: type[hub_errors.HfHubHTTPError]) -> Exception:
    return kind("refused", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refused(hub_errors.RepositoryNotFoundError), "check the spelling"),
        (refused(hub_errors.RevisionNotFoundError), "revision 'v1'"),
        (refused(hub_errors.GatedRepoError), "hf auth login"),
        (refused(hub_errors.HfHubHTTPError), "check the network"),
        (hub_errors.LocalEntryNotFoundError("not cached"), "local cache"),
        (hub_errors.OfflineModeIsEnabled("offline"), "offline"),
        (hub_errors.HFValidationError("bad id"), "neither a directory nor a Hub id"),
        (hub_errors.HfHubHTTPError.__bases__[0]("connection refused"), "check the network"),
        (TimeoutError("too slow"), "too slow"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_refusal_of_the_hub_is_one_clear_error(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(CheckpointNotFoundError, match=says) as caught:
        resolve_model("org/name", LoadOptions(revision="v1"), weights=True)
    assert "org/name" in str(caught.value)
    assert caught.value.__cause__ is error


def test_an_invalid_id_is_refused_by_the_real_hub_library() -> None:
    with pytest.raises(CheckpointNotFoundError, match="neither a directory nor a Hub id"):
        resolve_model("org/na me?", weights=False)


def fabricate_cache(home: Path) -> Path:
    """Lay out one revision as huggingface_hub does: a ref, a snapshot of links, blobs."""
    repository = home / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "blobs" / "c0").write_text("{}")
    save_file({"w": np.arange(3, dtype=np.float32)}, repository / "blobs" / "e1")
    (snapshot / "config.json").symlink_to("../../blobs/c0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/e1")
    return snapshot


def test_a_cached_model_is_found_offline_by_the_real_hub_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = fabricate_cache(tmp_path)
    directory = resolve_model("org/name", OFFLINE, weights=True)
    assert directory == snapshot
    assert set(open_checkpoint(directory, name="org/name").tensors) == {"w"}


def test_an_uncached_model_is_not_found_offline_by_the_real_hub_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointNotFoundError, match="local cache"):
        resolve_model("org/name", OFFLINE, weights=False)


def test_missing_weights_in_the_cache_are_reported_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    (fabricate_cache(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="weights of 'org/name' are not in the local cache"):
        resolve_model("org/name", OFFLINE, weights=True)


def metadata_of(weight_map: dict[str, str], dtype: str = "BF16") -> SafetensorsRepoMetadata:
    files = {
        file: SafetensorsFileMetadata(
            metadata={}, tensors={tensor: TensorInfo(dtype=dtype, shape=[2, 3], data_offsets=(0, 12))}
        )
        for tensor, file in weight_map.items()
    }
    return SafetensorsRepoMetadata(
        metadata={"total_size": 24}, sharded=True, weight_map=weight_map, files_metadata=files
    )


def test_a_remote_checkpoint_is_listed_from_headers_alone(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = metadata_of({"a": "1.safetensors", "b": "2.safetensors"})
    monkeypatch.setattr(
        huggingface_hub, "get_safetensors_metadata", lambda name, *, revision, token: metadata
    )
    checkpoint = remote_checkpoint("org/name", LoadOptions(revision="v1"))
    assert (checkpoint.name, checkpoint.directory, checkpoint.shards) == (
        "org/name",
        hub.snapshot,
        ("1.safetensors", "2.safetensors"),
    )
    assert checkpoint.metadata == {"total_size": 24}
    b = checkpoint.tensors["b"]
    assert (b.dtype, b.shape, b.num_bytes) == ("bfloat16", (2, 3), 12)
    assert b.path == "https://huggingface.co/org/name/resolve/v1/2.safetensors"
    assert hub.downloaded == SMALL


def test_a_remote_header_is_checked_like_a_local_one(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = metadata_of({"a": "1.safetensors"}, dtype="F32")
    monkeypatch.setattr(
        huggingface_hub, "get_safetensors_metadata", lambda name, *, revision, token: metadata
    )
    with pytest.raises(ShardCorruptError, match=r"24 bytes.*12") as caught:
        remote_checkpoint("org/name")
    assert caught.value.path.endswith("1.safetensors")


def test_a_remote_index_that_names_an_unknown_tensor_is_refused(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = metadata_of({"a": "1.safetensors"})
    metadata.weight_map["ghost"] = "1.safetensors"
    monkeypatch.setattr(
        huggingface_hub, "get_safetensors_metadata", lambda name, *, revision, token: metadata
    )
    with pytest.raises(TensorMissingError) as caught:
        remote_checkpoint("org/name")
    assert caught.value.names == ("ghost",)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (hub_errors.NotASafetensorsRepoError("only bin"), UnsupportedFormatError),
        (hub_errors.SafetensorsParsingError("bad header"), ShardCorruptError),
        (refused(hub_errors.GatedRepoError), CheckpointNotFoundError),
        (hub_errors.OfflineModeIsEnabled("offline"), CheckpointNotFoundError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_refusal_of_headers_is_one_clear_error(
    error: Exception, kind: type[Exception], hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", raising(error))
    with pytest.raises(kind, match="org/name") as caught:
        remote_checkpoint("org/name")
    assert caught.value.__cause__ is error
