"""Whether a node has room for a worker; Ray itself would wait for such a node for ever."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping, Sequence
from time import monotonic, sleep

import ray

from ..errors import PlanError

_DEVICES = ("CPU", "GPU")
_FREE_WITHIN_S = 5.0
_LOOK_S = 0.1


def refuse_without_room(wanted: Mapping[str, float]) -> None:
    """Do nothing if a node has what one worker takes, or if Ray starts nodes as they are needed.

    Args:
        wanted: the resources of one worker, by Ray's names.

    Raises:
        PlanError: no node has them.
    """
    if _starts_nodes():
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(_has(node, wanted) for node in nodes):
        raise PlanError(without_room(wanted, nodes))


def warn_if_taken(resource: str, amount: float) -> None:
    """Warn if so much of a resource is free nowhere: a worker waits until another one ends.

    Where Ray starts nodes as they are needed, a worker waits for a node, and nothing is said.

    The workers of a failed job live as long as its error does, whose frames refer to them. What nothing else
    refers to is freed here.

    Args:
        resource: its name, which nodes declare.
        amount: how much of it a worker takes.
    """
    gc.collect()
    if _starts_nodes():
        return
    deadline_s = monotonic() + _FREE_WITHIN_S  # Ray is told of the end of a worker with a delay
    while ray.available_resources().get(resource, 0) < amount:
        if monotonic() > deadline_s:
            warnings.warn(
                f"no {resource} is free: the job will wait until other workers end. Those of a failed job of "
                "this program end when its error is deleted (in a notebook, also sys.last_value and "
                "sys.last_traceback), followed by gc.collect()",
                stacklevel=4,
            )
            return
        sleep(_LOOK_S)


def without_room(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what to tell where no node of `nodes` has `wanted`."""
    names = [name for name, amount in wanted.items() if amount]
    largest = max(nodes, key=lambda node: [node.get(name, 0) for name in names], default={})
    return (
        f"no node has {_listed(wanted, names)} for a worker; the largest has {_listed(largest, names)}: ask "
        "for less, or start a node that has as much"
    )


def _has(node: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in wanted.items())


def _listed(resources: Mapping[str, float], names: Sequence[str]) -> str:
    amounts = [_amount(resources.get(name, 0), name) for name in names]
    return " and ".join([", ".join(amounts[:-1]), amounts[-1]] if len(amounts) > 1 else amounts)


def _amount(amount: float, name: str) -> str:
    if name not in _DEVICES:
        return f"{name} {amount:g}"
    return f"{amount:g} {name}" if amount == 1 else f"{amount:g} {name}s"


def _starts_nodes() -> bool:
    """Return whether Ray was told which nodes it may start; the first may not be there yet."""
    try:
        return ray._private.state.state.get_max_resources_from_cluster_config() is not None
    except AttributeError:  # the name is Ray's own, and may go
        return False
