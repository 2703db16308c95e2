"""What the command prints for a warning."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def test_a_warning_is_one_line_without_the_code_that_gave_it(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, model)
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "extra.weight": torch.zeros(1)}, model / "model.safetensors", {"format": "pt"})
    command = [sys.executable, "-m", "layerstream", "plan", str(model), "--budget", "min"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    [line] = [line for line in shown if "extra.weight" in line]
    assert line.startswith("warning: the checkpoint holds 1 tensors")
    assert not any("warnings.warn" in line for line in shown)
