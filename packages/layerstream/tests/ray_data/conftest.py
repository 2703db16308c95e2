"""One small local Ray for the tests of a module. Skips them where Ray is not installed."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]


@pytest.fixture(autouse=True)
def no_workers_of_a_failed_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Free what an error's frames held: Ray ends a worker only when nothing in this process refers to it."""
    # on a busy machine, it takes a while
    monkeypatch.setattr("layerstream.ray.nodes._FREE_WITHIN_S", 60.0)
    yield
    gc.collect()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """A local Ray with 6 logical CPUs and two drives; give its address."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # its processes inherit this one's environment, and workers of tests import the kit
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray gives way to all other programs, such as the other tests
        patch.setenv("RAY_worker_niceness", "0")
        warnings.simplefilter("ignore")
        context = ray.init(
            num_cpus=6,
            resources={"layerstream_disk": 2},
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield context.address_info["address"]
        ray.shutdown()
