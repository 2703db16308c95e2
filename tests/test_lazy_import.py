"""An import costs what is used: only names that need torch and transformers load them."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import layerstream as ls

WITHOUT_TORCH = ("bytes_by_precision", "simulate", *(name for name in ls.__all__ if name.endswith("Error")))
ROOMS_WITHOUT_TORCH = (
    "layerstream.spec",
    "layerstream.planning",
    "layerstream.errors",
    "layerstream.checkpoint",
)
HEAVY = ("torch", "transformers", "accelerate", "numpy")
COMMANDS = ("layerstream", "layerstream_compare", "layerstream_space")
NOT_FOR_HELP = (*HEAVY, "bitsandbytes", "gradio", "huggingface_hub", "httpx", "safetensors", "pandas")


def run_fresh(program: str, *arguments: str) -> str:
    """Return what `program` prints in a fresh process in which torch and transformers cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_layerstream_loads_few_modules() -> None:
    program = "import sys; before = len(sys.modules); import layerstream; print(len(sys.modules) - before)"
    assert int(run_fresh(program)) < 20


def test_values_errors_and_planning_load_without_torch() -> None:
    names = [*WITHOUT_TORCH, *(name for name in ls.__all__ if room_of(name).startswith(ROOMS_WITHOUT_TORCH))]
    assert len(names) > 30
    run_fresh(f"import layerstream as ls\nfor name in {names!r}: getattr(ls, name)")


def room_of(name: str) -> str:
    """Return the module that defines a public name."""
    return str(getattr(getattr(ls, name), "__module__", ""))


def test_a_saved_profile_is_planned_without_torch(tiny_llama_dir: Path, tmp_path: Path) -> None:
    profile = ls.profile_model(tiny_llama_dir, device="cuda")
    card = ls.Machine(device="cuda:0", device_memory_bytes=2**30, host_memory_bytes=2**32, measured=False)
    (tmp_path / "profile.json").write_text(json.dumps(profile.to_dict()))
    (tmp_path / "machine.json").write_text(json.dumps(card.to_dict()))
    program = """
import json, sys
from pathlib import Path
import layerstream as ls
profile, machine = (json.loads(Path(path).read_text()) for path in sys.argv[1:])
plan = ls.simulate(ls.ModelProfile.from_dict(profile), machine=ls.Machine.from_dict(machine), budget="min")
print(json.dumps(plan.to_dict()))
"""
    printed = run_fresh(program, str(tmp_path / "profile.json"), str(tmp_path / "machine.json"))
    assert ls.PlacementPlan.from_dict(json.loads(printed)) == ls.simulate(profile, machine=card, budget="min")


def test_the_three_lists_of_exports_agree() -> None:
    tree = ast.parse(inspect.getsource(ls))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {
        (f".{node.module}", alias.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {(module, name) for module, names in ls._EXPORTS.items() for name in names}
    assert imports == table
    assert {name for _, name in table} == set(ls.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'layerstream' has no attribute 'lod'"):
        ls.lod  # noqa: B018
    assert set(ls.__all__) <= set(dir(ls))


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_commands_help_loads_no_library_that_only_its_work_needs(module: str, option: str) -> None:
    program = f"""
import json, runpy, sys
sys.argv[1:] = [{option!r}]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert module.replace("_", "-") in done.stdout
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert loaded.isdisjoint(NOT_FOR_HELP)
