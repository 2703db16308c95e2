"""What the pages of the documentation show is executed, and what they quote is said.

Each page is run from top to bottom in an empty directory, its Python in one namespace.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from functools import cache, partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from document_blocks import (
    CHECKED_ONLY,
    ROOT,
    SHELL,
    blocks_of,
    command_lines,
    commands_of,
    defined_sessions,
    is_program,
    missing_folders,
    run_blocks,
    sessions_of,
    with_tiny_model,
)
from kit.adapters import KINDS, save_adapter
from transformers import AutoModelForCausalLM

import layerstream
import layerstream_compare
from layerstream_compare import variants
from layerstream_compare.variants import registry

PAGES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
COMMANDS = commands_of(*PAGES)
MADE = re.compile(r"<!-- made by (docs/\w+\.py) -->\n(.*?)<!-- end -->", re.DOTALL)


@pytest.fixture(scope="session")
def adapter_dir(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LoRA for the tiny Llama, as peft saves it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own; see kit.adapters
        return save_adapter(model, KINDS["lora"], tmp_path_factory.mktemp("adapter"))


@pytest.mark.timeout(600)  # a page may start a process for each case of a comparison
@pytest.mark.filterwarnings("ignore::UserWarning")  # a forward beyond its workload warns, as the page says
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks for what transformers has renamed
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_runs(
    page: Path, tiny_llama_dir: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("layerstream.cli.backend.default_model_path", lambda on_fetch: tiny_llama_dir)
    replace = partial(with_tiny_model, model=tiny_llama_dir, adapter=adapter_dir)
    run_blocks(blocks_of(page), replace, page.stem)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_page_is_run_or_checked(page: Path) -> None:
    shown = [block for block in blocks_of(page) if block.language in SHELL and block.is_executed]
    lines = [line for block in shown for line in command_lines(block)]
    assert [line for line in lines if not is_program(line) and not line.startswith(CHECKED_ONLY)] == []


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.startswith(("nox ", "python3 noxfile.py"))]
)
def test_a_session_that_a_page_names_exists(command: str) -> None:
    named = sessions_of(command)
    assert named
    assert set(named) <= set(defined_sessions())


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("pip install")])
def test_what_a_page_installs_from_here_is_here(command: str) -> None:
    assert missing_folders(command) == []


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("python -m")])
def test_a_module_that_a_page_runs_exists(command: str) -> None:
    path = command.split()[2].replace(".", "/")
    assert list(ROOT.glob(f"packages/*/src/{path}")) + list(ROOT.glob(f"apps/*/{path}"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_what_its_scripts_print(page: Path) -> None:
    for script, shown in MADE.findall(page.read_text(encoding="utf-8")):
        done = subprocess.run(
            [sys.executable, str(ROOT / script)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.stdout.strip() == shown.strip(), f"run {script} again, and put its output into the page"


@cache
def texts_of_the_source() -> str:
    """Return every text in the packages' sources, the constant parts of f-strings apart."""
    found = []
    for path in ROOT.glob("packages/*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def quoted_messages() -> list[str]:
    """Return the messages that the pages quote: the lines of `text` blocks that begin with `error: `."""
    quoted = [
        block.code
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "text" and not block.title
    ]
    return [" ".join(code.split()) for code in quoted if code.startswith("error: ")]


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_that_a_page_quotes_is_in_the_source(message: str) -> None:
    parts = [part.strip() for part in message.removeprefix("error: ").split("…")]
    assert [part for part in parts if part not in texts_of_the_source()] == []


def test_pages_quote_messages() -> None:
    assert len(quoted_messages()) > 5


@pytest.mark.parametrize("package", [layerstream, layerstream_compare], ids=lambda each: each.__name__)
def test_every_public_name_is_on_a_reference_page(package: object) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    shown = re.findall(rf"^::: {package.__name__}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(set(package.__all__) - set(shown)) == []
    assert len(set(shown)) == len(shown)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    documents = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [
        each for each in documents if not re.search(rf"\b{re.escape(each)}$", navigation, re.MULTILINE)
    ] == []


@pytest.mark.timeout(600)  # a worker's imports
def test_the_new_variant_of_the_page_can_be_compared(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = blocks_of(ROOT / "docs" / "guides" / "new-variant.md")
    module, entry = (block.code for block in shown if block.language == "python")
    (tmp_path / "bf16.py").write_text(module, encoding="utf-8")
    monkeypatch.setattr(variants, "__path__", [*variants.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_VARIANTS", (*registry.list_variants(), eval(entry, vars(registry))))
    experiment = layerstream_compare.Experiment(
        model=str(tiny_llama_dir), prompt="Hi", variants=("resident", "bf16"), max_new_tokens=2, prose=False
    )
    measured = layerstream_compare.compare(experiment, runner=layerstream_compare.run_in_process)
    assert {each.case.variant: each.status for each in measured} == {"resident": "ok", "bf16": "ok"}
