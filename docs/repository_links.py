"""A hook of MkDocs: links from a page to a file outside `docs/` work in the site too.

The documents link to results, pictures, tests and sources by relative paths, which work on a code host and in
an editor. The site has no address of a repository to send readers to, so it carries what is linked to, below
`repository/`:

- a Markdown file becomes a page, and what it links to is treated in the same way;
- a Python file becomes a page with its source, but only if a page of `docs/` links to it;
- pictures, JSON and HTML files are copied as they are;
- a link to anything else (a folder, say) becomes its text, and so does a picture of another server (a badge).

Nothing below `repository/` is in the navigation, and the search leaves it out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "repository"
LINK = re.compile(
    r"(?P<code>^(?P<fence>`{3,}).*?^(?P=fence)|`[^`\n]+`(?!\]))"
    r"|(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
SOURCE = re.compile(r"(?P<before><(?:img|source)[^>]+(?:src|srcset)=\")(?P<target>[^\"]+)(?=\")")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
UNLISTED = InclusionLevel.NOT_IN_NAV
COPIED = (".svg", ".png", ".html", ".json")

carried: dict[str, str] = {}
"""The path in the repository of each file that is carried along, by its path in the site's sources."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of the repository that a page of `docs/` links to, and what those link to."""
    carried.clear()
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for document in waiting:
        for target in targets_of((ROOT / document).read_text(encoding="utf-8"), document):
            if is_carried(target, document) and site_path(target) not in carried:
                carried[site_path(target)] = target
                files.append(carried_file(target, config))
                if target.endswith(".md"):
                    waiting.append(target)
    return files


def carried_file(target: str, config: MkDocsConfig) -> File:
    """Return a file of the repository as a file of the site."""
    path = ROOT / target
    if target.endswith(COPIED):
        return File.generated(config, site_path(target), abs_src_path=str(path), inclusion=UNLISTED)
    text = path.read_text(encoding="utf-8")
    if target.endswith(".py"):
        text = f"# {path.name}\n\n`{target}`\n\n````python\n{text}````\n"
    hidden = "---\nsearch:\n  exclude: true\n---\n"
    return File.generated(
        config, site_path(target), content=hidden + FRONT_MATTER.sub("", text), inclusion=UNLISTED
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with its links as they are in the site."""
    document = carried.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    markdown = LINK.sub(lambda found: link_in_site(found, document), markdown)
    return SOURCE.sub(lambda found: found["before"] + target_in_site(found["target"], document), markdown)


def link_in_site(found: re.Match[str], document: str) -> str:
    """Return one link as it is in the site; code stays as it is."""
    if found["picture"] and found["target"].startswith("http"):
        return found["text"]
    if found["code"] or not is_outside_or_carried(found["target"], document):
        return found[0]
    target = repository_path(found["target"], document)
    if is_in_docs(target) or site_path(target) in carried:
        return f"{found['picture']}[{found['text']}]({target_in_site(found['target'], document)})"
    return found["text"]


def target_in_site(link: str, document: str) -> str:
    """Return the target of a link from `document` as it is in the site."""
    if not is_outside_or_carried(link, document):
        return link
    path, mark, anchor = link.partition("#")
    target = site_path(repository_path(path, document))
    return posixpath.relpath(target, posixpath.dirname(site_path(document)) or ".") + mark + anchor


def is_outside_or_carried(link: str, document: str) -> bool:
    """Whether a link leaves `docs/`, or stands in a document that is not in `docs/`."""
    if re.match(r"[a-z]+:|#", link):
        return False
    return not (is_in_docs(document) and is_in_docs(repository_path(link, document)))


def is_in_docs(target: str) -> bool:
    """Whether a path of the repository is a page or a picture of the site as it is."""
    return target.startswith("docs/") and not target.endswith(".py")


def repository_path(link: str, document: str) -> str:
    """Return the path in the repository that a link of `document` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), link.partition("#")[0]))


def site_path(target: str) -> str:
    """Return where a file of the repository is in the site's sources."""
    if is_in_docs(target):
        return target.removeprefix("docs/")
    return f"{OUTSIDE}/{target}" + (".md" if target.endswith(".py") else "")


def targets_of(text: str, document: str) -> Iterable[str]:
    """Yield the paths in the repository that a document's links lead to outside `docs/`."""
    links = [found["target"] for found in LINK.finditer(text) if not found["code"]]
    for link in links + [found["target"] for found in SOURCE.finditer(text)]:
        if is_outside_or_carried(link, document):
            target = repository_path(link, document)
            if not is_in_docs(target):
                yield target


def is_carried(target: str, document: str) -> bool:
    """Whether the site carries a file of the repository that `document` links to."""
    wanted = target.endswith((*COPIED, ".md")) or (target.endswith(".py") and document.startswith("docs/"))
    return wanted and (ROOT / target).is_file()
