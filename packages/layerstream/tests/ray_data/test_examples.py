"""The example of a cluster: Ray's launcher accepts its file, and its program answers rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from kit.ray_rows import write_rows
from ray.autoscaler._private.util import prepare_config, validate_config

from layerstream.ray.workers import DISK

EXAMPLES = Path(__file__).parents[4] / "examples" / "cluster"


def read_yaml(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return found


def test_launcher_accepts_the_cloud_file_and_its_workers_declare_their_drive() -> None:
    config = read_yaml("cloud.yaml")
    validate_config(prepare_config(config))
    assert DISK in config["available_node_types"]["worker"]["resources"]
    assert DISK not in config["available_node_types"]["head"]["resources"]
    assert DISK in config["worker_start_ray_commands"][-1]


def test_both_files_name_the_version_that_is_tested() -> None:
    assert f"ray[default,data]=={ray.__version__}" in (EXAMPLES / "cloud.yaml").read_text()
    spec = read_yaml("kuberay.yaml")["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == ray.__version__
    assert DISK in spec["workerGroupSpecs"][0]["rayStartParams"]["resources"]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(300)
@pytest.mark.enable_socket
def test_the_program_answers_rows_on_a_local_ray(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "rows.parquet", 5)
    context = ray.init(
        num_cpus=6,
        resources={DISK: 1},
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=10**8,
    )
    try:
        done = subprocess.run(
            [sys.executable, EXAMPLES / "answer.py"],
            env={
                **os.environ,
                "RAY_ADDRESS": context.address_info["address"],
                "BUCKET": str(tmp_path),
                "MODEL": str(tiny_llama_dir),
                "CORES": "1",
            },
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        ray.shutdown()
    assert done.returncode == 0, done.stderr
    answered = pq.read_table(tmp_path / "answers").to_pylist()
    assert [row["id"] for row in sorted(answered, key=lambda row: row["id"])] == list(range(5))
    assert all(row["error"] is None and row["tokens"] for row in answered)
