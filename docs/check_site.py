"""Check the built site: it asks no other server for anything, and every link and picture of it is there.

MkDocs checks the links of the sources; this checks what came out, the pages made from docstrings included.

    python docs/check_site.py build/site
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent


class PageParser(HTMLParser):
    """Collects what a page links to, what it loads, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Take the addresses and the name of one element."""
        given = {name: value for name, value in attributes if value}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "modulepreload"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


def main(site: Path) -> int:
    """Print every complaint and return the exit status."""
    made = [path for path in sorted(site.rglob("*.html")) if not is_copied(path, site)]
    pages = {path: parse(path) for path in made if path.name != "404.html"}  # it has absolute links
    found = [
        f"{page.relative_to(site)}: {complaint}" for page in pages for complaint in complaints(page, pages)
    ]
    sys.stdout.writelines(f"{each}\n" for each in found)
    sys.stdout.write(f"{len(pages)} pages, {len(found)} complaints\n")
    return 1 if found or not pages else 0


def is_copied(page: Path, site: Path) -> bool:
    """Whether a page is a file of the repository as it is, such as a report of a benchmark."""
    outside = site / "repository"
    return page.is_relative_to(outside) and (ROOT / page.relative_to(outside)).is_file()


def parse(path: Path) -> PageParser:
    """Return what is in one page."""
    parser = PageParser()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def complaints(page: Path, pages: dict[Path, PageParser]) -> Iterator[str]:
    """Yield what is wrong with one page."""
    for address in pages[page].loaded:
        if urlsplit(address).netloc:
            yield f"loads {address} from another server"
    for address in pages[page].links + pages[page].loaded:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists():
            yield f"{address} is not there"
        elif parts.fragment and target in pages and not has_anchor(pages[target], parts.fragment):
            yield f"{address}: there is no such place on that page"


def has_anchor(page: PageParser, fragment: str) -> bool:
    """Whether a page has a place of this name; `__` names belong to the theme."""
    return unquote(fragment) in page.anchors or fragment.startswith("__")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
