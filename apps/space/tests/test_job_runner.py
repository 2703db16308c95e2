from __future__ import annotations

import time

import pytest
import sample_values

from layerstream_space.errors import VisitorError
from layerstream_space.job_runner import JobRunner, RunRequest, check_request
from layerstream_space.models import Catalogue, hub_id, sanitize_measurement, strip_paths
from layerstream_space.settings import PUBLIC_LIMITS, Limits, Settings, settings_of_space


def request_with(**changes):
    return RunRequest(
        **(
            {"model": "tiny", "prompt": "Hello", "variants": ("streamed", "bnb-nf4"), "new_tokens": 3}
            | changes
        )
    )


def runner_with(run_case, **changes):
    settings = Settings(models=("some/tiny",), **changes)
    return JobRunner(settings, Catalogue(settings), planner=None, run_case=run_case)


def well_behaved(case):
    yield sample_values.event(case, "started")
    yield sample_values.token(case, 1, "The")
    yield sample_values.event(case, "waiting")
    yield sample_values.finished(sample_values.measurement(case))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "The prompt is empty"),
        ({"prompt": "x" * 1201}, "1201 characters; the limit here is 1200"),
        ({"variants": ()}, "No variant is chosen"),
        ({"variants": ("streamed", "magic")}, "no variant called 'magic'"),
        (
            {"variants": ("streamed", "resident", "bnb-int8", "bnb-nf4", "bnb-fp4")},
            "5 variants are chosen; the limit for one run here is 4",
        ),
        ({"new_tokens": 65}, "between 1 and 64"),
        ({"new_tokens": 0}, "between 1 and 64"),
        ({"draft": "some/model"}, "no draft 'some/model' here. Choose one of: int8, lookup"),
        ({"lengths": (512, 4096)}, "a prompt of 4096 tokens; the limit here is 2048"),
    ],
)
def test_public_page_refuses_requests_beyond_its_limits_and_says_what_is_possible(changes, message):
    with pytest.raises(VisitorError, match=message):
        check_request(request_with(**changes), PUBLIC_LIMITS)


def test_request_within_the_limits_is_accepted():
    check_request(request_with(new_tokens=64, prompt="x" * 1200), PUBLIC_LIMITS)


def test_both_budgets_reach_the_cases():
    request = request_with(model="some/tiny", budget="6 GiB", host_budget="24 GiB")
    *_, last = runner_with(well_behaved).start(request)
    assert {column.case.budget for column in last.state.columns} == {"6 GiB"}
    assert {column.case.host_budget for column in last.state.columns} == {"24 GiB"}
    with pytest.raises(VisitorError, match="the host budget is 'plenty'"):
        next(runner_with(well_behaved).start(request_with(model="some/tiny", host_budget="plenty")))


def test_a_draft_reaches_the_streamed_case_only():
    *_, last = runner_with(well_behaved).start(request_with(model="some/tiny", draft="lookup"))
    drafts = {column.case.variant: column.case.draft for column in last.state.columns}
    assert drafts == {"streamed": "lookup", "bnb-nf4": ""}


def test_run_fills_one_column_after_another():
    *updates, last = runner_with(well_behaved).start(request_with(model="some/tiny"))
    assert [column.status for column in last.state.columns] == ["ok", "ok"]
    assert [update.event.kind for update in updates].count("waiting") == 2
    assert last.state.reference.case.variant == "streamed"


def test_closing_a_run_closes_the_running_case():
    ended = []

    def endless(case):
        try:
            yield sample_values.event(case, "started")
            while True:
                yield sample_values.event(case, "waiting")
        finally:
            ended.append(case.variant)

    updates = runner_with(endless).start(request_with(model="some/tiny"))
    for _ in range(3):
        next(updates)
    updates.close()
    assert ended == ["streamed"]


def test_run_beyond_the_time_limit_is_stopped_and_says_so():
    def slow(case):
        yield sample_values.event(case, "started")
        while True:
            time.sleep(0.01)
            yield sample_values.event(case, "waiting")

    *_, last = runner_with(slow, limits=Limits(run_s=0.05)).start(request_with(model="some/tiny"))
    assert last.state.is_stopped
    assert "the limit for one run" in last.state.note


def test_measurements_name_the_model_but_not_its_folder(tmp_path):
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
    runner = JobRunner(settings, Catalogue(settings), planner=None, run_case=failing)
    *_, last = runner.start(request_with(model="tiny"))
    for measurement in last.state.measurements:
        assert str(tmp_path) not in measurement.to_json()
        assert measurement.case.model == "tiny"
        assert measurement.stderr_tail == ""


def test_plan_among_the_facts_loses_its_folder_too():
    found = sample_values.measurement(
        sample_values.case(), facts={"plan": "/srv/models/tiny in float16", "placement": "D."}
    )
    assert sanitize_measurement(found, "/srv/models/tiny", "tiny", hide_stderr=True).facts == {
        "plan": "tiny in float16",
        "placement": "D.",
    }


def test_other_models_need_the_option_any_model():
    catalogue = Catalogue(Settings(models=("some/tiny",)))
    assert catalogue.source_of("some/tiny") == "some/tiny"
    for name in ("other/model", "/etc", "../secret", ""):
        with pytest.raises(VisitorError):
            catalogue.source_of(name)
    assert Catalogue(Settings(any_model=True)).source_of("/data/model") == "/data/model"


@pytest.mark.parametrize("text", ["/etc/passwd", "../../x", "a", "a/b/c", "a b/c", "", "a/..", "~/x"])
def test_text_that_is_not_a_hub_id_is_refused(text):
    with pytest.raises(VisitorError):
        hub_id(text)


def test_hub_id_may_be_pasted_as_a_link():
    assert hub_id(" https://huggingface.co/owner/name-1.5/ ") == "owner/name-1.5"


def test_paths_lose_their_folders_and_other_text_stays():
    assert strip_paths("no file /home/me/models/x.safetensors here") == "no file x.safetensors here"
    assert strip_paths("1/2 and a/b and https://x.org/a/b") == "1/2 and a/b and https://x.org/a/b"


def test_space_is_public_and_reads_its_variables():
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
