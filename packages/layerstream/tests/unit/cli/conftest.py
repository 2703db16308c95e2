"""What tests of the command line share."""

from __future__ import annotations

import pytest


@pytest.fixture
def quiet_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the terminal be 120 columns wide, and show no colours."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
