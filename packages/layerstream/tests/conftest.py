"""What all tests of layerstream share: the test kit on the import path, a tiny checkpoint on disk, and a
check that no thread outlives its test.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kit.threads import no_thread_left
from kit.tiny_llama import save_tiny_llama
from kit.web_folder import WebFolder, web_folder

# the tests that need an accelerator run on rented machines too, where hypothesis may be absent
with suppress(ModuleNotFoundError):
    from hypothesis import settings

    # a busy machine is no failure
    settings.register_profile("without deadline", deadline=None)
    settings.load_profile("without deadline")


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only Llama of 4 blocks (hidden 64, vocabulary 128) with tokenizer and chat template."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def shared(tmp_path: Path, tiny_llama_dir: Path) -> Path:
    """A folder with a checkpoint in one file, which a test may change."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "shared"))


@pytest.fixture
def web(shared: Path) -> Iterator[WebFolder]:
    """The same folder on a web server."""
    with web_folder(shared) as served:
        yield served


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail the test if a thread that it started does not end."""
    with no_thread_left():
        yield
