"""The README stays short, and its badges say what the packages declare."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BADGE = re.compile(r"img\.shields\.io/badge/(\w+)-(.+?)-blue")


def test_the_readme_has_at_most_900_words() -> None:
    assert len(README.split()) <= 900


def test_the_badges_of_the_readme_are_true() -> None:
    project = tomllib.loads((ROOT / "packages/layerstream/pyproject.toml").read_text())["project"]
    transformers = next(each for each in project["dependencies"] if each.startswith("transformers"))
    badges = {name: unquote(value).replace("--", "-") for name, value in BADGE.findall(README)}
    assert badges == {
        "python": project["requires-python"].removeprefix(">=") + "+",
        "transformers": transformers.removeprefix("transformers"),
        "license": project["license"],
    }
