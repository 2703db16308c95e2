"""Assemble the folders from which the three packages are built for a package index.

Usage: `python packages/assemble.py FOLDER [--url REPOSITORY]`. A package's own folder lacks what lies
elsewhere in the repository: the license, and the documents that the app shows. Its README has links to files,
and installs from a checkout; neither works on the page of a package index. The assembled folder of each
package, FOLDER/NAME, has all this put right, and no tests.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "layerstream": ROOT / "packages" / "layerstream" / "src" / "layerstream",
    "layerstream-compare": ROOT / "packages" / "compare" / "src" / "layerstream_compare",
    "layerstream-space": ROOT / "apps" / "space" / "layerstream_space",
}
"""The Python package of each project, in the order in which they depend on one another."""

LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
FRONT_MATTER = re.compile(r"\A---\n.*?^---\n+", re.MULTILINE | re.DOTALL)
EDITABLE = re.compile(r"-e ([\w/]+)")


def project_folder(name: str) -> Path:
    """Return the folder that holds a project's pyproject.toml."""
    return next(
        parent for parent in SOURCES[name].parents if (parent / "pyproject.toml").exists() and parent != ROOT
    )


def version_of(name: str) -> str:
    """Return a project's version, which its package's `__init__.py` alone says."""
    text = (SOURCES[name] / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert found, f"{SOURCES[name]}/__init__.py has no __version__"
    return found[1]


def index_readme(text: str, *, folder: Path, files_url: str) -> str:
    """Return a README as a package index can show it.

    Args:
        text: the README of the project in `folder`.
        folder: what its relative links start from.
        files_url: the address of the repository's root for the links; without one, a link becomes its text.
    """

    def link(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        target = (folder / path).resolve().relative_to(ROOT).as_posix()
        return f"[{match[1]}]({files_url}/{target}{'#' * bool(anchor)}{anchor})" if files_url else match[1]

    def installation(match: re.Match[str]) -> str:
        names = {project_folder(name).relative_to(ROOT).as_posix(): name for name in SOURCES}
        return EDITABLE.sub(lambda each: names[each[1]], match[0]).replace("-c constraints.txt ", "")

    text = LINK.sub(link, FRONT_MATTER.sub("", text))
    return re.sub(r"^pip install .*$", installation, text, flags=re.MULTILINE)


def assemble(name: str, folder: Path, *, url: str) -> None:
    """Write what one project is built from to `folder`; `url` is the repository's, or empty."""
    project, source = project_folder(name), SOURCES[name]
    files_url = f"{url}/blob/v{version_of(name)}" if url else ""
    copied = folder / source.relative_to(project)
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    readme = (project / "README.md").read_text(encoding="utf-8")
    readme = index_readme(readme, folder=project, files_url=files_url)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    metadata = (project / "pyproject.toml").read_text(encoding="utf-8")
    if url:
        metadata += f'\n[project.urls]\nRepository = "{url}"\nChangelog = "{files_url}/CHANGELOG.md"\n'
    (folder / "pyproject.toml").write_text(metadata, encoding="utf-8")
    tomllib.loads(metadata)
    if name == "layerstream-space":
        (copied / "documents").mkdir()
        for path in (ROOT / "docs").glob("*.md"):
            shutil.copy(path, copied / "documents" / path.name)


def main() -> None:
    """Assemble every project."""
    parser = argparse.ArgumentParser(description="Assemble the folders from which the packages are built.")
    parser.add_argument("folder", type=Path, help="where to; anything that is there is replaced")
    parser.add_argument("--url", default="", help="the repository's address, for links and project URLs")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    for name in SOURCES:
        assemble(name, options.folder / name, url=options.url.rstrip("/"))
    sys.stdout.write(f"assembled {', '.join(SOURCES)} in {options.folder}\n")


if __name__ == "__main__":
    main()
