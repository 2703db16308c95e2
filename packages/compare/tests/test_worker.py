from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_model import tiny_tokenizer

import layerstream as ls
import layerstream_compare.variants.registry as registry_module
from layerstream_compare.case import Case
from layerstream_compare.protocol import measurement_of
from layerstream_compare.runners.isolate import run_isolated
from layerstream_compare.worker.detokenize import Detokenizer, token_texts
from layerstream_compare.worker.run import run_case

QUICK = {"prompt": "Hello", "max_new_tokens": 8, "device": "cpu", "threads": 1}


def _messages(case: Case) -> list[dict]:
    messages: list[dict] = []
    run_case(case, lambda kind, **data: messages.append({"kind": kind, **data}))
    return messages


@pytest.fixture(scope="module")
def streamed_messages(tiny_model) -> list[dict]:
    return _messages(Case(model=tiny_model, variant="streamed", budget="min", prose=True, **QUICK))


def test_phases_come_in_order_and_tokens_before_the_result(streamed_messages):
    phases = [message["phase"] for message in streamed_messages if message["kind"] == "phase"]
    assert phases == ["import", "load", "warm-up", "first-token", "decode", "quality"]
    kinds = [message["kind"] for message in streamed_messages]
    assert kinds[-1] == "result"
    assert kinds.count("result") == 1
    indices = [message["index"] for message in streamed_messages if message["kind"] == "token"]
    assert indices == list(range(len(streamed_messages[-1]["token_ids"])))


def test_the_streamed_variant_is_bit_exact_with_zero_divergence(streamed_messages):
    texts = {agreement["text"]: agreement for agreement in streamed_messages[-1]["agreements"]}
    assert set(texts) == {"answer", "prose"}
    for agreement in texts.values():
        assert agreement["is_bit_exact"]
        assert (agreement["kl_max"], agreement["reverse_kl_max"], agreement["max_logit_difference"]) == (
            0.0,
            0.0,
            0.0,
        )
    assert texts["prose"]["positions"] == 255
    assert streamed_messages[-1]["facts"]["reference"] == "the resident model of plain transformers"


def test_the_resident_variant_is_bit_exact_with_the_streamed_reference(tiny_model, streamed_messages):
    result = _messages(Case(model=tiny_model, variant="resident", **QUICK))[-1]
    assert all(agreement["is_bit_exact"] for agreement in result["agreements"])
    assert result["token_ids"] == streamed_messages[-1]["token_ids"]
    assert result["facts"]["margins"] == streamed_messages[-1]["facts"]["margins"]


def test_a_timeline_emits_the_plan_first_and_then_the_spans_of_every_sweep(tiny_model, streamed_messages):
    messages = _messages(
        Case(model=tiny_model, variant="streamed", budget="min", quality=False, timeline=True, **QUICK)
    )
    kinds = [message["kind"] for message in messages]
    assert kinds.count("plan") == 1
    assert kinds.index("plan") < kinds.index("spans") < kinds.index("result")
    record = next(message["plan"] for message in messages if message["kind"] == "plan")
    plan = ls.PlacementPlan.from_dict(json.loads(json.dumps(record)))
    spans = [span for message in messages if message["kind"] == "spans" for span in message["spans"]]
    computed = {(sweep, unit) for activity, unit, sweep, *_ in spans if activity == "compute"}
    sweeps = {sweep for sweep, _ in computed}
    assert len(sweeps) == len(messages[-1]["token_ids"])
    assert computed == {(sweep, index) for sweep in sweeps for index in range(len(plan.units))}
    assert any(activity == "read" and num_bytes > 0 for activity, *_, num_bytes in spans)
    assert all(end >= 0 for *_, end, _ in spans)
    assert messages[-1]["token_ids"] == streamed_messages[-1]["token_ids"]


@pytest.fixture(scope="module")
def drafted_messages(tiny_model) -> list[dict]:
    case = Case(model=tiny_model, variant="streamed", quality=False, timeline=True, draft="int8", **QUICK)
    return _messages(case)


def test_a_draft_changes_neither_tokens_nor_margins(streamed_messages, drafted_messages):
    result = drafted_messages[-1]
    assert result["token_ids"] == streamed_messages[-1]["token_ids"]
    assert result["facts"]["margins"] == streamed_messages[-1]["facts"]["margins"]
    arrived = [message for message in drafted_messages if message["kind"] == "token"]
    assert [message["id"] for message in arrived] == list(result["token_ids"])
    assert [message["index"] for message in arrived] == list(range(len(arrived)))
    assert "a draft with its cache" in result["facts"]["held_includes"]


def test_with_a_draft_each_sweep_says_what_it_verified_and_the_report_is_their_sum(drafted_messages):
    result = drafted_messages[-1]
    sweeps = [message for message in drafted_messages if message["kind"] == "verified"]
    assert all(sweep["accepted"] <= sweep["drafted"] for sweep in sweeps)
    assert sum(sweep["drafted"] for sweep in sweeps) > 0
    # the prompt's sweep gives the first token
    assert sum(sweep["tokens"] for sweep in sweeps) == len(result["token_ids"]) - 1
    speculation = result["facts"]["report"]["speculation"]
    assert speculation["sweeps"] == len(sweeps)
    assert speculation["verified"] == sum(sweep["drafted"] for sweep in sweeps)
    assert result["facts"]["report"]["sweeps"] == len(sweeps) + 1


def test_a_case_without_a_timeline_emits_neither_plan_nor_spans(streamed_messages):
    assert {"plan", "spans"}.isdisjoint(message["kind"] for message in streamed_messages)


def test_without_prose_agreement_is_measured_on_the_answer_only(tiny_model):
    result = _messages(Case(model=tiny_model, variant="bnb-nf4", **QUICK))[-1]
    assert [agreement["text"] for agreement in result["agreements"]] == ["answer"]


def test_a_streamed_model_holds_less_than_a_resident_one(tiny_model, streamed_messages):
    result = _messages(Case(model=tiny_model, variant="resident", quality=False, **QUICK))[-1]
    assert streamed_messages[-1]["memory"]["held_bytes"] < result["memory"]["held_bytes"]
    assert result["facts"]["effective_bits_per_weight"] == pytest.approx(16, rel=0.01)
    assert result["agreements"] == []


def test_another_attention_is_the_noise_floor(tiny_model):
    case = Case(model=tiny_model, variant="resident", attention="eager", dtype="bfloat16", **QUICK)
    for agreement in _messages(case)[-1]["agreements"]:
        assert not agreement["is_bit_exact"]
        assert 0 < agreement["kl_mean"] < 0.1


def test_4_bit_weights_diverge_and_report_how_much(tiny_model):
    result = _messages(Case(model=tiny_model, variant="bnb-nf4", **QUICK))[-1]
    assert result["kind"] == "result"
    assert all(agreement["kl_mean"] > 1e-3 for agreement in result["agreements"])
    assert result["facts"]["held_after_load_bytes"] >= result["memory"]["held_bytes"]


def test_the_result_is_a_measurement_and_its_token_texts_form_its_text(tiny_model, streamed_messages):
    case = Case(model=tiny_model, variant="streamed", budget="min", **QUICK)
    measurement = measurement_of(case, json.loads(json.dumps(streamed_messages[-1])), isolation="in-process")
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


def test_a_fresh_process_gives_the_same_tokens_and_agreement(tiny_model, streamed_messages):
    case = Case(model=tiny_model, variant="streamed", budget="min", prose=True, **QUICK)
    *_, last = run_isolated(case)
    assert last.measurement.status == "ok", last.measurement.reason + last.measurement.stderr_tail
    assert list(last.measurement.token_ids) == list(streamed_messages[-1]["token_ids"])
    assert [agreement.is_bit_exact for agreement in last.measurement.agreements] == [True, True]


def test_what_sweeps_verified_crosses_the_border_of_the_process(tiny_model, drafted_messages):
    case = Case(model=tiny_model, variant="streamed", quality=False, timeline=True, draft="lookup", **QUICK)
    *events, last = run_isolated(case)
    assert last.measurement.status == "ok", last.measurement.reason + last.measurement.stderr_tail
    assert list(last.measurement.token_ids) == list(drafted_messages[-1]["token_ids"])
    tokens = [event.data["tokens"] for event in events if event.kind == "verified"]
    assert sum(tokens) == len(last.measurement.token_ids) - 1


def test_without_a_warm_up_the_first_forward_is_the_first_token(tiny_model):
    case = Case(model=tiny_model, variant="resident", quality=False, warmup_tokens=0, **QUICK)
    result = _messages(case)[-1]
    assert result["timing"]["first_forward_s"] == result["timing"]["first_token_s"]


def test_a_missing_model_fails_with_a_one_line_reason(tmp_path):
    last = _messages(Case(model=str(tmp_path / "nothing"), variant="resident", **QUICK))[-1]
    assert last["kind"] == "failed"
    assert "\n" not in last["reason"]
    assert "Traceback" in last["stderr_tail"]


def test_what_every_variant_needs_is_named_when_it_is_missing(tiny_model, tmp_path):
    def without(*names: str) -> Case:
        folder = tmp_path / "-".join(names)
        shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns(*names))
        return Case(model=str(folder), variant="resident", **QUICK)

    (tmp_path / "config.json").write_text("{}")
    cases = {
        "holds no tokenizer": without("tokenizer*"),
        "the weights of": without("*.safetensors"),
        "the config of": Case(model=str(tmp_path), variant="resident", **QUICK),
        "the prompt cannot be used": without("nothing").with_changes(prompt="", chat=False),
        "give auto, float16": without("none").with_changes(dtype="float12"),
    }
    for words, case in cases.items():
        last = _messages(case)[-1]
        assert (last["kind"], last.get("hits_every_case")) == ("failed", True), words
        assert words in last["reason"]


def test_a_failure_of_one_variant_alone_says_nothing_of_the_others(tiny_model):
    last = _messages(Case(model=tiny_model, variant="streamed", **QUICK | {"budget": "1 KiB"}))[-1]
    assert last["kind"] == "failed"
    assert "hits_every_case" not in last


def test_an_unavailable_variant_names_the_missing_package(tiny_model, monkeypatch):
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: True)
    last = _messages(Case(model=tiny_model, variant="resident", attention="flash-attention-3", **QUICK))[-1]
    assert last["kind"] == "unavailable"
    assert "flash-attn-3" in last["reason"]


def test_a_backend_without_a_kernel_for_the_model_is_unavailable_and_says_so(tiny_model, monkeypatch):
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: True)
    last = _messages(Case(model=tiny_model, variant="resident", attention="sdpa-cudnn", **QUICK))[-1]
    assert last["kind"] == "unavailable"
    assert last["reason"] == (
        "sdpa-cudnn: torch's CUDNN_ATTENTION has no kernel for this model's shapes and dtype here"
    )


def test_an_unknown_variant_fails_and_lists_the_valid_names():
    last = _messages(Case(model="anything", variant="bnb-nf5", **QUICK))[-1]
    assert (last["kind"], "choose one of streamed" in last["reason"]) == ("failed", True)


def test_a_case_that_is_not_json_ends_the_worker_with_a_message():
    reading, writing = os.pipe()
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "layerstream_compare.worker", "--events-fd", str(writing)],
            input="not a case",
            pass_fds=(writing,),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
        os.close(reading)
    assert finished.returncode != 0
    assert "JSONDecodeError" in finished.stderr


def test_special_tokens_have_empty_texts_and_the_others_form_the_text():
    tokenizer = tiny_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    token_ids = [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id]
    assert token_texts(tokenizer, token_ids) == ["a", "b", ""]
    assert [detokenizer.push(token) for token in token_ids] == ["a", "b", ""]
