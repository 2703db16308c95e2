"""Score continuations of shared prefixes: every layer is read once and serves all of them.

Layer: uses. `score` is the verb; what it asks of the model is in `rides`, how texts become tokens in `questions`, what comes back
in `results`.
"""

from .head import load_head
from .progress import ScoreProgress
from .requests import PreparedQuestion, Question, QuestionReader
from .results import QuestionResult, SuffixScore
from .score import plan_scores, score

__all__ = [
    "PreparedQuestion",
    "Question",
    "QuestionReader",
    "QuestionResult",
    "ScoreProgress",
    "SuffixScore",
    "load_head",
    "plan_scores",
    "score",
]
