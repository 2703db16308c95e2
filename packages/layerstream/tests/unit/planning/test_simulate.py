"""The simulated pipeline, against timelines drawn by hand."""

from __future__ import annotations

import itertools

import pytest

from layerstream.planning.placement import plan_placement
from layerstream.planning.simulate import Buffers, simulate_pipeline, simulate_spans, sweep_ends
from layerstream.planning.visit_times import VisitTimes
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import Residency
from layerstream.spec.timeline import Activity

from .shapes import cpu, small_model

DEVICE, HOST, DISK = Residency.DEVICE, Residency.HOST, Residency.DISK


def _times(count: int, *, read_s: float, copy_s: float = 0.0, compute_s: float) -> VisitTimes:
    return VisitTimes(
        unit_index=tuple(range(count)),
        read_bytes=(1,) * count,
        copy_bytes=(1,) * count,
        read_s=(read_s,) * count,
        copy_s=(copy_s,) * count,
        compute_s=(compute_s,) * count,
    )


@pytest.mark.parametrize(
    ("places", "times", "buffers", "ends"),
    [
        # nothing moves: computation alone
        ([DEVICE] * 4, _times(4, read_s=9, compute_s=1), Buffers(0, 0), [4, 8]),
        # the disk is the bound: every read back to back, the last computation after the last read
        ([DISK] * 4, _times(4, read_s=3, compute_s=1), Buffers(2, 0), [13, 25]),
        # computation is the bound: only the first read is waited for
        ([DISK] * 4, _times(4, read_s=1, compute_s=3), Buffers(2, 0), [13, 25]),
        # one slot: reads and computations alternate
        ([DISK] * 4, _times(4, read_s=2, compute_s=2), Buffers(1, 0), [16, 32]),
        # reads run ahead into staging while copies wait for slots
        ([DISK] * 4, _times(4, read_s=3, copy_s=1, compute_s=1), Buffers(2, 2), [14, 26]),
        # host residents start at the copy
        ([HOST] * 4, _times(4, read_s=9, copy_s=2, compute_s=1), Buffers(2, 0), [9, 17]),
        # half of the units resident: half as many reads
        ([DISK, DEVICE] * 2, _times(4, read_s=4, compute_s=1), Buffers(2, 0), [10, 18]),
    ],
)
def test_sweeps_end_as_in_the_timeline_drawn_by_hand(
    places: list[Residency], times: VisitTimes, buffers: Buffers, ends: list[float]
) -> None:
    assert sweep_ends(times, places, buffers, 2) == ends


def test_a_read_waits_until_the_computation_on_its_slot_is_done() -> None:
    visits = list(simulate_pipeline(_times(6, read_s=1, compute_s=5), [DISK] * 6, Buffers(2, 0), 1))
    for earlier, later in zip(visits, visits[2:], strict=False):
        assert later.read_start_s == earlier.compute_end_s


def test_a_third_slot_evens_out_units_of_unequal_size() -> None:
    # a long computation hides two reads only if there is a slot for each
    times = VisitTimes(
        unit_index=(0, 1, 2),
        read_bytes=(1,) * 3,
        copy_bytes=(0,) * 3,
        read_s=(1.0, 2.0, 2.0),
        copy_s=(0.0,) * 3,
        compute_s=(4.0, 0.1, 0.1),
    )
    two, three = (sweep_ends(times, [DISK] * 3, Buffers(count, 0), 4) for count in (2, 3))
    assert three[-1] < two[-1]


def test_spans_account_for_every_second_of_the_computing_thread_and_every_byte() -> None:
    model, machine = small_model(), cpu()
    plan = plan_placement(
        profile=model, budget=MemoryBudget(device="80 MB"), workload=Workload(), machine=machine
    )
    spans = simulate_spans(plan, model, machine, tokens=1, sweeps=2)
    busy = sorted(
        (s for s in spans if s.activity in (Activity.WAIT, Activity.COMPUTE)), key=lambda span: span.start_s
    )
    assert busy[0].start_s == 0.0
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(busy))
    assert (
        sum(span.num_bytes for span in spans if span.activity is Activity.READ)
        == 2 * plan.cost.read_bytes
        > 0
    )
    assert {span.unit for span in spans if span.activity is Activity.COMPUTE} == {
        unit.name for unit in plan.units
    }
