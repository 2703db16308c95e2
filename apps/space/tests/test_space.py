"""The assembled folder has all that a Space needs, and its files agree with the packages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import gradio as gr
import pytest
import sample_values

from layerstream_space import job_runner
from layerstream_space.errors import VisitorError
from layerstream_space.space import zero_gpu_runner

HERE = Path(__file__).resolve().parents[1]


def load_assemble() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("assemble", HERE / "assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("space") / "space"
    load_assemble().assemble(target)
    return target


def test_requirements_are_those_of_the_packages():
    assert (HERE / "requirements.txt").read_text(encoding="utf-8") == load_assemble().requirements()


def test_requirements_name_nothing_that_a_builder_cannot_find():
    lines = [
        line
        for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert lines
    assert all(re.fullmatch(r"[\w.-]+(?:[<>=!~]=?[\d.]+,?)+", line) for line in lines), lines


def test_front_matter_names_the_app_and_the_pinned_gradio(folder):
    head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    header = dict(re.findall(r"^(\w+): (.+)$", head, re.MULTILINE))
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")
    assert (folder / header["app_file"]).is_file()
    pins = (HERE.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={header['sdk_version']}\n" in pins


def test_app_imports_from_its_folder_alone(folder):
    program = (
        "import layerstream_space, layerstream_compare\n"
        "print(layerstream_space.__file__, layerstream_compare.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(str(folder)) == 2


def test_profilers_child_finds_the_packages_in_the_folder(folder):
    child = (
        "import layerstream_space as package, json, sys; sys.stdin.readline()\n"
        "print(json.dumps({'at': package.__file__}), flush=True)"
    )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from layerstream_space.profiler import Profiler\n"
        "profiler = Profiler((sys.executable, '-c', sys.argv[2]))\n"
        "print(profiler.ask('x')['at']); profiler.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), child], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(folder))


def test_zero_gpu_runs_each_case_inside_the_call_with_the_gpu(monkeypatch):
    lent = []

    class Spaces(types.ModuleType):
        @staticmethod
        def GPU(*, duration):  # noqa: N802  the name in `spaces`
            def wrap(function):
                def call(case):
                    lent.append((duration, case.variant))
                    yield from function(case)

                return call

            return wrap

    monkeypatch.setitem(sys.modules, "spaces", Spaces("spaces"))
    monkeypatch.setattr(
        job_runner,
        "run_in_process",
        lambda case, heartbeat_s: iter([sample_values.finished(sample_values.measurement(case))]),
    )
    events = list(zero_gpu_runner()(sample_values.case("resident")))
    assert lent == [(60, "resident")]
    assert events[-1].measurement.status == "ok"


def test_zero_gpu_error_tells_the_visitor_why_there_is_no_gpu(monkeypatch):
    def refuse(case):
        raise gr.Error("GPU quota exceeded")
        yield

    monkeypatch.setitem(
        sys.modules, "spaces", types.SimpleNamespace(GPU=lambda *, duration: lambda function: refuse)
    )
    with pytest.raises(VisitorError, match="GPU quota exceeded"):
        list(zero_gpu_runner()(sample_values.case("resident")))
