from __future__ import annotations

import time

import pytest
import sample_values

from layerstream_space.errors import VisitorError
from layerstream_space.job_runner import JobRunner, RunRequest, check
from layerstream_space.models import Catalogue, hub_id, sanitize_measurement, strip_paths
from layerstream_space.settings import PUBLIC_LIMITS, Limits, Settings, settings_of_space


def request(**changes):
    return RunRequest(
        **(
            {"model": "tiny", "prompt": "Hello", "variants": ("streamed", "bnb-nf4"), "new_tokens": 3}
            | changes
        )
    )


def runs_with(runner, **settings):
    known = Settings(models=("some/tiny",), **settings)
    return JobRunner(known, Catalogue(known), planner=None, runner=runner)


def well_behaved(case):
    yield sample_values.event(case, "started")
    yield sample_values.token(case, 1, "The")
    yield sample_values.event(case, "waiting")
    yield sample_values.finished(sample_values.measurement(case))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "  "}, "The prompt is empty"),
        ({"prompt": "x" * 1201}, "1201 characters; at most 1200"),
        ({"variants": ()}, "No variant is chosen"),
        ({"variants": ("streamed", "magic")}, "no variant called 'magic'"),
        (
            {"variants": ("streamed", "resident", "bnb-int8", "bnb-nf4", "bnb-fp4")},
            "5 variants are chosen; at most 4",
        ),
        ({"new_tokens": 65}, "between 1 and 64"),
        ({"new_tokens": 0}, "between 1 and 64"),
        ({"lengths": (512, 4096)}, "A prompt of 4096 tokens; at most 2048"),
    ],
)
def test_a_public_page_refuses_what_is_beyond_its_limits_and_says_what_is_possible(changes, told):
    with pytest.raises(VisitorError, match=told):
        check(request(**changes), PUBLIC_LIMITS)


def test_what_is_within_the_limits_is_fine():
    check(request(new_tokens=64, prompt="x" * 1200), PUBLIC_LIMITS)


def test_a_run_fills_the_board_lane_by_lane():
    *steps, last = runs_with(well_behaved).start(request(model="some/tiny"))
    assert [column.status for column in last.state.columns] == ["ok", "ok"]
    assert [step.changed for step in steps].count(False) == 2
    assert last.state.reference.case.variant == "streamed"


def test_closing_a_run_closes_the_case_that_runs():
    ended = []

    def endless(case):
        try:
            yield sample_values.event(case, "started")
            while True:
                yield sample_values.event(case, "waiting")
        finally:
            ended.append(case.variant)

    steps = runs_with(endless).start(request(model="some/tiny"))
    for _ in range(3):
        next(steps)
    steps.close()
    assert ended == ["streamed"]


def test_a_run_that_takes_too_long_is_stopped_and_says_so():
    def slow(case):
        yield sample_values.event(case, "started")
        while True:
            time.sleep(0.01)
            yield sample_values.event(case, "waiting")

    *_, last = runs_with(slow, limits=Limits(run_s=0.05)).start(request(model="some/tiny"))
    assert last.state.is_stopped
    assert "the limit for one run" in last.state.note


def test_measurements_name_the_model_and_never_its_folder(tmp_path):
    folder = str(tmp_path / "models" / "tiny")

    def failing(case):
        yield sample_values.finished(
            sample_values.measurement(
                case,
                status="failed",
                reason=f"no config.json in {folder}/snapshots/x",
                stderr_tail=f"in {folder}",
            )
        )

    settings = Settings(models=(folder,), is_public=True)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    runs = JobRunner(settings, Catalogue(settings), planner=None, runner=failing)
    *_, last = runs.start(request(model="tiny"))
    for measurement in last.state.measurements:
        assert str(tmp_path) not in measurement.to_json()
        assert measurement.case.model == "tiny"
        assert measurement.stderr_tail == ""


def test_a_plan_among_the_facts_loses_its_folder_too():
    found = sample_values.measurement(
        sample_values.case(), facts={"plan": "/srv/models/tiny in float16", "placement": "D."}
    )
    assert sanitize_measurement(found, "/srv/models/tiny", "tiny", hides=True).facts == {
        "plan": "tiny in float16",
        "placement": "D.",
    }


def test_models_from_elsewhere_need_the_page_to_be_ones_own():
    ours = Catalogue(Settings(models=("some/tiny",)))
    assert ours.source_of("some/tiny") == "some/tiny"
    for name in ("other/model", "/etc", "../secret", ""):
        with pytest.raises(VisitorError):
            ours.source_of(name)
    assert Catalogue(Settings(any_model=True)).source_of("/data/model") == "/data/model"


@pytest.mark.parametrize("text", ["/etc/passwd", "../../x", "a", "a/b/c", "a b/c", "", "a/..", "~/x"])
def test_what_is_no_hub_id_is_refused(text):
    with pytest.raises(VisitorError):
        hub_id(text)


def test_a_hub_id_may_be_pasted_as_a_link():
    assert hub_id(" https://huggingface.co/owner/name-1.5/ ") == "owner/name-1.5"


def test_paths_lose_their_folders_and_other_text_stays():
    assert strip_paths("no file /home/me/models/x.safetensors here") == "no file x.safetensors here"
    assert strip_paths("1/2 and a/b and https://x.org/a/b") == "1/2 and a/b and https://x.org/a/b"


def test_a_space_is_public_and_reads_its_variables():
    settings = settings_of_space(
        {"LAYERSTREAM_MODELS": "a/b, c/d", "LAYERSTREAM_BUDGET": "1 GiB", "SPACES_ZERO_GPU": "true"}
    )
    assert (settings.models, settings.budget, settings.is_public, settings.in_process) == (
        ("a/b", "c/d"),
        "1 GiB",
        True,
        True,
    )
    assert settings.limits == PUBLIC_LIMITS
    assert not settings_of_space({}).in_process
