"""Sizes of the house: no file grows into an attic, no function into a knot.

Run by `nox -s check`; prints what is too large and exits with 1. A function's lines are counted without its
docstring, blank lines and comments, since those are what makes a long one bearable.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("packages", "apps", "tests", "benchmarks", "examples")
FILE_LINES = 400
FUNCTION_LINES = 40
EXAMPLE_LINES = 40
PRIVATE_NAMES_LIVE_IN = "compat.py"


def main() -> int:
    """Print every complaint and return the exit status."""
    complaints = [complaint for path in house_files() for complaint in complaints_about(path)]
    for complaint in complaints:
        print(complaint)
    print(f"{len(complaints)} complaints about sizes" if complaints else "sizes are fine")
    return 1 if complaints else 0


def house_files() -> Iterator[Path]:
    """Yield every Python file of the repository that is ours."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(
                part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts
            ):
                yield path


def complaints_about(path: Path) -> Iterator[str]:
    """Yield what is wrong with one file."""
    where = path.relative_to(ROOT)
    lines = path.read_text(encoding="utf-8").splitlines()
    limit = EXAMPLE_LINES if where.parts[0] == "examples" and "tests" not in where.parts else FILE_LINES
    if len(lines) > limit:
        yield f"{where}: {len(lines)} lines, {limit} at most"
    tree = ast.parse("\n".join(lines))
    in_library = "src" in where.parts or where.parts[0] == "apps"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = code_lines(node, lines)
            if size > FUNCTION_LINES:
                yield f"{where}:{node.lineno}: {node.name} has {size} code lines, {FUNCTION_LINES} at most"
        elif in_library and isinstance(node, ast.ImportFrom) and path.name != PRIVATE_NAMES_LIVE_IN:
            yield from private_imports(node, where)


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Return the lines of a function that hold code, its docstring and its `def` included in neither."""
    first = node.body[0]
    has_docstring = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    begin = first.end_lineno if has_docstring and first.end_lineno else first.lineno - 1
    body = lines[begin : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in body)


def private_imports(node: ast.ImportFrom, where: Path) -> Iterator[str]:
    """Yield imports of names that transformers keeps to itself or moves between versions."""
    module = node.module or ""
    if module.split(".")[0] != "transformers":
        return
    hidden = [alias.name for alias in node.names if alias.name.startswith("_")]
    if hidden or module.split(".")[1:2] in (["core_model_loading"], ["conversion_mapping"], ["integrations"]):
        yield f"{where}:{node.lineno}: {module} is for architecture/{PRIVATE_NAMES_LIVE_IN} alone"


if __name__ == "__main__":
    sys.exit(main())
