"""Load a model for as many rows at once as its machine has memory for. Runs on the workers; knows no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..engine.tokenizer import load_tokenizer
from ..model import StreamedModel
from ..opening import load_with, plan_with
from ..planning.most_rows import with_most_rows
from ..spec.options import LoadOptions, Workload

MOST_ROWS = 64
"""The largest number of rows that memory is reserved for, unless told otherwise."""

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerModel:
    """What every worker loads.

    Attributes:
        name: a directory or a Hub id, as every node knows it.
        options: how to load it. The workload's `batch_size` is the most rows at once on each device.
    """

    name: str
    options: LoadOptions

    @classmethod
    def of(cls, model: str | Path, options: LoadOptions) -> WorkerModel:
        """Return a model for workers, which work in other directories: a folder becomes absolute."""
        folder = Path(model).expanduser()
        return cls(name=str(folder.absolute() if folder.is_dir() else model), options=options)

    @property
    def workload(self) -> Workload:
        """The lengths of a row, and the most rows at once."""
        return self.options.workload or Workload()

    @property
    def num_devices(self) -> int:
        """How many devices a worker computes on."""
        return len(self.options.devices or [self.options.device])

    @property
    def result_settings(self) -> tuple[str, str, LoadOptions]:
        """What decides the results of a row: all but the budget, which no result depends on."""
        return __version__, self.name, replace(self.options, budget="auto")

    def load(self) -> tuple[StreamedModel, PreTrainedTokenizerBase]:
        """Load it with memory for several rows at once on each device; halve their number until it fits.

        The tokenizer comes first: a budget is for what the model takes on top.

        Raises:
            BudgetTooSmallError: the budget holds not even one row.
            LayerstreamError: what `load` raises.
        """
        tokenizer = load_tokenizer(self.name, self.options)
        return self._fitting(lambda options: load_with(self.name, options)), tokenizer

    def rows_at_once(self) -> int:
        """Return how many rows share a sweep on all devices of a worker here. Reads config and headers only.

        Raises:
            BudgetTooSmallError: the budget holds not even one row.
            LayerstreamError: what `plan` raises.
        """

        def planned_rows(options: LoadOptions) -> int:
            plan_with(self.name, options)
            assert options.workload is not None
            return options.workload.batch_size * self.num_devices

        return self._fitting(planned_rows)

    def _fitting(self, make: Callable[[LoadOptions], Made]) -> Made:
        def make_for(num_rows: int) -> Made:
            return make(replace(self.options, workload=replace(self.workload, batch_size=num_rows)))

        return with_most_rows(make_for, self.workload.batch_size)
