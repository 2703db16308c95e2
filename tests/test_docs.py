"""The documents point at things that exist and say nothing about the machine they were written on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
IMAGE = re.compile(r"<(?:img|source)[^>]+(?:src|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "packages/*/*.md", "apps/*/*.md")
    for path in ROOT.glob(pattern)
)


def anchors_of(path: Path) -> set[str]:
    titles = HEADING.findall(CODE.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def is_there(document: Path, target: str) -> bool:
    file_part, _, anchor = target.partition("#")
    path = (document.parent / file_part).resolve() if file_part else document
    return path.exists() and (not anchor or path.suffix != ".md" or anchor in anchors_of(path))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = CODE.sub("", document.read_text(encoding="utf-8"))
    targets = [
        target for target in LINK.findall(text) + IMAGE.findall(text) if not re.match(r"[a-z]+:", target)
    ]
    assert [target for target in targets if not is_there(document, target)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_somebodys_home(document: Path) -> None:
    found = re.findall(
        r"(?:/home/\w+|/Users/\w+|/root/|[A-Z]:\\Users)\S*", document.read_text(encoding="utf-8")
    )
    assert found == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_was_merged_halfway(document: Path) -> None:
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", document.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_links_of_a_document_are_really_checked(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A title, here\n")
    assert is_there(tmp_path / "a.md", "there.md#a-title-here")
    assert not is_there(tmp_path / "a.md", "there.md#another")
    assert not is_there(tmp_path / "a.md", "absent.md")
