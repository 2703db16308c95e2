"""Print the figures of the house: rooms, floors, arrows, sizes, and what an import costs.

    python tests/house_figures.py [SOURCE_FOLDER PACKAGE]     by default packages/layerstream/src layerstream

A room is a folder of the package or a module at its root. An arrow leads from a room to one that it imports; floors are
the rooms on the longest path of arrows. Imports under `TYPE_CHECKING` do not count. Needs grimp (import-linter's graph).
"""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
from check_house import code_lines

ROOT = Path(__file__).resolve().parent.parent
IMPORTS_PER_FIGURE = 5


def main() -> None:
    """Print all figures as JSON."""
    source, package = (
        (Path(sys.argv[1]), sys.argv[2])
        if len(sys.argv) > 2
        else (ROOT / "packages/layerstream/src", "layerstream")
    )
    figures = {
        **room_figures(source, package),
        **code_figures(source / package),
        **import_figures(source, package),
    }
    print(json.dumps(figures, indent=2))


def room_figures(source: Path, package: str) -> dict[str, int]:
    """Return the number of rooms, arrows between them, and floors."""
    sys.path.insert(0, str(source))
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    arrows = {
        (room_of(importer, package), room_of(imported, package))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    arrows = {(one, other) for one, other in arrows if one != other and package not in (one, other)}
    rooms = {room_of(module, package) for module in graph.modules} - {package}
    return {
        "modules at the root": len([p for p in (source / package).glob("*.py") if p.name != "__init__.py"]),
        "folders": len({p.parent for p in (source / package).rglob("*.py")}) - 1,
        "rooms": len(rooms),
        "arrows between rooms": len(arrows),
        "floors": max(floor(room, arrows) for room in rooms),
    }


def room_of(module: str, package: str) -> str:
    """Return the room of a module: its first two names."""
    return ".".join(module.split(".")[:2]) if module != package else package


def floor(room: str, arrows: set[tuple[str, str]]) -> int:
    """Return the number of rooms on the longest path down from `room`, itself included."""
    return 1 + max((floor(below, arrows) for above, below in arrows if above == room), default=0)


def code_figures(folder: Path) -> dict[str, object]:
    """Return lines, dataclasses and the sizes of functions, in code lines."""
    sizes: list[int] = []
    lines = dataclasses = docstring_lines = 0
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8").splitlines()
        lines += len(text)
        for node in ast.walk(ast.parse("\n".join(text))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes.append(code_lines(node, text))
            if isinstance(node, ast.ClassDef):
                dataclasses += any("dataclass" in ast.dump(each) for each in node.decorator_list)
            docstring_lines += docstring_size(node)
    return {
        "lines": lines,
        "lines of docstrings": docstring_lines,
        "dataclasses": dataclasses,
        "functions": len(sizes),
        "code lines of a function, median": statistics.median(sizes),
        "code lines of a function, 90th percentile": statistics.quantiles(sizes, n=10)[-1],
    }


def docstring_size(node: ast.AST) -> int:
    """Return the lines of a node's docstring; 0 without one."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return 0
    if ast.get_docstring(node) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def import_figures(source: Path, package: str) -> dict[str, object]:
    """Return what `import package` takes in a fresh process: median CPU seconds over the bare interpreter's, and modules."""
    with_it, bare = (list(fresh_imports(source, program)) for program in (f"import {package}", "pass"))
    return {
        f"CPU seconds of import {package}": round(median_s(with_it) - median_s(bare), 3),
        f"modules of import {package}": with_it[0][1] - bare[0][1],
    }


def median_s(runs: list[tuple[float, int]]) -> float:
    """Return the median of the runs' seconds."""
    return statistics.median(seconds for seconds, _ in runs)


def fresh_imports(source: Path, program: str) -> Iterator[tuple[float, int]]:
    """Yield (CPU seconds, modules) of `program` in fresh processes; the first run, which may compile, is left out."""
    code = f"{program}\nimport sys, time; print(time.process_time(), len(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    for run in range(IMPORTS_PER_FIGURE + 1):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        seconds, modules = done.stdout.split()
        if run:
            yield float(seconds), int(modules)


if __name__ == "__main__":
    main()
