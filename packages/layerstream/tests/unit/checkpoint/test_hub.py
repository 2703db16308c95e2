"""From names to directories: local ones, a fabricated Hub cache, and every refusal of the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import SafetensorsFileMetadata
from kit.fake_hub import FakeHub, fabricate_cache, metadata_of, raising, refused

from layerstream.checkpoint import hub_reach
from layerstream.checkpoint.hub import remote_checkpoint, resolve_adapter, resolve_foreign, resolve_model
from layerstream.checkpoint.index import open_checkpoint
from layerstream.errors import (
    CheckpointNotFoundError,
    ShardCorruptError,
    TensorMissingError,
    UnsupportedFormatError,
)
from layerstream.spec.options import LoadOptions

OFFLINE = LoadOptions(local_files_only=True)


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


def test_a_hub_url_is_the_id_at_its_revision(hub: FakeHub) -> None:
    hub.add("model.safetensors")
    assert resolve_model("hf://org/name@v2", weights=True) == hub.snapshot
    assert hub.asked[0]["revision"] == "v2"
    assert "model.safetensors" in hub.downloaded


def test_what_is_converted_and_adapters_are_not_read_from_other_urls() -> None:
    with pytest.raises(CheckpointNotFoundError, match="copy it here"):
        resolve_foreign("s3://bucket/model")
    with pytest.raises(CheckpointNotFoundError, match="copy it here"):
        resolve_adapter("s3://bucket/adapter", weights=True)


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
    with pytest.raises(UnsupportedFormatError, match="layerstream convert org/name TARGET"):
        resolve_model("org/name", weights=True)


def test_pickled_weights_are_fetched_to_be_converted(hub: FakeHub) -> None:
    directory = resolve_foreign("org/name")
    assert hub.downloaded == {*SMALL, "pytorch_model.bin"}
    assert (directory / "pytorch_model.bin").is_file()


def test_the_pickled_files_of_an_index_are_fetched_to_be_converted(hub: FakeHub) -> None:
    parts = {f"w{n}": f"pytorch_model-{n:05}-of-00002.bin" for n in (1, 2)}
    for part in (*parts.values(), "pytorch_model-00001-of-00003.bin"):
        hub.add(part, "{}")
    hub.add("pytorch_model.bin.index.json", json.dumps({"weight_map": parts}))
    resolve_foreign("org/name")
    assert hub.downloaded == {*SMALL, "pytorch_model.bin.index.json", *parts.values()}


def test_all_parts_of_the_gguf_file_that_is_named_are_fetched(hub: FakeHub) -> None:
    parts = {f"m.Q4_0-{n:05}-of-00002.gguf" for n in (1, 2)}
    for name in (*parts, "m.Q8_0.gguf"):
        hub.add(name, "{}")
    resolve_foreign("org/name", gguf_file="m.Q4_0-00001-of-00002.gguf")
    assert hub.downloaded == {*SMALL, *parts}


def test_a_repository_without_what_is_to_be_converted_says_how_to_name_it(hub: FakeHub) -> None:
    (hub.repository / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointNotFoundError, match="convert org/name TARGET --gguf-file NAME"):
        resolve_foreign("org/name")


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


def test_token_and_cache_directory_go_to_the_hub_with_every_request(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("model.safetensors")
    options = LoadOptions(revision="v1", token="secret", cache_dir=tmp_path)
    resolve_model("org/name", options, weights=True)
    assert hub.asked == [{"revision": "v1", "token": "secret", "cache_dir": tmp_path}] * 2


def test_of_a_subfolder_only_its_own_files_are_fetched_and_the_code_at_the_top(hub: FakeHub) -> None:
    for name in ("sub/config.json", "sub/tokenizer.json", "sub/deeper/config.json", "modeling_name.py"):
        hub.add(name, "{}")
    for name in ("model.safetensors", "sub/model.safetensors", "sub/deeper/model.safetensors"):
        hub.add(name)
    root = resolve_model("org/name", LoadOptions(subfolder="sub/"), weights=True)
    assert root == hub.snapshot
    assert hub.downloaded == {
        "modeling_name.py",
        "sub/config.json",
        "sub/tokenizer.json",
        "sub/model.safetensors",
    }


def test_of_a_variant_only_its_own_weights_are_fetched(hub: FakeHub) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors", "model.bf16-1.safetensors"):
        hub.add(name)
    weight_map = {"w in model.bf16-1.safetensors": "model.bf16-1.safetensors"}
    hub.add("model.safetensors.index.bf16.json", json.dumps({"weight_map": weight_map}))
    index = "model.safetensors.index.bf16.json"

    fp16 = resolve_model("org/name", LoadOptions(variant="fp16"), weights=True)
    assert hub.downloaded == {*SMALL, index, "model.fp16.safetensors"}
    assert set(open_checkpoint(fp16, variant="fp16").tensors) == {"w in model.fp16.safetensors"}

    bf16 = resolve_model("org/name", LoadOptions(variant="bf16"), weights=True)
    assert hub.downloaded == {*SMALL, index, "model.fp16.safetensors", "model.bf16-1.safetensors"}
    assert set(open_checkpoint(bf16, variant="bf16").tensors) == set(weight_map)


def test_a_variant_that_the_repository_lacks_is_named(hub: FakeHub) -> None:
    hub.add("model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=r"has no model\.fp8\.safetensors.*variant='fp8'"):
        resolve_model("org/name", LoadOptions(variant="fp8"), weights=True)


def test_the_headers_of_a_subfolders_variant_are_read_where_the_index_says(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_map = {"a": "1.safetensors", "b": "2.safetensors"}
    hub.add("sub/model.safetensors.index.fp16.json", json.dumps({"weight_map": weight_map}))
    asked = []

    def parse(name: str, file: str, *, revision: str | None, token: str | None) -> SafetensorsFileMetadata:
        asked.append((name, file, revision, token))
        return metadata_of(weight_map).files_metadata[file.removeprefix("sub/")]

    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", parse)
    options = LoadOptions(revision="v1", token="t", subfolder="sub", variant="fp16")
    checkpoint = remote_checkpoint("org/name", options)
    assert asked == [("org/name", f"sub/{number}.safetensors", "v1", "t") for number in (1, 2)]
    assert checkpoint.directory == hub.snapshot / "sub"
    assert checkpoint.tensors["b"].path == "https://huggingface.co/org/name/resolve/v1/sub/2.safetensors"


def test_a_remote_variant_that_does_not_exist_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(hub_errors.RemoteEntryNotFoundError)
    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", raising(error))
    with pytest.raises(CheckpointNotFoundError, match="variant='fp8'"):
        remote_checkpoint("org/name", LoadOptions(variant="fp8"))
