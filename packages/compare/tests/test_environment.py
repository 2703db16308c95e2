from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

from layerstream_compare.environment import (
    PACKAGES,
    describe_environment,
    package_versions,
    source_commit,
    usable_cores,
)


def test_the_environment_is_json_with_versions_cpu_memory_and_load():
    environment = json.loads(json.dumps(describe_environment()))
    assert environment["versions"]["torch"] == version("torch")
    assert environment["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert environment["memory_bytes"] > 0
    assert len(environment["load_average"]) == 3


def test_packages_that_are_not_installed_are_omitted():
    assert set(package_versions()) <= set(PACKAGES)
    assert all(package_versions().values())


def test_a_commit_is_forty_hex_digits_and_dirty_if_modified():
    commit = source_commit()
    # None in an installed copy or an untracked tree
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_only_cores_that_this_process_may_use_are_counted():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from layerstream_compare.environment import usable_cores; print(usable_cores())"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "1"
    assert usable_cores() >= 1
