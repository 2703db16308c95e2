"""A head larger than a slot stays whole on an accelerator, unless the user allows slices by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.compare import assert_same, left_padded_batch, reference
from kit.tiny_llama import save_with_a_large_vocabulary

import layerstream as ls
from layerstream.cli.app import main
from layerstream.testing import FakeAsyncRuntime


@pytest.fixture(scope="module")
def large_vocabulary_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_a_large_vocabulary(tmp_path_factory.mktemp("large-vocabulary"))


@pytest.mark.parametrize("is_allowed", [False, True], ids=["as by default", "slices allowed"])
def test_at_the_least_budget_the_report_says_whether_the_head_was_whole(
    large_vocabulary_dir: Path, is_allowed: bool
) -> None:
    plain = reference(large_vocabulary_dir)
    batch = left_padded_batch(plain)
    with ls.load(
        large_vocabulary_dir,
        budget="min",
        allow_sliced_head=is_allowed,
        runtime=FakeAsyncRuntime(lag_s=0.0),
    ) as streamed:
        assert (streamed.plan.head_slices > 1) is is_allowed
        # The fake device computes on the CPU, where slices are exact.
        with torch.no_grad():
            assert_same(
                {"logits": plain(**batch).logits}, {"logits": streamed.model(**batch).logits}, "the head"
            )
        report = streamed.report()
    assert report.is_bit_exact is not is_allowed
    assert ("not bit-exact" in report.explain()) is is_allowed


def test_the_least_budget_is_smaller_with_slices(large_vocabulary_dir: Path) -> None:
    card = ls.Machine(device="cuda:0", device_memory_bytes=10**9, host_memory_bytes=10**9)
    whole, sliced = (
        ls.plan(large_vocabulary_dir, budget="min", machine=card, allow_sliced_head=is_allowed)
        for is_allowed in (False, True)
    )
    assert (whole.is_bit_exact, sliced.is_bit_exact) == (True, False)
    assert sliced.ledger.device_bytes < whole.ledger.device_bytes
    profile = ls.profile_model(large_vocabulary_dir, device="cuda")
    assert ls.simulate(profile, machine=card, budget="min", allow_sliced_head=True).head_slices > 1


@pytest.mark.parametrize("options", [[], ["--allow-sliced-head"]], ids=["default", "allowed"])
def test_the_command_plans_slices_only_with_its_option_and_says_so(
    large_vocabulary_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    machine = ["--machine", "gpu=1GB,ram=1GB,disk=2GB"]
    assert main(["plan", str(large_vocabulary_dir), "--budget", "min", *machine, *options]) == 0
    shown = capsys.readouterr().out
    assert ("not bit-exact" in shown) is bool(options)
