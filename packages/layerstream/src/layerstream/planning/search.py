"""Search for the fastest arrangement within the device and host budgets.

Candidates are simulated in the order of a lower bound on their time, until that bound exceeds the best time
found. So the result is the best of all candidates, and more device memory, which only adds candidates, never
makes it worse. The search is cut short only for models with hundreds of units, which would take too long.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..spec.plans import Granularity, Residency, SweepCost
from .arrange import Arrangement, PlanningProblem
from .candidates import Configuration, units_at, visited_units
from .cost import SIMULATED_SWEEPS, WorkloadTimes, bound_s, sweep_cost, workload_s
from .residency import spread_sizes
from .simulate import Buffers
from .visit_times import Forward, visit_times

MAX_SIMULATED_VISITS = 30_000
"""The search ends after this many simulated visits: hundreds of units are planned in under 0.2 s."""

_FINENESS = {Granularity.BLOCK: 0, Granularity.PART: 1, Granularity.LAYER: 2}


class _Candidate(NamedTuple):
    """A configuration with its `rank`-th largest set of residents.

    Candidates are ordered by the bound; ties go to coarser units, then fewer slots, then more residents.
    """

    bound_s: float
    fineness: int
    num_slots: int
    minus_resident_bytes: int
    position: int
    rank: int


class _Simulated(NamedTuple):
    """An arrangement that was simulated; `key` orders by time, then as candidates are ordered."""

    key: tuple[float, int, int, int]
    arrangement: Arrangement
    cost: SweepCost


@dataclass(slots=True, kw_only=True)
class Search:
    """Searches the candidates of one problem, and caches the tables that configurations share.

    Attributes:
        problem: the model, the workload and the machine.
        device_budget_bytes: the bound on device memory.
    """

    problem: PlanningProblem
    device_budget_bytes: int
    _tables: dict[Granularity, list[tuple[int, int]]] = field(default_factory=dict)
    _times: dict[tuple[Granularity, int, Residency | None], WorkloadTimes] = field(default_factory=dict)

    def least_host_bytes(self, configuration: Configuration) -> int:
        """Return the smallest host memory with which `configuration` can run."""
        _, num_resident = self._resident_choices(configuration)[0]
        return self.problem.least_host_bytes(configuration, num_resident)

    def best(
        self, configurations: Sequence[Configuration], host_budget_bytes: int
    ) -> tuple[Arrangement, SweepCost]:
        """Return the fastest arrangement of `configurations` and its cost.

        Args:
            configurations: those that fit the device budget.
            host_budget_bytes: the bound on host memory; at least one configuration must fit it.
        """
        choices = [self._resident_choices(configuration) for configuration in configurations]

        def candidate(position: int, rank: int) -> _Candidate:
            configuration, resident_bytes = configurations[position], choices[position][rank][0]
            bound = self._bound_s(configuration, resident_bytes, host_budget_bytes)
            fineness = _FINENESS[configuration.granularity]
            return _Candidate(bound, fineness, configuration.num_slots, -resident_bytes, position, rank)

        heap = [candidate(position, 0) for position in range(len(configurations))]
        heapq.heapify(heap)
        best: _Simulated | None = None
        visits_left = MAX_SIMULATED_VISITS
        while heap and (best is None or (heap[0].bound_s <= best.key[0] and visits_left > 0)):
            taken = heapq.heappop(heap)
            arrangement = self.problem.arrange(
                configurations[taken.position], choices[taken.position][taken.rank][1], host_budget_bytes
            )
            if arrangement is None:
                # fewer residents would only need more host memory
                continue
            if taken.rank + 1 < len(choices[taken.position]):
                heapq.heappush(heap, candidate(taken.position, taken.rank + 1))
            visits_left -= (SIMULATED_SWEEPS + 1) * len(arrangement.residencies)
            simulated = self._simulate(taken, arrangement)
            best = simulated if best is None or simulated.key < best.key else best
        assert best is not None, "the host budget was checked against the least that configurations need"
        return best.arrangement, best.cost

    def _resident_choices(self, configuration: Configuration) -> list[tuple[int, int]]:
        """Return (bytes, number) of the sets of resident decoder units that fit the device, largest first."""
        granularity = configuration.granularity
        units = units_at(self.problem.profile, granularity)
        if granularity not in self._tables:
            self._tables[granularity] = spread_sizes([unit.slot_bytes for unit in units])
        table = self._tables[granularity]
        if not configuration.num_slots:
            return table[:1]
        available_bytes = (
            self.device_budget_bytes - self.problem.least_device_bytes(configuration)
        ) // self.problem.weight_copies
        fitting = table[bisect_left(table, -available_bytes, key=lambda row: -row[0]) :]
        streams_head = self.problem.profile.head is not None and not configuration.head_on_device
        # slots that no unit passes through are wasted; the configuration without slots covers that case
        return fitting if streams_head else [row for row in fitting if row[1] < len(units)]

    def _bound_s(self, configuration: Configuration, resident_bytes: int, host_budget_bytes: int) -> float:
        """Return a lower bound on the time of arrangements that keep `resident_bytes` on the device."""
        units = visited_units(self.problem.profile, configuration.granularity)
        head = self.problem.profile.head
        kept = resident_bytes + (head.slot_bytes if head and configuration.head_on_device else 0)
        in_host = 0
        if not self.problem.machine.device_is_host:
            in_host = host_budget_bytes
            in_host += head.slot_bytes if head and self.problem.head_is_free_in_host(configuration) else 0
        read_ratio = max(unit.read_bytes / max(1, unit.slot_bytes) for unit in units)
        copy_ratio = max(unit.weight_bytes / max(1, unit.slot_bytes) for unit in units)
        read, weight = sum(unit.read_bytes for unit in units), sum(unit.weight_bytes for unit in units)
        return bound_s(
            self._workload_times(configuration),
            read_share=max(0.0, 1 - (kept + in_host) * read_ratio / max(1, read)),
            copy_share=max(0.0, 1 - kept * copy_ratio / max(1, weight)),
        )

    def _simulate(self, candidate: _Candidate, arrangement: Arrangement) -> _Simulated:
        configuration = arrangement.configuration
        times = self._workload_times(configuration)
        cost = sweep_cost(
            times, arrangement.residencies, Buffers(configuration.num_slots, arrangement.num_staging)
        )
        # times that differ only by rounding are equal, so that the coarser one wins
        seconds = float(f"{workload_s(cost, times.new_tokens):.9g}")
        key = (seconds, candidate.fineness, candidate.num_slots, candidate.minus_resident_bytes)
        return _Simulated(key, arrangement, cost)

    def _workload_times(self, configuration: Configuration) -> WorkloadTimes:
        key = (configuration.granularity, configuration.head_slices, configuration.embedding)
        if key not in self._times:
            workload = self.problem.workload
            prefill, decode = (
                visit_times(
                    self.problem.profile,
                    self.problem.machine,
                    Forward(
                        batch_size=workload.batch_size,
                        tokens=tokens,
                        granularity=configuration.granularity,
                        head_slices=configuration.head_slices,
                        embedding=configuration.embedding,
                    ),
                )
                for tokens in (workload.prompt_tokens, 1)
            )
            self._times[key] = WorkloadTimes(prefill=prefill, decode=decode, new_tokens=workload.new_tokens)
        return self._times[key]
