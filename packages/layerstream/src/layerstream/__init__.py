"""Run a language model that does not fit in memory, exactly.

`load` builds transformers' own model empty and streams its decoder blocks from the original safetensors, from
disk to host to device, just in time and within a memory budget. `generate()`, pipelines and every
architecture work unchanged, and every result equals the resident model's bit for bit. `plan` and `simulate`
tell you beforehand where everything will live and how long a token takes.

Names are imported on first use: `import layerstream`, its values (budgets, profiles, plans) and `simulate` on
a saved profile load neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_exports

if TYPE_CHECKING:
    from .architecture.configs import known_config
    from .checkpoint.fetch import fetch
    from .checkpoint.fingerprint import fingerprint_model
    from .conversion.convert import convert_checkpoint
    from .default_model import default_model_path
    from .engine.replica import Replica
    from .errors import (
        AdapterError,
        BlocksNotFoundError,
        BudgetTooSmallError,
        CheckpointError,
        CheckpointNotFoundError,
        ConversionError,
        FetchError,
        JobError,
        LayerstreamError,
        ModelError,
        PlanError,
        ReadFailedError,
        ReplicaStoppedError,
        ScoreError,
        ShardCorruptError,
        StreamClosedError,
        StreamError,
        TensorMissingError,
        UnsupportedFormatError,
        UnsupportedModelError,
        UnsupportedOptionError,
        VerificationError,
        WorkloadExceededError,
    )
    from .loading import load, plan, profile_model
    from .machine import probe_machine
    from .model import StreamedModel
    from .planning.cluster import simulate_cluster
    from .planning.estimate import bytes_by_precision
    from .simulation import simulate
    from .spec.cluster import ClusterForecast, ClusterRun
    from .spec.conversion import ConversionProgress, ConversionReport
    from .spec.fetch import FetchProgress
    from .spec.known_models import KNOWN_MODELS, KnownModel
    from .spec.load_progress import LoadProgress
    from .spec.machine_text import machine_from_figures
    from .spec.options import LoadOptions, MemoryBudget, Workload
    from .spec.plans import (
        Granularity,
        LedgerKind,
        LedgerLine,
        MemoryLedger,
        MemoryTier,
        PlacementPlan,
        Residency,
        SweepCost,
        UnitPlacement,
    )
    from .spec.profiles import (
        ActivationProfile,
        HostPinning,
        LinearShape,
        Machine,
        ModelProfile,
        UnitProfile,
    )
    from .spec.report import StreamReport
    from .spec.request_plans import BatchPlan, MicroBatch, ScoringPlan
    from .spec.sizes import format_bytes, format_rate, format_seconds, parse_size
    from .spec.speculation import DraftForecast, SpeculationReport, VerifiedTokens
    from .spec.timeline import Activity, Span, Timeline
    from .spec.verification import UnitVerification, VerificationReport
    from .uses.batching.generate import generate_many, plan_requests
    from .uses.batching.progress import BatchProgress
    from .uses.batching.requests import GenerationRequest, GenerationResult
    from .uses.scoring.head import load_head
    from .uses.scoring.progress import ScoringProgress
    from .uses.scoring.requests import ScoringRequest
    from .uses.scoring.results import ScoringResult, SuffixScore
    from .uses.scoring.score import plan_scores, score

__version__ = "0.1.0"

_EXPORTS = {
    ".architecture.configs": ("known_config",),
    ".checkpoint.fetch": ("fetch",),
    ".checkpoint.fingerprint": ("fingerprint_model",),
    ".conversion.convert": ("convert_checkpoint",),
    ".default_model": ("default_model_path",),
    ".engine.replica": ("Replica",),
    ".errors": (
        "AdapterError",
        "BlocksNotFoundError",
        "BudgetTooSmallError",
        "CheckpointError",
        "CheckpointNotFoundError",
        "ConversionError",
        "FetchError",
        "JobError",
        "LayerstreamError",
        "ModelError",
        "PlanError",
        "ReadFailedError",
        "ReplicaStoppedError",
        "ScoreError",
        "ShardCorruptError",
        "StreamClosedError",
        "StreamError",
        "TensorMissingError",
        "UnsupportedFormatError",
        "UnsupportedModelError",
        "UnsupportedOptionError",
        "VerificationError",
        "WorkloadExceededError",
    ),
    ".loading": ("load", "plan", "profile_model"),
    ".machine": ("probe_machine",),
    ".model": ("StreamedModel",),
    ".planning.cluster": ("simulate_cluster",),
    ".planning.estimate": ("bytes_by_precision",),
    ".simulation": ("simulate",),
    ".spec.cluster": ("ClusterForecast", "ClusterRun"),
    ".spec.conversion": ("ConversionProgress", "ConversionReport"),
    ".spec.fetch": ("FetchProgress",),
    ".spec.known_models": ("KNOWN_MODELS", "KnownModel"),
    ".spec.load_progress": ("LoadProgress",),
    ".spec.machine_text": ("machine_from_figures",),
    ".spec.options": ("LoadOptions", "MemoryBudget", "Workload"),
    ".spec.plans": (
        "Granularity",
        "LedgerKind",
        "LedgerLine",
        "MemoryLedger",
        "MemoryTier",
        "PlacementPlan",
        "Residency",
        "SweepCost",
        "UnitPlacement",
    ),
    ".spec.profiles": (
        "ActivationProfile",
        "HostPinning",
        "LinearShape",
        "Machine",
        "ModelProfile",
        "UnitProfile",
    ),
    ".spec.request_plans": ("BatchPlan", "MicroBatch", "ScoringPlan"),
    ".spec.report": ("StreamReport",),
    ".spec.sizes": ("format_bytes", "format_rate", "format_seconds", "parse_size"),
    ".spec.speculation": ("DraftForecast", "SpeculationReport", "VerifiedTokens"),
    ".spec.timeline": ("Activity", "Span", "Timeline"),
    ".spec.verification": ("UnitVerification", "VerificationReport"),
    ".uses.batching.generate": ("generate_many", "plan_requests"),
    ".uses.batching.progress": ("BatchProgress",),
    ".uses.batching.requests": ("GenerationRequest", "GenerationResult"),
    ".uses.scoring.head": ("load_head",),
    ".uses.scoring.progress": ("ScoringProgress",),
    ".uses.scoring.requests": ("ScoringRequest",),
    ".uses.scoring.results": ("ScoringResult", "SuffixScore"),
    ".uses.scoring.score": ("plan_scores", "score"),
}

__all__ = [
    "KNOWN_MODELS",
    "ActivationProfile",
    "Activity",
    "AdapterError",
    "BatchPlan",
    "BatchProgress",
    "BlocksNotFoundError",
    "BudgetTooSmallError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ClusterForecast",
    "ClusterRun",
    "ConversionError",
    "ConversionProgress",
    "ConversionReport",
    "DraftForecast",
    "FetchError",
    "FetchProgress",
    "GenerationRequest",
    "GenerationResult",
    "Granularity",
    "HostPinning",
    "JobError",
    "KnownModel",
    "LayerstreamError",
    "LedgerKind",
    "LedgerLine",
    "LinearShape",
    "LoadOptions",
    "LoadProgress",
    "Machine",
    "MemoryBudget",
    "MemoryLedger",
    "MemoryTier",
    "MicroBatch",
    "ModelError",
    "ModelProfile",
    "PlacementPlan",
    "PlanError",
    "ReadFailedError",
    "Replica",
    "ReplicaStoppedError",
    "Residency",
    "ScoreError",
    "ScoringPlan",
    "ScoringProgress",
    "ScoringRequest",
    "ScoringResult",
    "ShardCorruptError",
    "Span",
    "SpeculationReport",
    "StreamClosedError",
    "StreamError",
    "StreamReport",
    "StreamedModel",
    "SuffixScore",
    "SweepCost",
    "TensorMissingError",
    "Timeline",
    "UnitPlacement",
    "UnitProfile",
    "UnitVerification",
    "UnsupportedFormatError",
    "UnsupportedModelError",
    "UnsupportedOptionError",
    "VerificationError",
    "VerificationReport",
    "VerifiedTokens",
    "Workload",
    "WorkloadExceededError",
    "bytes_by_precision",
    "convert_checkpoint",
    "default_model_path",
    "fetch",
    "fingerprint_model",
    "format_bytes",
    "format_rate",
    "format_seconds",
    "generate_many",
    "known_config",
    "load",
    "load_head",
    "machine_from_figures",
    "parse_size",
    "plan",
    "plan_requests",
    "plan_scores",
    "probe_machine",
    "profile_model",
    "score",
    "simulate",
    "simulate_cluster",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
