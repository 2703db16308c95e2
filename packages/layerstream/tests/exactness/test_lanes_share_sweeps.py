"""Several devices, and several computations on each: all of them ride on one reading."""

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


def test_groups_of_every_lane_share_one_reading(tiny_llama_dir: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    wanted = [answer(plain, ids) for ids in PROMPTS]
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:

        def work(replica: PreTrainedModel, lane: int) -> list[torch.Tensor]:
            rides = [partial(answer, replica, ids) for ids in PROMPTS[lane::2]]
            return [arrival.value for arrival in streamed.groups[lane].run(rides)]

        found = streamed.run_on_devices(work)
        report = streamed.report()
        assert report.sweeps == 5
        ahead = 4 * streamed.plan.num_slots * max(unit.read_bytes for unit in streamed.plan.units)
        rows_bytes = 6 * 14 * 64 * 4
        assert report.bytes_read <= 5 * sum(unit.read_bytes for unit in streamed.plan.units) + ahead + rows_bytes
    for lane in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(found[lane], wanted[lane::2], strict=True))


def test_a_failing_lane_ends_the_others_run_and_not_its_rides_one_by_one(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, devices=["cpu", "cpu"], budget="min") as streamed:
        ended: list[BaseException] = []

        def work(replica: PreTrainedModel, lane: int) -> None:
            if lane == 1:
                replica(PROMPTS[0])
                raise ValueError("this device is done for")
            rides = [partial(answer, replica, ids) for ids in PROMPTS * 100]
            try:
                streamed.groups[lane].run(rides)
            except ls.LaneStoppedError as error:
                ended.append(error)
                raise

        with pytest.raises(ValueError, match="done for"):
            streamed.run_on_devices(work)
        assert len(ended) == 1
        assert [len(rows) for rows in streamed.run_on_devices(lambda replica, _: answer(replica, PROMPTS[0]))] == [1, 1]
