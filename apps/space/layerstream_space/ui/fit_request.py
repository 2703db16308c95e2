"""A visitor's request to "Will it fit?": read from the page or from an address, and written as a command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from layerstream import KNOWN_MODELS, KnownModel, PlanError, Workload

from ..errors import VisitorError
from ..machines import MACHINE_KEYS, MACHINES, figures_of
from ..models import Catalogue, hub_id
from ..planner import ModelSource

if TYPE_CHECKING:
    from .services import Services

FROM_LIST, FROM_HUB, FROM_CONFIG = "A known model", "A Hub id", "A config.json"
KNOWN = {known.title: name for name, known in KNOWN_MODELS.items()}
"""Titles of well-known models, and layerstream's names for them."""

FIRST = "llama-3.3-70b"
"""The model that is chosen at first."""

DTYPES = {
    "as published": "auto",
    "16-bit (fp16)": "float16",
    "16-bit (bf16)": "bfloat16",
    "32-bit": "float32",
}
"""Titles of run dtypes, and their names."""

MOST_PROMPT_TOKENS, MOST_NEW_TOKENS = 32_768, 4096

_NUMBERS = ("gpu", "ram", "disk", "pcie")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """What the visitor chose; one attribute for each control of the page, in order.

    Attributes:
        origin: where the model comes from: `FROM_LIST`, `FROM_HUB` or `FROM_CONFIG`.
        known: layerstream's name of a well-known model, or one of this page's models.
        hub: a Hub id.
        config: the content of a `config.json`.
        dtype: the run dtype, or `auto`.
        machine: the machine that the figures started from, by its name in addresses.
        gpu: the card's memory in GB; 0 without a card.
        ram: the host's memory in GB.
        disk: the rate of the disk in GB/s.
        pcie: the rate of copies to the card in GB/s.
        prompt_tokens: the length of the prompt.
        new_tokens: the length of the answer.
    """

    origin: str
    known: str
    hub: str
    config: str
    dtype: str
    machine: str
    gpu: float
    ram: float
    disk: float
    pcie: float
    prompt_tokens: int
    new_tokens: int

    @staticmethod
    def from_values(values: Sequence[Any]) -> FitRequest:
        """Return the request that the page's controls show.

        Raises:
            VisitorError: a choice does not exist.
        """
        given: dict[str, Any] = dict(zip((each.name for each in fields(FitRequest)), values, strict=True))
        if given["machine"] not in MACHINE_KEYS or given["dtype"] not in DTYPES.values():
            raise VisitorError("Choose a machine and a precision from the lists.")
        # a box that was emptied is None; no figure is below 0, so planning names the box
        given |= {name: -1.0 if given[name] is None else float(given[name]) for name in _NUMBERS}
        given |= {name: str(given[name] or "") for name in ("origin", "known", "hub", "config")}
        given |= {name: int(given[name] or 0) for name in ("prompt_tokens", "new_tokens")}
        return FitRequest(**given)


def values_from_query(query: Mapping[str, str], catalogue: Catalogue) -> dict[str, Any]:
    """Return the controls' values that an address names; a missing or invalid one is left out.

    Args:
        query: the address's parameters; anyone can write them, so they are checked.
        catalogue: the models that this page may run.
    """
    found: dict[str, Any] = {}
    model = query.get("model", "").strip()
    if model in KNOWN_MODELS or model in catalogue.names:
        found |= {"origin": FROM_LIST, "known": model}
    elif "/" in model:
        found |= {"origin": FROM_HUB, "hub": model[:200]}
    if query.get("machine") in MACHINE_KEYS:
        found["machine"] = query["machine"]
        base = MACHINES[MACHINE_KEYS[query["machine"]]]
        found |= {} if base is None else asdict(figures_of(base))
    if query.get("dtype") in DTYPES.values():
        found["dtype"] = query["dtype"]
    for name in _NUMBERS:
        number = _number(query.get(name, ""))
        if number is not None and (number > 0 or name == "gpu"):
            found[name] = number
    for name, most in (("prompt_tokens", MOST_PROMPT_TOKENS), ("new_tokens", MOST_NEW_TOKENS)):
        number = _number(query.get(name, ""))
        if number is not None and number >= 1:
            found[name] = min(int(number), most)
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text[:20])
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number < 1e6 else None


def workload_of(request: FitRequest) -> Workload:
    """Return the lengths to plan for.

    Raises:
        VisitorError: a length is out of range.
    """
    try:
        return Workload(prompt_tokens=request.prompt_tokens, new_tokens=request.new_tokens)
    except PlanError as error:
        raise VisitorError(str(error)) from error


def source_of(services: Services, request: FitRequest) -> ModelSource:
    """Return where the model's shape comes from.

    Raises:
        VisitorError: the model is not on the list, or the Hub id or the config is not one.
    """
    if request.origin == FROM_HUB:
        return ModelSource(model=hub_id(request.hub))
    if request.origin == FROM_LIST:
        return listed_source(services, request.known)
    limit = services.settings.limits.config_characters
    if not request.config.strip():
        raise VisitorError("Paste the whole content of a config.json.")
    if len(request.config) > limit:
        raise VisitorError(f"This config has {len(request.config)} characters; the limit here is {limit}.")
    return ModelSource(config=request.config)


def listed_source(services: Services, name: str) -> ModelSource:
    """Return the source of a known model, by name or title, or of one of this page's models.

    Raises:
        VisitorError: it is not on the list.
    """
    name = KNOWN.get(name, name)
    return (
        ModelSource(known=name)
        if name in KNOWN_MODELS
        else ModelSource(model=services.job_runner.source_of(name))
    )


def known_model(request: FitRequest) -> KnownModel | None:
    """Return the well-known model that was chosen; None if it is another."""
    return KNOWN_MODELS.get(request.known) if request.origin == FROM_LIST else None


def command_of(request: FitRequest, machine: str) -> str:
    """Return the command that makes the same plan; empty where the page alone knows the model.

    Args:
        request: the visitor's request.
        machine: the line of figures that describes the machine; empty for the machine that the app runs on.
    """
    if request.origin == FROM_HUB:
        model = hub_id(request.hub)
    elif known_model(request):
        model = request.known
    else:
        return ""
    parts = ["layerstream", "plan", model]
    parts += ["--machine", machine] if machine else []
    parts += ["--prompt-tokens", str(request.prompt_tokens), "--max-new-tokens", str(request.new_tokens)]
    parts += [] if request.dtype == "auto" else ["--dtype", request.dtype]
    return shlex.join(parts)
