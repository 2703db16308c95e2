"""Score continuations of shared prefixes: every layer is read once and serves all of them.

Layer: uses. `score` is the verb; what it asks of the model is in `tasks`, how texts become tokens in `requests`, what comes back
in `results`.
"""

from .head import load_head
from .progress import ScoreProgress
from .requests import ScoringRequest, ScoringTokenizer, TokenizedScoring
from .results import ScoringResult, SuffixScore
from .score import plan_scores, score

__all__ = [
    "ScoreProgress",
    "ScoringRequest",
    "ScoringResult",
    "ScoringTokenizer",
    "SuffixScore",
    "TokenizedScoring",
    "load_head",
    "plan_scores",
    "score",
]
