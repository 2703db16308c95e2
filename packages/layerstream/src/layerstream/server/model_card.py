"""What the server tells about its model: its name, without any path of the machine, and its pace."""

from __future__ import annotations

from pathlib import Path

from openai.types import Model

from ..uses.serving.protocol import Service
from .settings import ServerSettings


def model_id(service: Service, settings: ServerSettings) -> str:
    """Return what clients call the model."""
    if settings.model_id is not None:
        return settings.model_id
    name = service.model_name
    is_hub_id = name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    return name if is_hub_id else Path(name).resolve().name or "model"


def model_card(service: Service, settings: ServerSettings, created: int) -> Model:
    """Return the model as OpenAI describes one, with what the service does now in further fields."""
    status = service.status()
    return Model.model_validate(
        {
            "id": model_id(service, settings),
            "created": created,
            "object": "model",
            "owned_by": "layerstream",
            "context_tokens": service.context_tokens,
            "running": status.running,
            "queue_length": status.waiting,
            "tokens_per_s": status.tokens_per_s,
            "sweep_s": status.sweep_s,
            "estimated_wait_s": status.wait_s,
            "estimated_100_tokens_s": status.wait_s + 99 * status.token_s,
        }
    )
