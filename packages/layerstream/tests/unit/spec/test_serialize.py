"""Values as dicts and back, and what is refused on the way back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from layerstream.errors import PlanError
from layerstream.planning.placement import plan_placement
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import LedgerKind, PlacementPlan, Residency
from layerstream.spec.profiles import ActivationProfile, Machine, ModelProfile, UnitProfile
from layerstream.spec.report import StreamReport
from layerstream.spec.serialize import from_dict, to_dict

UNIT = UnitProfile(
    name="layers.0", block=0, weight_bytes=10, slot_bytes=16, host_bytes=16, read_bytes=10, num_parameters=5
)
PROFILE = ModelProfile(
    name="tiny",
    model_type="llama",
    dtype="float16",
    num_parameters=5,
    blocks=(UNIT,) * 4,
    activation=ActivationProfile(fixed_bytes=1, bytes_per_token=2.5),
)
MACHINE = Machine(name="a card", device="cuda:0", device_memory_bytes=40_000, host_memory_bytes=2**30)


def plan() -> PlacementPlan:
    return plan_placement(
        profile=PROFILE,
        budget=MemoryBudget(device="min"),
        workload=Workload(prompt_tokens=4, new_tokens=2),
        machine=MACHINE,
    )


def test_a_plan_is_written_with_its_version_its_sums_and_its_labels() -> None:
    written = plan().to_dict()
    assert next(iter(written)) == "version" and written["version"] == 1
    assert written["granularity"] == "block"
    assert written["units"][0]["residency"] in {place.value for place in Residency}
    assert written["ledger"]["device_bytes"] == plan().ledger.device_bytes
    assert written["ledger"]["host_bytes"] == plan().ledger.host_bytes
    assert written["is_resident"] is False
    lines = written["ledger"]["lines"]
    assert {"kind": "slots", "where": "device", "num_bytes": 32, "purpose": "slots"} in lines
    assert {line["kind"] for line in lines} <= {kind.value for kind in LedgerKind}


@pytest.mark.parametrize("value", [plan(), PROFILE, MACHINE], ids=lambda value: type(value).__name__)
def test_a_value_is_read_back_from_a_file(
    value: PlacementPlan | ModelProfile | Machine, tmp_path: Path
) -> None:
    path = tmp_path / "value.json"
    path.write_text(json.dumps(value.to_dict()))
    assert type(value).from_dict(json.loads(path.read_text())) == value


def test_derived_keys_are_ignored_when_a_plan_is_read() -> None:
    written = plan().to_dict()
    written["ledger"]["device_bytes"] = "nonsense"
    del written["ledger"]["host_bytes"], written["is_resident"], written["ledger"]["lines"][0]["purpose"]
    assert PlacementPlan.from_dict(written) == plan()


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    written = plan().to_dict()
    change(written)
    return written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), r"PlacementPlan.version must be 1; found version 2: read it with"),
        (lambda d: d.update(version=True), "PlacementPlan.version must be 1; found version True"),
        (lambda d: d.pop("version"), "PlacementPlan.version must be 1; found no version"),
        (lambda d: d.pop("dtype"), r"PlacementPlan.dtype is missing: add it"),
        (lambda d: d["units"][2].pop("block"), r"PlacementPlan.units\[2\].block is missing"),
        (lambda d: d.update(colour="red"), "PlacementPlan.colour is not a field: remove it"),
        (lambda d: d["ledger"].update(total=1), "PlacementPlan.ledger.total is not a field"),
        (lambda d: d.update(num_slots="2"), r"num_slots must be an integer; found '2' \(str\): correct it"),
        (lambda d: d.update(num_slots=2.0), r"num_slots must be an integer; found 2.0 \(float\)"),
        (lambda d: d.update(num_slots=True), r"num_slots must be an integer; found True \(bool\)"),
        (lambda d: d["cost"].update(sweep_s=None), r"cost.sweep_s must be a number; found None"),
        (lambda d: d.update(dtype=16), "dtype must be a string; found 16"),
        (lambda d: d.update(devices="cpu"), "devices must be a list; found 'cpu'"),
        (lambda d: d.update(devices=["cpu", 1]), r"devices\[1\] must be a string; found 1"),
        (lambda d: d.update(ledger=[]), "ledger must be an object; found "),
        (lambda d: d["units"][0].update(residency="moon"), "one of 'device', 'host', 'disk'; found 'moon'"),
        (lambda d: d.update(embedding=3), "embedding must be one of 'device', 'host', 'disk'; found 3"),
    ],
)  # fmt: skip
def test_a_plan_that_was_damaged_is_refused_by_the_path_of_its_field(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        PlacementPlan.from_dict(changed(change))


def test_a_list_is_not_a_machine() -> None:
    with pytest.raises(PlanError, match="Machine must be an object"):
        from_dict(Machine, [1, 2])


def test_true_or_false_is_not_a_number() -> None:
    with pytest.raises(PlanError, match=r"Machine.measured must be true or false; found 1"):
        Machine.from_dict({**MACHINE.to_dict(), "measured": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A value with a mapping and a derived key."""

    DERIVED_KEYS: ClassVar = ("total",)

    sizes: Mapping[str, int]

    @property
    def total(self) -> int:
        """The sum of the sizes."""
        return sum(self.sizes.values())


def test_mappings_are_objects_and_their_values_are_checked() -> None:
    table = Table(sizes={"a": 1, "b": 2})
    assert to_dict(table) == {"version": 1, "sizes": {"a": 1, "b": 2}, "total": 3}
    assert from_dict(Table, to_dict(table)) == table
    with pytest.raises(PlanError, match=r"Table.sizes.b must be an integer"):
        from_dict(Table, {"version": 1, "sizes": {"a": 1, "b": "2"}})


def test_a_report_is_written_with_its_read_rate() -> None:
    report = StreamReport(
        model_name="tiny",
        dtype="float16",
        device="cpu",
        sweeps=2,
        units=4,
        streamed_units=4,
        bytes_read=3000,
        bytes_copied=0,
        read_s=1.0,
        copy_s=0.0,
        wait_s=0.5,
        compute_s=1.0,
        elapsed_s=1.5,
        peak_device_bytes=10,
        peak_host_bytes=10,
        ledger_device_bytes=10,
        budget_device_bytes=10,
    )
    written = json.loads(json.dumps(report.to_dict()))
    assert (written["version"], written["read_bytes_per_s"], written["sweeps"]) == (1, 2000.0, 2)
