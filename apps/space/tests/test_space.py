"""The Space's folder holds what a Space needs, and its files agree with the packages'."""

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


def test_the_front_matter_names_the_app_and_a_gradio_that_the_requirements_allow(folder):
    head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    told = dict(re.findall(r"^(\w+): (.+)$", head, re.MULTILINE))
    assert (told["sdk"], told["app_file"]) == ("gradio", "app.py")
    assert (folder / told["app_file"]).is_file()
    pins = (HERE.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={told['sdk_version']}\n" in pins


def test_the_app_imports_from_its_folder_alone(folder):
    # -S leaves the installed project out; the folder's own packages must do
    program = "import layerstream_space, layerstream_compare; print(layerstream_space.__file__, layerstream_compare.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(str(folder)) == 2


def test_the_planners_child_finds_the_folders_packages(folder):
    child = "import layerstream_space as it, json, sys; sys.stdin.readline(); print(json.dumps({'at': it.__file__}), flush=True)"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from layerstream_space.planner import Planner\n"
        "planner = Planner((sys.executable, '-c', sys.argv[2])); print(planner.ask('x')['at']); planner.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), child], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(folder))


def test_on_zero_gpu_each_case_runs_inside_the_lent_call(monkeypatch):
    lent = []

    class Spaces(types.ModuleType):
        @staticmethod
        def GPU(*, duration):  # noqa: N802  their name
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


def test_on_zero_gpu_a_visitor_is_told_why_no_gpu_was_lent(monkeypatch):
    def refuse(case):
        raise gr.Error("GPU quota exceeded")
        yield

    monkeypatch.setitem(
        sys.modules, "spaces", types.SimpleNamespace(GPU=lambda *, duration: lambda function: refuse)
    )
    with pytest.raises(VisitorError, match="GPU quota exceeded"):
        list(zero_gpu_runner()(sample_values.case("resident")))
