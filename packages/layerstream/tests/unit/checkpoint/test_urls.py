"""What a name with a scheme refers to, and where its copy lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerstream.checkpoint.urls import check_url, copy_folder, hub_place, is_url
from layerstream.errors import CheckpointNotFoundError, PlanError
from layerstream.spec.options import LoadOptions


@pytest.mark.parametrize("name", ["s3://bucket/model", "https://host/model", "file:///shared/model"])
def test_urls_are_told_from_other_names(name: str) -> None:
    assert is_url(name)


@pytest.mark.parametrize(
    "name", ["organisation/model", "/folder/model", "./model", "hf://organisation/model", "C:/model"]
)
def test_directories_and_names_of_the_hub_are_no_urls(name: str) -> None:
    assert not is_url(name)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("hf://organisation/model", None),
        ("hf://organisation/model@v1.0", "v1.0"),
        ("hf://organisation/model@refs%2Fpr%2F1", "refs/pr/1"),
    ],
)
def test_a_hub_url_is_an_id_and_a_revision(name: str, revision: str | None) -> None:
    place, options = hub_place(name, LoadOptions(variant="fp16"))
    assert (place, options.revision, options.variant) == ("organisation/model", revision, "fp16")


def test_other_names_are_left_alone() -> None:
    options = LoadOptions(revision="main")
    assert hub_place("organisation/model", options) == ("organisation/model", options)


def test_a_revision_that_contradicts_the_url_is_refused_unless_a_job_pinned_it() -> None:
    with pytest.raises(PlanError, match="contradict"):
        hub_place("hf://organisation/model@v1", LoadOptions(revision="v2"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    _, options = hub_place("hf://organisation/model@v1", LoadOptions(revision=commit))
    assert options.revision == commit


@pytest.mark.parametrize(
    "name", ["hf://model", "hf://", "hf://datasets/organisation/rows", "hf://organisation/model/inner"]
)
def test_a_hub_url_without_a_model_is_refused(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="hf://organisation/model"):
        hub_place(name, LoadOptions())


def test_a_revision_with_a_slash_is_told_how_to_write_it() -> None:
    with pytest.raises(CheckpointNotFoundError, match="%2F for each / in the revision"):
        hub_place("hf://organisation/model@refs/pr/1", LoadOptions())


def test_a_user_name_that_a_driver_needs_is_kept() -> None:
    assert check_url("sftp://someone@host/model") == "sftp://someone@host/model"


def test_every_url_has_a_folder_of_its_own_that_a_person_recognizes(tmp_path: Path) -> None:
    urls = [
        "s3://one/models/llama",
        "s3://two/models/llama",
        "gs://one/models/llama",
        "s3://one/models/ll ama",
    ]
    folders = [copy_folder(url, tmp_path) for url in urls]
    assert len(set(folders)) == len(urls)
    assert all(folder.parent == tmp_path for folder in folders)
    assert folders[0].name.startswith("s3-models-llama-")
    assert copy_folder(urls[0] + "/", tmp_path) == folders[0]


def test_a_url_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    assert copy_folder("file:///../..", tmp_path).parent == tmp_path


def test_slashes_at_the_end_do_not_count() -> None:
    assert check_url("s3://bucket/model//") == "s3://bucket/model"
