from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tiny_model import tiny_tokenizer

from layerstream_compare.case import Case
from layerstream_compare.protocol import measurement_of
from layerstream_compare.runners.isolate import run_isolated
from layerstream_compare.worker.run import run_case
from layerstream_compare.worker.texts_of_tokens import TokenTexts

QUICK = {"prompt": "Hello", "max_new_tokens": 8, "device": "cpu", "threads": 1}


def _told(case: Case) -> list[dict]:
    told: list[dict] = []
    run_case(case, lambda kind, **data: told.append({"kind": kind, **data}))
    return told


@pytest.fixture(scope="module")
def streamed_told(tiny_model) -> list[dict]:
    return _told(Case(model=tiny_model, variant="streamed", budget="min", **QUICK))


def test_phases_come_in_order_and_tokens_before_the_result(streamed_told):
    phases = [told["phase"] for told in streamed_told if told["kind"] == "phase"]
    assert phases == ["import", "load", "warm-up", "first-token", "decode", "quality"]
    kinds = [told["kind"] for told in streamed_told]
    assert kinds[-1] == "result"
    assert kinds.count("result") == 1
    assert [told["index"] for told in streamed_told if told["kind"] == "token"] == list(
        range(len(streamed_told[-1]["token_ids"]))
    )


def test_the_streamed_variant_is_bit_exact_with_divergence_zero(streamed_told):
    texts = {agreement["text"]: agreement for agreement in streamed_told[-1]["agreements"]}
    assert set(texts) == {"answer", "prose"}
    for agreement in texts.values():
        assert agreement["is_bit_exact"]
        assert (agreement["kl_max"], agreement["reverse_kl_max"], agreement["max_logit_difference"]) == (
            0.0,
            0.0,
            0.0,
        )
    assert texts["prose"]["positions"] == 255
    assert streamed_told[-1]["facts"]["reference"] == "the resident model of plain transformers"


def test_the_resident_variant_is_bit_exact_with_the_streamed_reference(tiny_model, streamed_told):
    result = _told(Case(model=tiny_model, variant="resident", **QUICK))[-1]
    assert all(agreement["is_bit_exact"] for agreement in result["agreements"])
    assert result["token_ids"] == streamed_told[-1]["token_ids"]
    assert result["facts"]["margins"] == streamed_told[-1]["facts"]["margins"]


def test_a_timeline_tells_the_plan_first_and_then_what_moved_in_every_sweep(tiny_model, streamed_told):
    told = _told(
        Case(model=tiny_model, variant="streamed", budget="min", quality=False, timeline=True, **QUICK)
    )
    kinds = [each["kind"] for each in told]
    assert kinds.count("plan") == 1
    assert kinds.index("plan") < kinds.index("spans") < kinds.index("result")
    units = next(each["plan"] for each in told if each["kind"] == "plan")["units"]
    spans = [span for each in told if each["kind"] == "spans" for span in each["spans"]]
    computed = {(sweep, unit) for activity, unit, sweep, *_ in spans if activity == "compute"}
    sweeps = {sweep for sweep, _ in computed}
    assert len(sweeps) == len(told[-1]["token_ids"])
    assert computed == {(sweep, index) for sweep in sweeps for index in range(len(units))}
    assert any(activity == "read" and num_bytes > 0 for activity, *_, num_bytes in spans)
    assert all(end >= 0 for *_, end, _ in spans)
    assert told[-1]["token_ids"] == streamed_told[-1]["token_ids"]


def test_a_case_that_asked_for_no_timeline_tells_none(streamed_told):
    assert {"plan", "spans"}.isdisjoint(each["kind"] for each in streamed_told)


def test_without_prose_agreement_is_on_the_answer_alone(tiny_model):
    result = _told(Case(model=tiny_model, variant="bnb-nf4", prose=False, **QUICK))[-1]
    assert [agreement["text"] for agreement in result["agreements"]] == ["answer"]


def test_a_streamed_model_holds_less_than_a_resident_one(tiny_model, streamed_told):
    result = _told(Case(model=tiny_model, variant="resident", quality=False, **QUICK))[-1]
    assert streamed_told[-1]["memory"]["held_bytes"] < result["memory"]["held_bytes"]
    assert result["facts"]["effective_bits_per_weight"] == pytest.approx(16, rel=0.01)
    assert result["agreements"] == []


def test_another_attention_is_the_noise_floor(tiny_model):
    case = Case(model=tiny_model, variant="resident", attention="eager", dtype="bfloat16", **QUICK)
    for agreement in _told(case)[-1]["agreements"]:
        assert not agreement["is_bit_exact"]
        assert 0 < agreement["kl_mean"] < 0.1


def test_4_bit_weights_diverge_and_say_how_far(tiny_model):
    result = _told(Case(model=tiny_model, variant="bnb-nf4", **QUICK))[-1]
    assert result["kind"] == "result"
    assert all(agreement["kl_mean"] > 1e-3 for agreement in result["agreements"])
    assert result["facts"]["held_after_load_bytes"] >= result["memory"]["held_bytes"]


def test_the_result_is_a_measurement_and_its_pieces_are_its_text(tiny_model, streamed_told):
    case = Case(model=tiny_model, variant="streamed", budget="min", **QUICK)
    measurement = measurement_of(case, json.loads(json.dumps(streamed_told[-1])), isolation="in-process")
    assert measurement.status == "ok", measurement.reason
    assert "".join(measurement.token_texts) == measurement.text
    assert len(measurement.facts["margins"]) == len(measurement.token_ids) == len(measurement.token_texts)
    assert all(0 <= margin <= 1 for margin in measurement.facts["margins"])
    assert measurement.memory is not None
    assert [phase.phase for phase in measurement.memory.phases] == [
        "import",
        "load",
        "warm-up",
        "first-token",
        "decode",
    ]


def test_a_fresh_process_gives_the_tokens_and_figures_of_this_one(tiny_model, streamed_told):
    case = Case(model=tiny_model, variant="streamed", budget="min", **QUICK)
    *_, last = run_isolated(case)
    assert last.measurement.status == "ok", last.measurement.reason + last.measurement.stderr_tail
    assert list(last.measurement.token_ids) == list(streamed_told[-1]["token_ids"])
    assert [agreement.is_bit_exact for agreement in last.measurement.agreements] == [True, True]


def test_without_a_warm_up_the_first_forward_is_the_first_token(tiny_model):
    result = _told(Case(model=tiny_model, variant="resident", quality=False, warmup_tokens=0, **QUICK))[-1]
    assert result["timing"]["first_forward_s"] == result["timing"]["first_token_s"]


def test_a_missing_model_is_a_failure_in_one_line(tmp_path):
    last = _told(Case(model=str(tmp_path / "nothing"), variant="resident", **QUICK))[-1]
    assert last["kind"] == "failed"
    assert "\n" not in last["reason"]
    assert "Traceback" in last["stderr_tail"]


def test_what_this_machine_lacks_is_unavailable_and_says_why(tiny_model):
    last = _told(Case(model=tiny_model, variant="resident", attention="flash-attention-3", **QUICK))[-1]
    assert last["kind"] == "unavailable"
    assert "flash_attn_interface" in last["reason"]


def test_an_unknown_variant_fails_and_lists_the_known():
    last = _told(Case(model="anything", variant="bnb-nf5", **QUICK))[-1]
    assert (last["kind"], "there are streamed" in last["reason"]) == ("failed", True)


def test_a_case_that_is_no_json_ends_the_worker_with_a_message():
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "layerstream_compare.worker", "--events-fd", str(writing)],
            input="no case",
            pass_fds=(writing,),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
        os.close(reading)
    assert done.returncode != 0
    assert "JSONDecodeError" in done.stderr


def test_pieces_of_special_tokens_are_empty_and_the_rest_is_the_text():
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    token_ids = [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id]
    assert texts.pieces(token_ids) == ["a", "b", ""]
    assert [texts.push(token) for token in token_ids] == ["a", "b", ""]
