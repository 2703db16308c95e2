"""Connect to a Ray, or start one on this machine, quietly; the command line does so before a job."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.data import DataContext

from ..errors import PlanError
from .workers import DISK, Workers, workers_of

LOCAL = "local"
"""What stands for a Ray of this command's own, in place of an address."""

_LEAST_CPUS = 6
"""Logical CPUs of a local Ray: a pipeline's other steps need some beside the workers', or it stands still."""

_OTHER_STEPS = 4
_REACHED_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Which Ray to use, and with how many workers.

    Attributes:
        address: `local`, or the address of a cluster.
        workers: at most this many; None is one for each drive that the nodes declare.
        worker_cpus: cores for each worker; None shares this machine's among local workers, and is 1
            elsewhere.
        worker_gpus: accelerators for each worker.
    """

    address: str
    workers: int | None = None
    worker_cpus: int | None = None
    worker_gpus: float = 0


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Workers]:
    """Connect to the cluster, or start a local one, which ends afterwards; give the workers to ask for.

    Raises:
        PlanError: the cluster cannot be reached, or has no room for such workers.
    """
    try:
        workers = _start(settings) if settings.address == LOCAL else _join(settings)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = False
        yield workers
    finally:
        ray.shutdown()


def _start(settings: ClusterSettings) -> Workers:
    num_workers = settings.workers or 1
    cores = os.cpu_count() or 1
    worker_cpus = settings.worker_cpus or max(1, cores // num_workers)
    # for Ray's own processes, which inherit them
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(
        address="local",
        num_cpus=max(_LEAST_CPUS, worker_cpus * num_workers + _OTHER_STEPS),
        resources={DISK: 1},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    # who asks for several workers on one machine wants them to share its drive
    return workers_of(
        num_workers, num_cpus=worker_cpus, num_gpus=settings.worker_gpus, disk_share=1 / num_workers
    )


def _join(settings: ClusterSettings) -> Workers:
    try:
        _knock(settings.address)
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise PlanError(
            f"there is no Ray at {settings.address!r} ({error}): start one with `ray start --head`, give its "
            "address, or --ray local"
        ) from error
    resources = ray.cluster_resources()
    most = settings.workers or max(1, int(resources.get(DISK, 1)))
    if DISK not in resources and most > 1:
        raise PlanError(
            f"--workers {most}: no node says how many drives it has, so two workers could share one, and "
            f"each would be half as fast: start the nodes with --resources='{{\"{DISK}\": 1}}', or leave out "
            "--workers"
        )
    return workers_of(
        (1, most), num_cpus=settings.worker_cpus or 1, num_gpus=settings.worker_gpus, disk_share=None
    )


def _knock(address: str) -> None:
    """Connect to an address such as `10.0.0.1:6379` once; Ray itself would try for minutes.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_REACHED_WITHIN_S).close()
