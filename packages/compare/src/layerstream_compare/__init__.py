"""Run one prompt through streamed, resident and quantized variants and every attention kernel.

`compare(Experiment(...))` runs each case in its own process and returns the measurements; `run` yields the
same as live events. Importing this package does not load torch: only the workers do.
"""

from .case import Case
from .errors import CompareError, ExperimentError, ResultsError
from .events import Event
from .experiment import Experiment, compare, run
from .measurement import Agreement, Divergence, Measurement, Memory, PhaseMemory, Timing
from .reports.files import csv_report, drawings, html_report, memory_notes, write_reports
from .reports.metric import Metric
from .reports.metrics import METRICS, Row, rows_of
from .results import read_results
from .runners.in_process import run_in_process
from .runners.isolate import run_isolated
from .runners.spare import SpareWorker
from .variants.registry import Variant, list_variants

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "Agreement",
    "Case",
    "CompareError",
    "Divergence",
    "Event",
    "Experiment",
    "ExperimentError",
    "Measurement",
    "Memory",
    "Metric",
    "PhaseMemory",
    "ResultsError",
    "Row",
    "SpareWorker",
    "Timing",
    "Variant",
    "compare",
    "csv_report",
    "drawings",
    "html_report",
    "list_variants",
    "memory_notes",
    "read_results",
    "rows_of",
    "run",
    "run_in_process",
    "run_isolated",
    "write_reports",
]
