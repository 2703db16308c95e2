"""The project's documents as part of the page.

Markdown becomes HTML. Links lead to other documents on the page or become plain text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from markdown_it import MarkdownIt
from markdown_it.token import Token

from .elements import escape

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LOWER_HEADINGS = {"h2": "h4", "h3": "h5"}


def documents_view(documents: Mapping[str, str]) -> str:
    """Return each document, folded up.

    Args:
        documents: Markdown by name; links such as `exactness.md` lead to the document of that name.
    """
    return "".join(_document(name, text, documents) for name, text in documents.items())


def link_to(name: str, section: str, documents: Collection[str], about: str) -> str:
    """Return a link to a section of a document on the page; nothing if the document is not there.

    Args:
        name: name of the document.
        section: its heading, in lower case with hyphens.
        documents: names of the documents on the page.
        about: where it leads, for screen readers.
    """
    if name not in documents:
        return ""
    label = escape(f"Read more: {about}", quote=True)
    return f' <a href="#{_element_id(name, section)}" aria-label="{label}">Read more</a>'


def _element_id(name: str, section: str = "") -> str:
    return f"doc-{name}-{section}" if section else f"doc-{name}"


def _document(name: str, text: str, documents: Collection[str]) -> str:
    title, _, body = text.strip().removeprefix("# ").partition("\n")
    return (
        f'<details class="ls-document"><summary>{escape(title)}</summary>'
        f'<div class="ls-words" id="{_element_id(name)}">{_html(name, body, documents)}</div></details>'
    )


def _html(name: str, markdown: str, documents: Collection[str]) -> str:
    tokens = _MARKDOWN.parse(markdown)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type.startswith("heading"):
            token.tag = _LOWER_HEADINGS.get(token.tag, token.tag)
        if token.type == "heading_open" and following is not None:
            token.attrSet("id", _element_id(name, _slug(following.content)))
        if token.children:
            token.children = _with_local_links(token.children, documents)
    html = str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))
    return html.replace("<table>", '<div class="ls-wide"><table>').replace("</table>", "</table></div>")


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _with_local_links(tokens: list[Token], documents: Collection[str]) -> list[Token]:
    """Return `tokens` with links to documents pointing into the page; other links keep only their text."""
    kept, is_kept = [], True
    for token in tokens:
        if token.type == "link_open":
            target = re.fullmatch(r"(\w+)\.md(?:#(.*))?", str(token.attrGet("href") or ""))
            is_kept = target is not None and target[1] in documents
            if target is not None:
                token.attrSet("href", f"#{_element_id(target[1], target[2] or '')}")
        if is_kept or token.type not in ("link_open", "link_close"):
            kept.append(token)
    return kept
