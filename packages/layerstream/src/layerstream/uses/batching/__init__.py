"""Many generations in the same sweeps: requests in, results as they finish.

Layer: uses. Built on `StreamedModel.group`; knows tokens, lengths and transformers' `generate()`, no disk and no unit.
"""

from .generate import generate_many, plan_requests
from .progress import BatchProgress
from .requests import GenerationRequest, GenerationResult

__all__ = ["BatchProgress", "GenerationRequest", "GenerationResult", "generate_many", "plan_requests"]
