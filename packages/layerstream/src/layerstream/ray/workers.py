"""How many workers there are, what each takes of its node, and how many blocks it holds at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from ..errors import PlanError
from .loading import WorkerModel
from .nodes import refuse_without_room, warn_if_taken

DISK = "layerstream_disk"
"""The custom resource of a node: how many workers' worth of drives it has."""

BLOCKS_AT_ONCE = 3
"""Blocks that a worker holds: one whose last rows run, one that fills their places, and one that waits."""

_LEAST_SHARE = 0.0001
"""The smallest amount of a resource that Ray knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a job.

    Attributes:
        least: the number that always runs.
        most: the largest number that runs at once.
        num_cpus: cores for each; Ray also sets the number of its threads to it.
        num_gpus: accelerators for each.
        disk_share: the share of a node's drives that each takes, in units of `layerstream_disk`.
    """

    least: int = 1
    most: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    disk_share: float = 0

    @property
    def resources(self) -> dict[str, float]:
        """The custom resources that each takes."""
        return {DISK: self.disk_share} if self.disk_share else {}

    def compute(self, blocks_at_once: int = BLOCKS_AT_ONCE) -> ActorPoolStrategy:
        """Return what Ray Data calls these workers."""
        return ActorPoolStrategy(
            min_size=self.least,
            max_size=self.most,
            max_tasks_in_flight_per_actor=blocks_at_once,
            max_concurrent_calls_per_actor=blocks_at_once,
        )


def workers_of(
    concurrency: int | tuple[int, int], *, num_cpus: float, num_gpus: float, disk_share: float | None
) -> Workers:
    """Return the workers that a caller asks for.

    Args:
        concurrency: how many; a pair is the least and the most.
        num_cpus: cores for each.
        num_gpus: accelerators for each.
        disk_share: None is one whole unit where nodes declare `layerstream_disk`.

    Raises:
        PlanError: the number is not one, no node has room for such a worker, or several workers could meet on
            one drive.
    """
    least, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    if not 1 <= least <= most:
        raise PlanError(f"concurrency={concurrency!r} must be a number of workers, or the least and the most")
    declared = DISK in ray.cluster_resources()
    share = _default_share(most, declared=declared) if disk_share is None else rounded_down(disk_share)
    workers = Workers(least=least, most=most, num_cpus=num_cpus, num_gpus=num_gpus, disk_share=share)
    if declared or not share:
        refuse_without_room({"CPU": num_cpus, "GPU": num_gpus, **workers.resources})
        if share:
            warn_if_taken(DISK, share)
    # else who asks for a share of drives that no node has yet expects nodes that Ray starts as needed
    return workers


def rounded_down(share: float) -> float:
    """Return a share as Ray counts it. Ray rounds to the nearest: six times a sixth would be too much."""
    if not share:
        return 0.0
    # the rest of a multiplication must not make a whole step less
    return max(_LEAST_SHARE, math.floor(share / _LEAST_SHARE + 1e-6) / round(1 / _LEAST_SHARE))


def _default_share(most: int, *, declared: bool) -> float:
    if declared:
        return 1.0
    if most == 1:
        return 0.0
    raise PlanError(
        f"up to {most} workers were asked for, but no node says how many drives it has, so two of "
        f"them could share one, and each would be half as fast. Start each node with "
        f"--resources='{{\"{DISK}\": 1}}' (on one machine: ray.init(resources={{'{DISK}': 1}})), ask for one "
        "worker, or, in Python, give disk_share=0 to start as many on a node as its cores allow"
    )


def refuse_hidden_devices(model: WorkerModel, workers: Workers) -> None:
    """Do nothing if Ray shows a worker all the accelerators that it is to use.

    Raises:
        PlanError: `devices` names one that the worker does not see.
    """
    named = sorted({device for device in model.options.devices or () if device.startswith("cuda")})
    shown = _first_accelerators(math.ceil(workers.num_gpus))
    if not {device if ":" in device else f"{device}:0" for device in named} <= set(shown):
        raise PlanError(
            f"devices names {', '.join(named)}, but a worker is given {workers.num_gpus:g} accelerators, and "
            f"Ray shows it {', '.join(shown) or 'none'} alone, whatever their numbers on the node: give "
            f"num_gpus={len(named)} (--worker-gpus {len(named)}), and name "
            f"{', '.join(_first_accelerators(len(named)))}"
        )


def _first_accelerators(count: int) -> list[str]:
    return [f"cuda:{index}" for index in range(count)]


def block_rows(model: WorkerModel, workers: Workers) -> int:
    """Return how many rows share a sweep of a worker, as a node says that one could run on.

    Raises:
        BudgetTooSmallError: the budget holds not even one row there.
        LayerstreamError: the model cannot be used.
    """
    planned = (
        ray.remote(WorkerModel.rows_at_once)
        .options(
            num_cpus=workers.num_cpus,
            num_gpus=workers.num_gpus,
            resources={name: min(share, _LEAST_SHARE) for name, share in workers.resources.items()},
            max_retries=0,
        )
        .remote(model)
    )
    try:
        rows: int = ray.get(planned)
    except ray.exceptions.RayTaskError as error:
        # the error itself, and not one that is both Ray's and ours
        raise error.cause from None
    return rows


def in_blocks(
    rows: Dataset,
    worker: type,
    work: Any,
    workers: Workers,
    *,
    num_rows: int,
    blocks_at_once: int = BLOCKS_AT_ONCE,
) -> Dataset:
    """Return `rows` as workers will give them back, in blocks of `num_rows`. Runs nothing.

    A block is what is committed and what is repeated, so it is cut before the workers, whatever the source's
    files hold.
    """
    blocks = rows.repartition(target_num_rows_per_block=num_rows, strict=True)
    placed: Mapping[str, Any] = {"num_cpus": workers.num_cpus}
    if workers.num_gpus:
        placed = {**placed, "num_gpus": workers.num_gpus}
    if workers.resources:
        placed = {**placed, "resources": workers.resources}
    answered: Dataset = blocks.map_batches(
        worker,
        batch_size=None,
        batch_format="pyarrow",
        compute=workers.compute(blocks_at_once),
        fn_constructor_kwargs={"work": work},
        udf_modifying_row_count=False,
        **placed,
    )
    return answered
