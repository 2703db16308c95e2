"""The project's documents as parts of the page: Markdown becomes HTML, and links stay on the page or become plain words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from markdown_it import MarkdownIt
from markdown_it.token import Token

from .elements import escape

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LOWER = {"h2": "h4", "h3": "h5"}


def documents_view(documents: Mapping[str, str]) -> str:
    """Return each document, folded up.

    Args:
        documents: Markdown by name; links such as `exactness.md` lead to the document of that name.
    """
    return "".join(_document(name, text, documents) for name, text in documents.items())


def link_to(name: str, section: str, documents: Collection[str], about: str) -> str:
    """Return a link to a section of a document on the page; nothing where the document is not there.

    Args:
        name: the document's.
        section: its heading, in small letters with hyphens.
        documents: names of those that are there.
        about: what it leads to, for those who do not see what it stands at.
    """
    label = escape(f"Read on: {about}", quote=True)
    return (
        f' <a href="#{_place(name, section)}" aria-label="{label}">Read on</a>' if name in documents else ""
    )


def _place(name: str, section: str = "") -> str:
    return f"doc-{name}-{section}" if section else f"doc-{name}"


def _document(name: str, text: str, documents: Collection[str]) -> str:
    title, _, body = text.strip().removeprefix("# ").partition("\n")
    return (
        f'<details class="ls-document"><summary>{escape(title)}</summary>'
        f'<div class="ls-words" id="{_place(name)}">{_html(name, body, documents)}</div></details>'
    )


def _html(name: str, markdown: str, documents: Collection[str]) -> str:
    tokens = _MARKDOWN.parse(markdown)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type.startswith("heading"):
            token.tag = _LOWER.get(token.tag, token.tag)
        if token.type == "heading_open" and following is not None:
            token.attrSet("id", _place(name, _section(following.content)))
        if token.children:
            token.children = _links_on_the_page(token.children, documents)
    html = str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))
    return html.replace("<table>", '<div class="ls-wide"><table>').replace("</table>", "</table></div>")


def _section(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _links_on_the_page(tokens: list[Token], documents: Collection[str]) -> list[Token]:
    """Return `tokens` with links to documents of the page led there; all other links are left out, their words kept."""
    kept, is_kept = [], True
    for token in tokens:
        if token.type == "link_open":
            found = re.fullmatch(r"(\w+)\.md(?:#(.*))?", str(token.attrGet("href") or ""))
            is_kept = found is not None and found[1] in documents
            if found is not None:
                token.attrSet("href", f"#{_place(found[1], found[2] or '')}")
        if is_kept or token.type not in ("link_open", "link_close"):
            kept.append(token)
    return kept
