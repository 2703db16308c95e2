"""The tree in docs/architecture.md names the files that exist, all of them and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"The tree": "layerstream/src/layerstream", "Compare": "compare/src/layerstream_compare"}


def files_of_the_tree(text: str, heading: str) -> set[str]:
    """Return the paths in the tree under `heading`: a folder ends with a slash, its files stand deeper."""
    tree = text.split(f"## {heading}\n")[1].split("```")[1]
    found, folder = set(), ""
    for indent, name in re.findall(r"^( +)(\S+(?:\.py|/))(?= |$)", tree, re.MULTILINE):
        if name.endswith("/"):
            folder = name
        elif len(indent) > 4:
            found.add(folder + name)
        else:
            found.add(name)
    return found


@pytest.mark.parametrize(("heading", "package"), PACKAGES.items())
def test_the_tree_lists_every_file_and_no_other(heading: str, package: str) -> None:
    source = ROOT / "packages" / package
    there = {str(path.relative_to(source)) for path in source.rglob("*.py") if path.name != "__init__.py"}
    assert (
        files_of_the_tree((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), heading) == there
    )


def test_every_decision_is_reached_from_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [
        path.name
        for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))
        if f"decisions/{path.name}" not in text
    ] == []
