"""Scores of the rows of a Ray dataset are those of `score` on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import save_file

import layerstream as ls
import layerstream.ray as lsr

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(300),
    pytest.mark.enable_socket,
]

REQUESTS: list[tuple[str, list[str]]] = [("ab", ["c", "de"]), ("", ["x"]), ("question", ["yes", "no", "?"])]
SETTINGS: dict[str, Any] = {
    "prefix": "question",
    "suffixes": "choices",
    "budget": "min",
    "prompt_tokens": 32,
    "rows_per_block": 2,
}


def rows_of(requests: list[tuple[str, list[str]]]) -> Any:
    return ray.data.from_items(
        [{"id": number, "question": prefix, "choices": s} for number, (prefix, s) in enumerate(requests)]
    )


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")], ids=["one device", "two devices"])
def test_scores_are_those_of_one_machine(
    devices: tuple[str, ...], local_ray: str, tiny_llama_dir: Path
) -> None:
    scored = lsr.score(rows_of(REQUESTS), model=tiny_llama_dir, devices=devices, **SETTINGS).take_all()
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        expected = ls.score(streamed, REQUESTS)
    assert len(scored) == len(REQUESTS)
    for row in scored:
        result = expected[row["id"]]
        assert (row["best"], row["best_by_mean"], row["error"]) == (result.best, result.best_by_mean, None)
        logprobs = [score.token_logprobs.tolist() for score in result.scores]
        assert [score["token_logprobs"] for score in row["scores"]] == logprobs
        assert [score["is_greedy"] for score in row["scores"]] == [s.is_greedy for s in result.scores]


def test_a_head_scores_and_a_bad_row_has_an_error(
    local_ray: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_file({"weight": torch.randn(2, 64)}, tmp_path / "head.safetensors")
    requests = [*REQUESTS, ("nothing", [])]
    scored = lsr.score(
        rows_of(requests), model=tiny_llama_dir, head=tmp_path / "head.safetensors", **SETTINGS
    ).take_all()
    by_id = {row["id"]: row for row in scored}
    assert by_id[3]["scores"] is None
    assert "no suffixes" in by_id[3]["error"]
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        expected = ls.score(streamed, REQUESTS, head=tmp_path / "head.safetensors")
    for number, result in enumerate(expected):
        outputs = [score.outputs.tolist() for score in result.scores]
        assert [score["outputs"] for score in by_id[number]["scores"]] == outputs


def test_a_head_that_does_not_fit_ends_the_job(local_ray: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.randn(2, 7)}, tmp_path / "head.safetensors")
    scored = lsr.score(
        rows_of(REQUESTS), model=tiny_llama_dir, head=tmp_path / "head.safetensors", **SETTINGS
    )
    with pytest.raises(ray.exceptions.RayTaskError, match="does not accept the model's last hidden states"):
        scored.take_all()
