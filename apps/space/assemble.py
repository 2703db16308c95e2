"""Assemble the folder for a Space's repository: the app, this project's packages, and the documents it shows.

Usage: `python apps/space/assemble.py FOLDER`. A Space's builder installs requirements.txt before the rest of
the repository is there, so it cannot install this project's packages. They lie beside app.py, where Python
finds them.
"""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = (
    ROOT / "packages" / "layerstream" / "src" / "layerstream",
    ROOT / "packages" / "compare" / "src" / "layerstream_compare",
    HERE / "layerstream_space",
)
PROJECTS = (ROOT / "packages" / "layerstream", ROOT / "packages" / "compare", HERE)
FILES = ("app.py", "README.md", "requirements.txt")
HEAD = "# Written by assemble.py from the requirements of this project's packages.\n"


def requirements() -> str:
    """Return requirements.txt: what the three packages need, except one another."""
    needed: dict[str, str] = {}
    for project in PROJECTS:
        metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        for line in metadata["project"]["dependencies"]:
            name = re.split(r"[<>=!~\[ ]", line)[0]
            if not name.startswith("layerstream"):
                needed.setdefault(name, line)
    return HEAD + "".join(f"{line}\n" for line in needed.values())


def assemble(folder: Path) -> None:
    """Write the Space's folder and replace anything that is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(HERE / name, folder / name)
    for package in PACKAGES:
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    documents = folder / "layerstream_space" / "documents"
    documents.mkdir()
    for path in (ROOT / "docs").glob("*.md"):
        shutil.copy(path, documents / path.name)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")


if __name__ == "__main__":
    (HERE / "requirements.txt").write_text(requirements(), encoding="utf-8")
    assemble(Path(sys.argv[1]))
    sys.stdout.write(f"assembled {sys.argv[1]}\n")
