"""Stand-ins for the Hub: a repository on disk, its cache, its headers and its refusals.

Test kit. Knows huggingface_hub and nothing of layerstream.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from safetensors.numpy import save_file


class FakeHub:
    """One repository on disk; downloads copy what the patterns select, as `snapshot_download` does."""

    def __init__(self, repository: Path, snapshot: Path) -> None:
        """Serve `repository` into `snapshot`."""
        self.repository, self.snapshot = repository, snapshot
        self.asked: list[dict[str, Any]] = []
        repository.mkdir()

    def add(self, name: str, content: str | None = None) -> None:
        path = self.repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            save_file({f"w in {name}": np.zeros(3, np.float32)}, path)
        else:
            path.write_text(content)

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | Path | None,
        local_files_only: bool,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        self.asked.append({"revision": revision, "token": token, "cache_dir": cache_dir})
        self.snapshot.mkdir(exist_ok=True)
        for path in self.repository.rglob("*"):
            file = str(path.relative_to(self.repository))
            selected = any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            if (
                path.is_file()
                and selected
                and not any(fnmatch.fnmatch(file, pattern) for pattern in ignore_patterns)
            ):
                (self.snapshot / file).parent.mkdir(exist_ok=True)
                shutil.copy(path, self.snapshot / file)
        return str(self.snapshot)

    @property
    def downloaded(self) -> set[str]:
        return {str(path.relative_to(self.snapshot)) for path in self.snapshot.rglob("*") if path.is_file()}


def raising(error: Exception) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function


def refused(kind: type[hub_errors.HfHubHTTPError]) -> Exception:
    return kind("refused", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]


def fabricate_cache(home: Path, name: str = "org/name") -> Path:
    """Lay out one revision as huggingface_hub does: a ref, a snapshot of links, blobs."""
    repository = home / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abc"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "blobs" / "c0").write_text("{}")
    save_file({"w": np.arange(3, dtype=np.float32)}, repository / "blobs" / "e1")
    (snapshot / "config.json").symlink_to("../../blobs/c0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/e1")
    return snapshot


def metadata_of(weight_map: dict[str, str], dtype: str = "BF16") -> SafetensorsRepoMetadata:
    files = {
        file: SafetensorsFileMetadata(
            metadata={}, tensors={tensor: TensorInfo(dtype=dtype, shape=[2, 3], data_offsets=(0, 12))}
        )
        for tensor, file in weight_map.items()
    }
    return SafetensorsRepoMetadata(
        metadata={"total_size": 24}, sharded=True, weight_map=weight_map, files_metadata=files
    )
