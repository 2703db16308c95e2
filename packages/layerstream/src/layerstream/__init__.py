"""Run a language model that does not fit in memory, exactly.

`load` builds transformers' own model empty and streams its decoder blocks from the original safetensors, disk to host to device,
just in time and within a memory budget; `generate()`, pipelines and every architecture work unchanged, and every result is
the resident model's, bit for bit. `plan` and `simulate` say beforehand where everything will live and how long a token takes.
"""

from .architecture.known_models import KNOWN_MODELS, KnownModel, known_config
from .default_model import default_model_path
from .errors import (
    BlocksNotFoundError,
    BudgetTooSmallError,
    CheckpointError,
    CheckpointNotFoundError,
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
)
from .loading import load, plan, profile_model, simulate
from .machine import probe_machine
from .model import StreamedModel
from .planning.estimate import bytes_by_precision
from .planning.scoring_sweeps import ScoringPlan
from .spec.options import MemoryBudget, Workload
from .spec.plans import (
    BatchPlan,
    Granularity,
    LedgerLine,
    MemoryLedger,
    MicroBatch,
    PlacementPlan,
    Residency,
    SweepCost,
    UnitPlacement,
)
from .spec.profiles import ActivationProfile, Machine, ModelProfile, UnitProfile
from .spec.report import StreamReport
from .spec.timeline import Activity, Span, Timeline
from .uses.batching import BatchProgress, GenerationRequest, GenerationResult, generate_many, plan_requests
from .uses.scoring import ScoreProgress, ScoringResult, SuffixScore, load_head, plan_scores, score

__version__ = "0.1.0"

__all__ = [
    "KNOWN_MODELS",
    "ActivationProfile",
    "Activity",
    "BatchPlan",
    "BatchProgress",
    "BlocksNotFoundError",
    "BudgetTooSmallError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "GenerationRequest",
    "GenerationResult",
    "Granularity",
    "JobError",
    "KnownModel",
    "LayerstreamError",
    "LedgerLine",
    "Machine",
    "MemoryBudget",
    "MemoryLedger",
    "MicroBatch",
    "ModelError",
    "ModelProfile",
    "PlacementPlan",
    "PlanError",
    "ReadFailedError",
    "ReplicaStoppedError",
    "Residency",
    "ScoreError",
    "ScoreProgress",
    "ScoringPlan",
    "ScoringResult",
    "ShardCorruptError",
    "Span",
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
    "UnsupportedFormatError",
    "UnsupportedModelError",
    "Workload",
    "bytes_by_precision",
    "default_model_path",
    "generate_many",
    "known_config",
    "load",
    "load_head",
    "plan",
    "plan_requests",
    "plan_scores",
    "probe_machine",
    "profile_model",
    "score",
    "simulate",
]
