"""The project's documents, which are part of the page so that reading them needs no other server."""

from __future__ import annotations

from pathlib import Path

NAMES = ("measuring", "exactness", "performance", "glossary")
"""The documents on the page, in reading order."""

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "documents", _HERE / "../../../docs")
"""Where they are: next to this file in a Space's folder, in `docs` in a checkout."""


def read_documents() -> dict[str, str]:
    """Return the Markdown of each document by name; missing documents are left out."""
    found = {}
    for name in NAMES:
        for folder in _FOLDERS:
            if (path := folder / f"{name}.md").is_file():
                found[name] = path.read_text(encoding="utf-8")
                break
    return found
