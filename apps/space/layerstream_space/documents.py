"""The project's documents that the page carries whole, so that reading on asks nobody else's server."""

from __future__ import annotations

from pathlib import Path

NAMES = ("measuring", "exactness", "performance", "glossary")
"""Which ones, in the order of reading."""

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "documents", _HERE / "../../../docs")
"""In a Space's folder they lie beside this file, in a checkout among the others."""


def read_documents() -> dict[str, str]:
    """Return the Markdown of each document by its name; of those that are not there, none."""
    found = {}
    for name in NAMES:
        for folder in _FOLDERS:
            if (path := folder / f"{name}.md").is_file():
                found[name] = path.read_text(encoding="utf-8")
                break
    return found
