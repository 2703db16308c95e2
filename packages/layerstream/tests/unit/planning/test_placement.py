"""What the planner decides, as tables of budgets and machines."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from layerstream.errors import BudgetTooSmallError, PlanError
from layerstream.planning.placement import plan_placement
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import Granularity, LedgerKind, MemoryTier, PlacementPlan, Residency
from layerstream.spec.profiles import Machine, ModelProfile
from layerstream.spec.sizes import GIB, format_bytes

from .shapes import READ_BUFFER_BYTES, card, cpu, llama_70b, small_model, unit


def _plan(
    model: ModelProfile,
    machine: Machine,
    device: int | str = "auto",
    host: int | str = "auto",
    *,
    allow_sliced_head: bool = False,
    prefix_bytes: int = 0,
    **workload: int,
) -> PlacementPlan:
    return plan_placement(
        profile=model,
        budget=MemoryBudget(device=device, host=host),
        workload=Workload(**workload),
        machine=machine,
        allow_sliced_head=allow_sliced_head,
        prefix_bytes=prefix_bytes,
    )


def test_a_model_that_fits_is_fully_resident_without_slots() -> None:
    plan = _plan(small_model(), cpu())
    assert plan.is_resident
    assert (plan.num_slots, plan.slot_bytes, plan.num_staging, plan.cost.read_bytes) == (0, 0, 0, 0)
    assert plan.ledger.device_bytes == 8 * 10_000_000 + 2 * 4_000_000 + 1000 + READ_BUFFER_BYTES
    assert plan.ledger.device_budget_bytes == int(16 * GIB * 0.9)


def test_on_a_cpu_only_the_device_budget_counts() -> None:
    plan = _plan(small_model(), cpu(), device="80 MB", host=1)
    assert plan.ledger.host_budget_bytes == 0
    assert {line.where for line in plan.ledger.lines} == {MemoryTier.DEVICE}
    assert plan.count(Residency.HOST) == 0
    assert plan.num_staging == 0
    assert plan.cost.copy_s == 0.0
    assert plan.cost.limited_by == "disk"


def test_a_budget_above_the_machines_memory_is_taken_as_given() -> None:
    assert _plan(small_model(), cpu(memory_bytes=50_000_000), device="1 GB").is_resident


@pytest.mark.parametrize(("num_slots_room", "resident"), [(0, 0), (1, 1), (2, 2), (4, 4)])
def test_the_rest_of_the_budget_holds_evenly_spread_blocks(num_slots_room: int, resident: int) -> None:
    model = replace(small_model(head=False, embedding_bytes=0), parts=())
    plan = _plan(model, cpu(), device=READ_BUFFER_BYTES + 1000 + (2 + num_slots_room) * 10_000_000)
    assert plan.count(Residency.DEVICE) == resident
    assert plan.placement_map() == {0: "." * 8, 1: "....D...", 2: "..D...D.", 4: ".D.D.D.D"}[resident]


def test_half_of_the_blocks_resident_cuts_a_disk_bound_sweep_to_six_tenths() -> None:
    model = replace(small_model(head=False, embedding_bytes=0), parts=())
    streamed, half = (
        _plan(model, cpu(), device=READ_BUFFER_BYTES + 1000 + count * 10_000_000) for count in (2, 6)
    )
    assert half.cost.sweep_s <= 0.6 * streamed.cost.sweep_s


@pytest.mark.parametrize("machine", [cpu(), card(8, 16)])
def test_min_takes_two_slots_of_the_finest_units_and_keeps_the_embedding_off_the_device(
    machine: Machine,
) -> None:
    plan = _plan(small_model(), machine, device="min", host="min")
    assert (plan.granularity, plan.num_slots, plan.slot_bytes) == (Granularity.PART, 2, 6_000_000)
    assert plan.embedding is Residency.DISK
    assert plan.count(Residency.DISK) == len(plan.units) == 17
    assert plan.ledger.device_bytes == plan.ledger.device_budget_bytes
    assert plan.ledger.host_bytes == plan.ledger.host_budget_bytes


def test_min_for_the_device_alone_leaves_host_memory_to_the_units() -> None:
    plan = _plan(small_model(), card(8, 16), device="min")
    assert plan.embedding is Residency.HOST
    assert plan.count(Residency.HOST) == len(plan.units)
    assert plan.num_staging == 0
    assert LedgerKind.STAGING not in {line.kind for line in plan.ledger.lines}


def test_memory_that_only_loading_takes_is_not_asked_for_twice() -> None:
    model = replace(small_model(), read_buffer_bytes=100_000, loading_buffer_bytes=8_000_000)
    least = _plan(model, card(8, 16), device="min", host="min")
    assert least.ledger.host_bytes == least.ledger.host_budget_bytes == 2 * 6_000_000 + 100_000
    ample = _plan(model, card(8, 16), device="min", host="auto")
    assert ample.count(Residency.HOST) == len(ample.units)
    for plan in (least, ample):
        again = _plan(model, card(8, 16), device="min", host=plan.ledger.host_bytes)
        assert again.units == plan.units


def test_what_loading_takes_is_part_of_the_least_host_budget() -> None:
    model = replace(small_model(), read_buffer_bytes=100_000, loading_buffer_bytes=50_000_000)
    least = _plan(model, card(8, 16), device="min", host="min")
    assert least.ledger.host_bytes == least.ledger.host_budget_bytes == 50_000_000
    assert least.count(Residency.HOST) > 0


def test_a_head_larger_than_a_slot_is_streamed_in_vocabulary_slices() -> None:
    model = replace(
        small_model(tied=True, embedding_bytes=50_000_000),
        head=unit("lm_head", None, 25_000_000),
        head_rows=50_000,
    )
    plan = _plan(model, cpu(), device="min")
    assert plan.head_slices == 16
    assert plan.slot_bytes == 6_000_000


def test_a_large_head_that_cannot_be_sliced_stays_on_the_device_rather_than_twice_in_slots() -> None:
    model = replace(
        small_model(embedding_bytes=50_000_000), head=unit("lm_head", None, 25_000_000), head_rows=0
    )
    plan = _plan(model, cpu(), device="min")
    assert plan.head_slices == 1
    assert plan.units[-1].residency is Residency.DEVICE
    assert plan.ledger.device_bytes == 50_000_000 + 2 * 6_000_000 + 1000 + READ_BUFFER_BYTES


def large_head(*, tied: bool) -> ModelProfile:
    """Return a model whose head of 50 MB is larger than any slot of its blocks."""
    head = unit("lm_head", None, 25_000_000)
    return replace(small_model(tied=tied, embedding_bytes=50_000_000), head=head, head_rows=50_000)


@pytest.mark.parametrize("tied", [False, True])
def test_on_an_accelerator_a_head_is_sliced_only_if_the_user_allows_it(tied: bool) -> None:
    for device in ("min", "600 MB", "700 MB"):
        whole = _plan(large_head(tied=tied), card(8, 16), device=device)
        assert (whole.head_slices, whole.is_bit_exact) == (1, True)
        assert "bit-exact" not in whole.explain()
    sliced = _plan(large_head(tied=tied), card(8, 16), device="min", allow_sliced_head=True)
    assert sliced.head_slices > 1
    assert sliced.ledger.device_bytes < _plan(large_head(tied=tied), card(8, 16), "min").ledger.device_bytes
    assert not sliced.is_bit_exact
    assert sliced.to_dict()["is_bit_exact"] is False
    assert f"not bit-exact, as allowed: a head in {sliced.head_slices} vocabulary slices" in sliced.explain()


def test_on_the_cpu_a_sliced_head_is_exact_and_needs_no_permission() -> None:
    plan = _plan(large_head(tied=True), cpu(), device="min")
    assert plan == _plan(large_head(tied=True), cpu(), device="min", allow_sliced_head=True)
    assert plan.head_slices > 1
    assert plan.is_bit_exact


def test_prompts_in_chunks_are_not_promised_to_be_bit_exact_anywhere() -> None:
    for machine in (cpu(), card(8, 16)):
        plan = _plan(small_model(), machine, prefill_chunk_tokens=64)
        assert not plan.is_bit_exact
        assert "not bit-exact, as allowed: prompts in chunks of 64 tokens" in plan.explain()
        assert PlacementPlan.from_dict(plan.to_dict()) == plan


def test_a_budget_that_only_a_sliced_head_would_fit_names_the_option_and_what_it_needs() -> None:
    sliced = _plan(large_head(tied=True), card(8, 16), "min", allow_sliced_head=True).ledger
    with pytest.raises(BudgetTooSmallError, match="results may differ in the last bit") as caught:
        _plan(large_head(tied=True), card(8, 16), device=sliced.device_bytes)
    assert "allow_sliced_head=True (--allow-sliced-head) needs only" in str(caught.value)
    assert f"({sliced.device_bytes} bytes), but" in str(caught.value)
    assert caught.value.needed_bytes > sliced.device_bytes
    with pytest.raises(BudgetTooSmallError) as caught:
        _plan(large_head(tied=True), card(8, 16), sliced.device_bytes - 1, allow_sliced_head=True)
    assert "allow_sliced_head" not in str(caught.value)


@pytest.mark.parametrize("machine", [cpu(), card(8, 16)])
def test_the_option_is_not_named_where_it_would_not_help(machine: Machine) -> None:
    with pytest.raises(BudgetTooSmallError) as caught:
        _plan(small_model(), machine, device=1000)
    assert "allow_sliced_head" not in str(caught.value)


def test_a_host_budget_that_only_a_sliced_head_would_fit_names_the_option_too() -> None:
    """The head is larger than a slot, but two of it take less of the device than one beside the slots."""
    head = unit("lm_head", None, 5_000_000)
    model = replace(small_model(tied=True, embedding_bytes=10_000_000), head=head, head_rows=50_000)
    device = card(8, 16).runtime_bytes + 21_000_000
    sliced = _plan(model, card(8, 16), device, "min", allow_sliced_head=True)
    assert sliced.ledger.host_bytes < _plan(model, card(8, 16), device, "min").ledger.host_bytes
    with pytest.raises(BudgetTooSmallError, match=r"host budget.*allow_sliced_head=True") as caught:
        _plan(model, card(8, 16), device, sliced.ledger.host_bytes)
    assert f"needs only {format_bytes(sliced.ledger.host_bytes)}" in str(caught.value)
    assert caught.value.where == "host"


def test_a_tied_head_is_on_the_device_exactly_when_the_embedding_is() -> None:
    for budget in range(48_000_000, 140_000_000, 4_000_000):
        plan = _plan(small_model(tied=True), cpu(), device=budget)
        assert (plan.units[-1].residency is Residency.DEVICE) == (plan.embedding is Residency.DEVICE)


def test_a_head_tied_to_a_host_embedding_takes_no_extra_memory() -> None:
    plan = _plan(small_model(tied=True), card(8, 16), device="min")
    sizes = {line.kind: line.num_bytes for line in plan.ledger.lines if line.where is MemoryTier.HOST}
    assert plan.units[-1].residency is Residency.HOST
    assert sizes == {
        LedgerKind.EMBEDDING: 4_000_000 + 2 * 4096,
        LedgerKind.HOST_BLOCKS: 80_000_000,
        LedgerKind.READ_BUFFERS: READ_BUFFER_BYTES,
    }


def test_an_embedding_that_is_not_row_addressable_belongs_to_the_edges() -> None:
    for budget in ("min", "auto"):
        assert _plan(small_model(embedding_bytes=0), cpu(), device=budget).embedding is None


def test_host_memory_holds_what_the_device_cannot_and_the_rest_is_staged() -> None:
    plan = _plan(small_model(), card(8, 16), device="min", host=READ_BUFFER_BYTES + 12_000_000 + 31_000_000)
    assert plan.count(Residency.HOST) > 0
    assert plan.count(Residency.DISK) > 0
    assert plan.num_staging == plan.num_slots == 2
    assert plan.ledger.host_bytes <= plan.ledger.host_budget_bytes


def test_budget_too_small_reports_needed_bytes_and_their_uses() -> None:
    with pytest.raises(
        BudgetTooSmallError, match=r"slots 11.4 MiB.*give at least .*shorten the workload"
    ) as caught:
        _plan(small_model(), cpu(), device="20 MB")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.where, error.budget_bytes) == ("device", 20_000_000)
    assert error.needed_bytes == 12_000_000 + 1000 + READ_BUFFER_BYTES
    assert _plan(small_model(), cpu(), device=error.needed_bytes).ledger.device_bytes == error.needed_bytes
    with pytest.raises(BudgetTooSmallError):
        _plan(small_model(), cpu(), device=error.needed_bytes - 1)


def test_a_host_budget_too_small_names_the_host() -> None:
    with pytest.raises(BudgetTooSmallError, match="host budget") as caught:
        _plan(small_model(), card(8, 16), device="min", host=1000)
    assert caught.value.where == "host"
    needed = caught.value.needed_bytes
    assert _plan(small_model(), card(8, 16), device="min", host=needed).ledger.host_bytes <= needed


def test_a_workload_that_grows_the_cache_displaces_residents() -> None:
    model = replace(
        small_model(), activation=replace(small_model().activation, cache_bytes_per_token=10_000.0)
    )
    short, long = (_plan(model, cpu(), device="110 MB", prompt_tokens=tokens) for tokens in (100, 2000))
    assert long.count(Residency.DEVICE) < short.count(Residency.DEVICE)


@pytest.mark.parametrize("change", [{"disk_bytes_per_s": 0.0}, {"flops_per_s": -1.0}])
def test_a_machine_without_speed_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="above 0"):
        _plan(small_model(), replace(cpu(), **change))


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(PlanError, match="no blocks"):
        _plan(replace(small_model(), blocks=()), cpu())


class TestThe70BShape:
    """80 blocks of 1.711 GB in fp16, on cards that you can buy."""

    def test_it_plans_on_a_16_gb_card_with_32_gb_of_host_memory_at_4096_tokens(self) -> None:
        plan = _plan(llama_70b(), card(16, 32), prompt_tokens=4096)
        assert plan.granularity is Granularity.BLOCK
        assert plan.slot_bytes == 1_711_276_032
        assert 5 <= plan.count(Residency.DEVICE) <= 10
        assert 12 <= plan.count(Residency.HOST) <= 15
        assert plan.ledger.device_bytes <= 16 * GIB
        assert plan.ledger.host_bytes <= 0.8 * 32 * GIB
        assert plan.cost.limited_by == "disk"
        assert plan.num_staging == plan.num_slots
        assert plan.cost.sweep_s == pytest.approx(plan.cost.read_bytes / 3.0e9, rel=0.02)

    def test_it_plans_on_a_4_gb_card_only_in_parts_of_blocks(self) -> None:
        plan = _plan(llama_70b(), card(4, 32), prompt_tokens=4096)
        assert plan.granularity is Granularity.LAYER
        assert plan.embedding is not Residency.DEVICE
        assert plan.slot_bytes == max(plan.units[-1].weight_bytes, 2 * 8192 * 28672)
        assert plan.head_slices == 1
        assert plan.ledger.device_bytes <= 4 * GIB
        sliced = _plan(llama_70b(), card(4, 32), prompt_tokens=4096, allow_sliced_head=True)
        assert (sliced.slot_bytes, sliced.head_slices) == (2 * 8192 * 28672, 2)
        with pytest.raises(BudgetTooSmallError):
            _plan(replace(llama_70b(), parts=(), layers=()), card(4, 32), prompt_tokens=4096)

    def test_it_is_resident_where_140_gb_are_free(self) -> None:
        plan = _plan(llama_70b(), card(160, 64))
        assert plan.is_resident
        assert plan.cost.limited_by == "compute"
        assert plan.ledger.device_bytes == pytest.approx(138e9, rel=0.02)

    def test_its_least_memory_is_two_slots_of_single_layers(self) -> None:
        plan = _plan(llama_70b(), cpu(), device="min")
        assert plan.granularity is Granularity.LAYER
        assert plan.ledger.device_bytes < 1.3 * GIB
        assert len(plan.units) == 561
        assert plan.count(Residency.DISK) == 561


@pytest.mark.parametrize("machine", [cpu(), card(8, 16)])
def test_the_least_budgets_grow_by_the_prefix_cache(machine: Machine) -> None:
    def least(prefix_bytes: int) -> tuple[int, int]:
        plan = _plan(small_model(), machine, device="min", host="min", prefix_bytes=prefix_bytes)
        assert plan.ledger.bytes_for(LedgerKind.PREFIX_CACHE) == prefix_bytes
        assert plan.ledger.device_bytes <= plan.ledger.device_budget_bytes
        assert plan.ledger.host_bytes <= plan.ledger.host_budget_bytes
        return plan.ledger.device_budget_bytes, plan.ledger.host_budget_bytes

    (device, host), (more_device, more_host) = least(0), least(50_000_000)
    on_cpu = machine.device_is_host
    assert (more_device - device, more_host - host) == ((50_000_000, 0) if on_cpu else (0, 50_000_000))


def test_the_prefix_cache_takes_the_place_of_resident_blocks() -> None:
    plain, reserved = (
        _plan(small_model(), cpu(), device="125 MB", prefix_bytes=size) for size in (0, 30_000_000)
    )
    assert plain.is_resident
    assert 0 < reserved.count(Residency.DEVICE) < len(reserved.units)
    assert "prefix cache" in reserved.explain()


@pytest.mark.parametrize(
    ("machine", "sizes", "where"),
    [(cpu(), {"device": "80 MB"}, "device"), (card(8, 16), {"device": "600 MB", "host": "70 MB"}, "host")],
)
def test_a_budget_without_room_for_the_prefix_cache_says_so(
    machine: Machine, sizes: dict[str, str], where: str
) -> None:
    _plan(small_model(), machine, **sizes)
    with pytest.raises(BudgetTooSmallError, match=r"reserve less .*\(prefix_cache 47.7 MiB\)") as caught:
        _plan(small_model(), machine, prefix_bytes=50_000_000, **sizes)
    assert caught.value.where == where
    assert "47.7 MiB" in str(caught.value).partition("; give")[0], "it is among what is needed"
    needed = sizes | {where: caught.value.needed_bytes}
    assert _plan(small_model(), machine, prefix_bytes=50_000_000, **needed).num_slots
