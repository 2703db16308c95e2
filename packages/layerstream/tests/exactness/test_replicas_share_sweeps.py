"""Several devices with several tasks each: all of them share the reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import layerstream as ls

PROMPTS = [torch.arange(3, 3 + length).reshape(1, -1) for length in (6, 9, 5, 7, 8, 4)]


def answer(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)


def test_the_groups_of_all_replicas_share_the_reads(tiny_llama_dir: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    expected = [answer(plain, ids) for ids in PROMPTS]
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:

        def work(replica: ls.Replica) -> list[torch.Tensor]:
            tasks = [partial(answer, replica.model, ids) for ids in PROMPTS[replica.index :: 2]]
            return [result.value for result in replica.group.run(tasks)]

        found = streamed.run_on_devices(work)
        report = streamed.report()
        assert report.sweeps == 5
        ahead = 4 * streamed.plan.num_slots * max(unit.read_bytes for unit in streamed.plan.units)
        rows_bytes = 6 * 14 * 64 * 4
        assert (
            report.bytes_read <= 5 * sum(unit.read_bytes for unit in streamed.plan.units) + ahead + rows_bytes
        )
    for index in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(found[index], expected[index::2], strict=True))


def test_a_failing_replica_ends_the_others_run_as_a_whole(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        ended: list[BaseException] = []

        def work(replica: ls.Replica) -> None:
            if replica.index == 1:
                replica.model(PROMPTS[0])
                raise ValueError("this device fails")
            tasks = [partial(answer, replica.model, ids) for ids in PROMPTS * 100]
            try:
                replica.group.run(tasks)
            except ls.ReplicaStoppedError as error:
                ended.append(error)
                raise

        with pytest.raises(ValueError, match="this device fails"):
            streamed.run_on_devices(work)
        assert len(ended) == 1
        assert [
            len(rows) for rows in streamed.run_on_devices(lambda replica: answer(replica.model, PROMPTS[0]))
        ] == [1, 1]


def requests() -> list[ls.GenerationRequest]:
    greedy = [ls.GenerationRequest(prompt=ids[0].tolist(), max_new_tokens=5) for ids in PROMPTS]
    sampled = ls.GenerationRequest(prompt=PROMPTS[1][0].tolist(), max_new_tokens=5, do_sample=True, seed=7)
    return [*greedy[:3], sampled, *greedy[3:]]


def test_requests_get_the_same_answers_on_several_devices_as_on_one(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min") as alone:
        expected = ls.generate_many(alone, requests(), packed=False)
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        reported: list[int] = []
        progress: list[ls.BatchProgress] = []
        found = ls.generate_many(
            streamed,
            requests(),
            packed=False,
            max_rows=7,
            on_result=lambda result: reported.append(result.index),
            on_progress=progress.append,
        )
        assert all(replica.group.sweeps > 0 for replica in streamed.replicas)
        assert streamed.report().sweeps == 5
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    assert [result.error for result in found] == [None] * 7
    assert sorted(reported) == list(range(7))
    assert (progress[-1].done, progress[-1].eta_s) == (7, 0.0)


def test_a_single_request_is_answered_while_the_other_device_is_idle(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        (result,) = ls.generate_many(streamed, requests()[:1])
        assert result.error is None
        assert ls.generate_many(streamed, []) == []


def test_a_callback_that_fails_ends_the_work_of_every_device(tiny_llama_dir: Path) -> None:
    def fail(result: ls.GenerationResult) -> None:
        raise BrokenPipeError("the reader is gone")

    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        with pytest.raises(BrokenPipeError):
            ls.generate_many(streamed, requests() * 20, packed=False, on_result=fail)
        assert all(result.error is None for result in ls.generate_many(streamed, requests()))


def test_several_devices_score_as_one_device_does_and_in_one_sweep(tiny_llama_dir: Path) -> None:
    requested = [(ids[0].tolist(), [[5, 6], [7], [8, 9, 10]]) for ids in PROMPTS]
    with ls.load(tiny_llama_dir, budget="min") as alone:
        expected = ls.score(alone, requested, max_rows=6)
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        reported: list[int] = []
        progress: list[ls.ScoringProgress] = []
        found = ls.score(
            streamed,
            requested,
            max_rows=6,
            on_result=lambda result: reported.append(result.index),
            on_progress=progress.append,
        )
        assert streamed.report().sweeps == 1
        assert [replica.group.sweeps for replica in streamed.replicas] == [1, 1]
    for ours, theirs in zip(found, expected, strict=True):
        assert [score.sum for score in ours.scores] == [score.sum for score in theirs.scores]
    assert [result.index for result in found] == sorted(reported) == list(range(6))
    assert (progress[-1].done, progress[-1].total) == (6, 6)
