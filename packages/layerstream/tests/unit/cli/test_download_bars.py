"""The Hub's progress bars are shown while weights are downloaded, and at no other time."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

from layerstream.cli import quiet_hub
from layerstream.errors import CheckpointNotFoundError
from layerstream.spec.options import LoadOptions


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, True), (True, False), (False, True)])
def test_bars_are_shown_on_a_terminal_only_and_end_with_the_download(
    is_terminal: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    disabled: list[bool] = []

    def fail(*arguments: object, **options: object) -> Path:
        disabled.append(are_progress_bars_disabled())
        raise CheckpointNotFoundError("gone")

    monkeypatch.setattr(quiet_hub, "downloads", lambda *_: True)
    monkeypatch.setattr(quiet_hub, "resolve_model", fail)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    disable_progress_bars()
    with pytest.raises(CheckpointNotFoundError):
        quiet_hub.download_weights("org/model", LoadOptions(), shown=shown)
    assert disabled == [not (is_terminal and shown)]
    assert are_progress_bars_disabled()


def test_a_directory_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet_hub, "resolve_model", lambda *_, **__: pytest.fail("asked the Hub"))
    quiet_hub.download_weights(str(tmp_path), LoadOptions(), shown=True)


def test_a_smaller_model_that_drafts_is_downloaded_too_at_its_own_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(quiet_hub, "downloads", lambda *_: True)
    monkeypatch.setattr(
        quiet_hub, "resolve_model", lambda name, options, **_: asked.append((name, options.revision))
    )
    for draft in ("org/small", "int8", "lookup", "auto"):
        quiet_hub.download_weights("org/large", LoadOptions(revision="v2", draft=draft), shown=False)
    assert asked == [("org/large", "v2"), ("org/small", None), *[("org/large", "v2")] * 3]
