"""The tree in docs/architecture.md names the files that exist, all of them and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "packages" / "layerstream" / "src" / "layerstream"


def files_of_the_tree(text: str) -> set[str]:
    """Return the paths that the tree under "The tree" lists: a folder's name ends with a slash, its files are indented deeper."""
    tree = text.split("## The tree")[1].split("```")[1]
    found, folder = set(), ""
    for indent, name in re.findall(r"^( +)(\S+(?:\.py|/))(?= |$)", tree, re.MULTILINE):
        if name.endswith("/"):
            folder = name
        elif len(indent) > 4:
            found.add(folder + name)
        else:
            found.add(name)
    return found


def test_the_tree_lists_every_file_and_no_other() -> None:
    there = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if path.name != "__init__.py"}
    assert files_of_the_tree((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")) == there


def test_every_decision_is_reached_from_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted((ROOT / "docs" / "decisions").glob("*.md")) if f"decisions/{path.name}" not in text] == []
