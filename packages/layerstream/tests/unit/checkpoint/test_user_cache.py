"""The user's cache has one place, for every kind of file in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerstream import machine
from layerstream.checkpoint.user_cache import cache_directory


def test_the_cache_is_in_the_users_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "layerstream"
    assert machine._rates_file() == tmp_path / "layerstream" / "machine.json"


@pytest.mark.parametrize("value", ["somewhere", ""])
def test_a_relative_cache_home_is_ignored_as_the_specification_says(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_directory() == Path.home() / ".cache" / "layerstream"
    assert machine._rates_file().parent == cache_directory()
