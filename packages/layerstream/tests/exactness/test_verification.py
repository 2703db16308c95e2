"""`verify` finds streamed units equal to resident copies of them, and finds each one that is not."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import IGNORED_WARNINGS, KINDS, experts_lora, save_adapter
from kit.budgets import PLENTY, WORKLOAD, budget_bytes
from kit.compare import assert_same, logits, reference
from kit.families import save_tiny
from kit.tiny_llama import save_with_a_large_vocabulary
from kit.wide_llama import save_wide_llama, stream_in
from torch import nn
from transformers import PreTrainedModel

import layerstream as ls
from layerstream.engine.verification import refuse_difference
from layerstream.streaming.runtime import CopyPair, DeviceRuntime
from layerstream.streaming.scheduler import Task
from layerstream.testing import FakeAsyncRuntime, FakeStream

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED_WARNINGS]

DEVICES: dict[str, Callable[[], DeviceRuntime | None]] = {
    "cpu": lambda: None,
    "fake": lambda: FakeAsyncRuntime(lag_s=0.0),
}
on_both_devices = pytest.mark.parametrize("device", list(DEVICES))


class CorruptingRuntime(FakeAsyncRuntime):
    """A device that receives one wrong byte in each copy, or in each copy of one size."""

    def __init__(self, num_bytes: int | None = None, *, name: str = "fake:0") -> None:
        """Damage the first fp32 value in its mantissa's largest byte."""
        super().__init__(lag_s=0.0, name=name)
        self.num_bytes = num_bytes

    def copy(self, pairs: Sequence[CopyPair], stream: FakeStream) -> None:
        super().copy([(target, self._damaged(source)) for target, source in pairs], stream)

    def _damaged(self, source: torch.Tensor) -> torch.Tensor:
        if self.num_bytes in (None, source.numel()):
            source = source.clone()
            source[2] ^= 0x40
        return source


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


def streamed_names(plan: ls.PlacementPlan) -> set[str]:
    return {unit.name for unit in plan.units if unit.residency is not ls.Residency.DEVICE}


@on_both_devices
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "mixtral", "gemma2", "gpt_oss"])
def test_a_sound_model_is_equal_and_still_exact_afterwards(
    family: str, dtype: str, device: str, tmp_path: Path
) -> None:
    """Stored in fp32: in bf16 the copy casts by itself, too."""
    path = save_tiny(family, tmp_path)
    plain = reference(path, dtype)
    with ls.load(
        path, dtype=dtype, budget="min", workload=WORKLOAD, verify=True, runtime=DEVICES[device]()
    ) as streamed:
        assert streamed.report().sweeps == 0
        assert_same(logits(plain), logits(streamed.model), "after load(verify=True)")
        report = streamed.verify()
        assert_same(logits(plain), logits(streamed.model), "after verify()")
    assert report.is_equal, report.explain()
    names = [unit.unit for unit in report.units]
    assert set(names) <= streamed_names(streamed.plan)
    assert names[-1] == streamed.plan.units[-1].name
    decoder = [unit.name for unit in streamed.plan.units[:-1]]
    assert (names[0], names[-2]) == (decoder[0], decoder[-1])
    assert all(unit.num_values > 0 and unit.device == streamed.plan.device for unit in report.units)
    assert ls.VerificationReport.from_dict(report.to_dict()) == report


@pytest.mark.parametrize(
    "granularity", [ls.Granularity.BLOCK, ls.Granularity.LAYER], ids=lambda granularity: granularity.value
)
def test_units_of_each_kind_are_checked_at_every_size(granularity: ls.Granularity, tmp_path: Path) -> None:
    with stream_in(save_wide_llama(tmp_path), granularity, ls.Workload()) as streamed:
        names = [unit.unit for unit in streamed.verify().units]
    if granularity is ls.Granularity.BLOCK:
        assert names == ["model.layers.0", "model.layers.3", "model.layers.5", "lm_head"]
    else:
        # k_proj and v_proj are of one kind, as are q_proj and o_proj, gate_proj and up_proj.
        kinds = {name.rpartition(".")[2] for name in names}
        assert kinds >= {"q_proj", "k_proj", "gate_proj", "down_proj", "lm_head"}


def test_blocks_that_differ_in_a_setting_only_are_of_different_kinds(tmp_path: Path) -> None:
    """One block in four attends to all tokens; the first, the middle one and the last do not."""
    path = save_tiny("gemma3_text", tmp_path)
    with ls.load(path, budget=budget_bytes(path, "auto", "mixed"), workload=WORKLOAD) as streamed:
        checked = [unit.unit for unit in streamed.verify().units]
        types = streamed.model.config.layer_types
    blocks = {int(name.split(".")[2]) for name in checked if name.startswith("model.layers")}
    assert {types[block] for block in blocks} == set(types)


@pytest.mark.parametrize("budget", ["min", "mixed"])
def test_units_from_host_memory_are_checked_too(llama_dir: Path, budget: str) -> None:
    device = budget_bytes(llama_dir, "float32", budget)
    memory = ls.MemoryBudget(device=device, host="1 GiB")
    with ls.load(llama_dir, budget=memory, workload=WORKLOAD, runtime=DEVICES["fake"]()) as streamed:
        assert streamed.plan.count(ls.Residency.HOST) > 0
        report = streamed.verify()
    assert report.is_equal
    assert {unit.unit for unit in report.units} <= streamed_names(streamed.plan)


@pytest.mark.parametrize("kind", [*(name for name in KINDS if "tuning" not in name), "experts"])
def test_adapters_are_part_of_what_is_compared(kind: str, tmp_path: Path) -> None:
    path = save_tiny("mixtral" if kind == "experts" else "llama", tmp_path / "base")
    configure = experts_lora if kind == "experts" else KINDS[kind]
    adapter = save_adapter(reference(path), configure, tmp_path / "adapter")
    with ls.load(path, adapter=adapter, budget="min", workload=WORKLOAD, verify=True) as streamed:
        assert_same(
            {"logits": streamed.model(torch.arange(1, 9)[None]).logits},
            {"logits": streamed.model(torch.arange(1, 9)[None]).logits},
            "two forwards",
        )
        assert len(streamed.verify().units) > 3


@on_both_devices
def test_a_head_in_slices_is_compared_as_a_whole_or_slice_by_slice(device: str, tmp_path: Path) -> None:
    path = save_with_a_large_vocabulary(tmp_path)
    with ls.load(
        path, budget="min", workload=WORKLOAD, allow_sliced_head=True, runtime=DEVICES[device]()
    ) as streamed:
        assert streamed.plan.head_slices > 1
        report = streamed.verify()
    assert report.is_equal
    assert (report.units[-1].unit, report.units[-1].num_values) == ("lm_head", 6007)


def test_a_model_with_prompts_in_chunks_is_compared_within_one_chunk(llama_dir: Path) -> None:
    workload = ls.Workload(prompt_tokens=12, new_tokens=1, prefill_chunk_tokens=3)
    with ls.load(llama_dir, budget="min", workload=workload) as streamed:
        assert streamed.verify().is_equal


@pytest.mark.parametrize("names", [("cpu", "cpu"), ("fake:0", "fake:1"), ("fake:0", "fake:0")])
def test_every_replica_is_verified(names: tuple[str, ...], llama_dir: Path) -> None:
    runtimes: Any = None if names[0] == "cpu" else [FakeAsyncRuntime(lag_s=0.0, name=name) for name in names]
    devices = names if runtimes is None else None
    with ls.load(
        llama_dir, budget="min", workload=WORKLOAD, devices=devices, runtime=runtimes, verify=True
    ) as streamed:
        report = streamed.verify()
        one, two = (logits(replica.model) for replica in streamed.replicas)
        assert_same(one, two, "the replicas afterwards")
    half = len(report.units) // 2
    assert tuple(unit.device for unit in report.units) == (names[0],) * half + (names[1],) * half
    assert [unit.unit for unit in report.units[:half]] == [unit.unit for unit in report.units[half:]]


# -- what is broken is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "llama_tied"])
def test_one_wrong_byte_in_each_copy_is_an_error_with_figures(family: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path)
    with pytest.raises(ls.VerificationError, match=r"differs in \S+ of \S+ values") as caught:
        ls.load(path, budget="min", workload=WORKLOAD, verify=True, runtime=CorruptingRuntime())
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.device == "fake:0"
    assert error.num_different > 0
    assert error.largest_difference is None or error.largest_difference > 0
    assert error.unit == error.report.different[0].unit
    for text in (torch.__version__, ls.__version__, error.unit, "Another budget"):
        assert text in str(error)


def test_only_the_unit_that_is_broken_is_named(llama_dir: Path) -> None:
    plan = ls.plan(llama_dir, budget="min", workload=WORKLOAD, machine=card())
    head = plan.units[-1]
    runtime = CorruptingRuntime(head.weight_bytes)
    with ls.load(llama_dir, budget="min", workload=WORKLOAD, runtime=runtime) as streamed:
        report = streamed.verify()
    assert not report.is_equal
    assert [unit.unit for unit in report.different] == [head.name]
    assert "1 of them FAILED" in report.explain()


def card() -> ls.Machine:
    return ls.Machine(device="cuda:0", device_memory_bytes=10**9, host_memory_bytes=10**9)


def test_a_broken_device_beside_a_sound_one_is_named(llama_dir: Path) -> None:
    runtimes = [FakeAsyncRuntime(lag_s=0.0), CorruptingRuntime(name="fake:1")]
    with pytest.raises(ls.VerificationError, match="on fake:1") as caught:
        ls.load(llama_dir, budget="min", workload=WORKLOAD, verify=True, runtime=runtimes)
    assert {unit.device for unit in caught.value.report.different} == {"fake:1"}


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.layers.4.mlp.down_proj"])
def test_a_damaged_slot_of_the_cpu_is_found(name: str, llama_dir: Path) -> None:
    """The damage goes around torch, once, as from outside: through numpy's view of the memory."""
    damages = [1.0]

    def damage(module: nn.Module, _: object) -> None:
        if damages:
            module.weight.detach().numpy()[0, 0] += damages.pop()

    with ls.load(llama_dir, budget="min", workload=WORKLOAD) as streamed:
        handle = streamed.model.get_submodule(name).register_forward_pre_hook(damage)
        report = streamed.verify()
        handle.remove()
        assert streamed.verify().is_equal
    (different,) = report.different
    assert different.unit == name
    # one output feature, in each of the tokens
    assert 1 <= different.num_different <= 8


def test_an_output_that_is_not_a_number_on_one_side_has_no_largest_difference(llama_dir: Path) -> None:
    damages = [float("nan")]

    def damage(module: nn.Module, _: object) -> None:
        if damages:
            module.weight.detach().numpy()[0, 0] = damages.pop()

    with ls.load(llama_dir, budget="min", workload=WORKLOAD) as streamed:
        streamed.model.get_submodule("model.layers.4.mlp.down_proj").register_forward_pre_hook(damage)
        different = streamed.verify().different[0]
    assert different.largest_difference is None
    assert "by at most" not in different.explain()


def test_a_forward_without_a_finite_value_proves_nothing_and_is_an_error(tmp_path: Path) -> None:
    """A resident embedding gives NaN to every unit, which then gives NaN although it is sound."""
    path = save_tiny("gpt2", tmp_path)
    with ls.load(path, budget="min", workload=WORKLOAD) as streamed:
        streamed.model.get_submodule("transformer.wpe").weight.data.fill_(float("nan"))
        report = streamed.verify()
        assert "of them FAILED" in report.explain()
        with pytest.raises(
            ls.VerificationError, match=r"not comparable: none of \S+ values is finite"
        ) as caught:
            refuse_difference(report)
    assert "This does not show whether results are exact" in str(caught.value)


# -- when it runs ------------------------------------------------------------------------------------------


def test_a_resident_model_has_nothing_to_verify_and_says_so(llama_dir: Path) -> None:
    with ls.load(llama_dir, budget=PLENTY, workload=WORKLOAD, verify=True) as streamed:
        report = streamed.verify()
        assert streamed.report().sweeps == 0
    assert report.units == ()
    assert report.is_equal
    assert "nothing to verify" in report.explain()


def test_the_modes_of_torch_do_not_matter(llama_dir: Path) -> None:
    with ls.load(llama_dir, budget="min", workload=WORKLOAD) as streamed:
        for mode in (torch.inference_mode, torch.enable_grad, torch.no_grad):
            with mode():
                assert streamed.verify().is_equal
        streamed.model.requires_grad_(False)
        assert streamed.verify().is_equal


def test_forwards_of_another_thread_wait_and_are_exact(llama_dir: Path) -> None:
    plain = logits(reference(llama_dir))
    with ls.load(llama_dir, budget="min", workload=WORKLOAD) as streamed:
        model: PreTrainedModel = streamed.model
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.extend(logits(model) for _ in range(4)))
        thread.start()
        reports = [streamed.verify() for _ in range(3)]
        thread.join()
    assert all(report.is_equal for report in reports)
    assert len(results) == 4
    for result in results:
        assert_same(plain, result, "beside verify()")


def test_it_is_refused_inside_a_task_and_on_a_closed_model(llama_dir: Path) -> None:
    with ls.load(llama_dir, budget="min", workload=WORKLOAD) as streamed:
        (result,) = streamed.group.run([Task(call=streamed.verify)])
        assert isinstance(result.error, ls.StreamError)
        assert "inside a task" in str(result.error)
    with pytest.raises(ls.StreamClosedError):
        streamed.verify()


def test_ctrl_c_during_a_copys_forward_leaves_a_model_that_works(llama_dir: Path) -> None:
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    plain = logits(reference(llama_dir))
    with ls.load(llama_dir, budget="min", workload=WORKLOAD) as streamed:
        handle = streamed.model.lm_head.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            streamed.verify()
        handle.remove()
        assert_same(plain, logits(streamed.model), "after Ctrl-C")
