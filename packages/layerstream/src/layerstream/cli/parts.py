"""The parts of the command line that a command's help does not need, imported on first use.

Commands write `parts.run_job(...)`. What needs torch or transformers is in `backend`; nothing here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from ..ray.clusters import ClusterSettings
    from ..uses.batching.requests import GenerationRequest, sampling_settings
    from .chat_loop import Chat, ChatSettings, check_system
    from .dataset_rows import read_dataset_rows
    from .jobs import refuse_special_file
    from .local_models import check_local_model
    from .machine_text import machine_from_text
    from .openai_rows import OpenAIRows
    from .parquet_files import lines_beside, read_parquet_rows, write_parquet_results
    from .prompt_rows import PromptDefaults, PromptRows
    from .ray_job import answer_on_ray
    from .result_file import Resume
    from .row_columns import Columns
    from .row_job import RowJob, run_job
    from .row_sources import RowSource
    from .score_rows import ScoreRows
    from .trace_files import check_trace_path, write_trace

__all__ = [
    "Chat",
    "ChatSettings",
    "ClusterSettings",
    "Columns",
    "GenerationRequest",
    "OpenAIRows",
    "PromptDefaults",
    "PromptRows",
    "Resume",
    "RowJob",
    "RowSource",
    "ScoreRows",
    "answer_on_ray",
    "check_local_model",
    "check_system",
    "check_trace_path",
    "lines_beside",
    "machine_from_text",
    "read_dataset_rows",
    "read_parquet_rows",
    "refuse_special_file",
    "run_job",
    "sampling_settings",
    "write_parquet_results",
    "write_trace",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "layerstream.cli.chat_loop": ("Chat", "ChatSettings", "check_system"),
        "layerstream.cli.dataset_rows": ("read_dataset_rows",),
        "layerstream.cli.jobs": ("refuse_special_file",),
        "layerstream.cli.local_models": ("check_local_model",),
        "layerstream.cli.machine_text": ("machine_from_text",),
        "layerstream.cli.openai_rows": ("OpenAIRows",),
        "layerstream.cli.parquet_files": ("lines_beside", "read_parquet_rows", "write_parquet_results"),
        "layerstream.cli.prompt_rows": ("PromptDefaults", "PromptRows"),
        "layerstream.cli.ray_job": ("answer_on_ray",),
        "layerstream.cli.result_file": ("Resume",),
        "layerstream.cli.row_columns": ("Columns",),
        "layerstream.cli.row_job": ("RowJob", "run_job"),
        "layerstream.cli.row_sources": ("RowSource",),
        "layerstream.cli.score_rows": ("ScoreRows",),
        "layerstream.cli.trace_files": ("check_trace_path", "write_trace"),
        "layerstream.ray.clusters": ("ClusterSettings",),
        "layerstream.uses.batching.requests": ("GenerationRequest", "sampling_settings"),
    },
)
