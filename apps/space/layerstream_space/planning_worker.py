"""The planner's child process: lines of JSON in, lines of JSON out; the one module of the app that imports layerstream.

Each line asks one question; the answer is one line, `{"error": text}` where it has none. Profiles are kept, so that another budget
or machine is answered at once. No weight is read but by `default_model`, which fetches the model that runs when none is named.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

import layerstream as ls

MOST_PROFILES = 16
MEASURED_FOR_S = 600.0
MOST_LAYERS = 512
MOST_WIDTH = 262_144


class QuestionError(Exception):
    """A question that cannot be answered; the message says why."""


class Answerer:
    """Answers questions from kept profiles."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._profiles: OrderedDict[tuple[str, str, str], ls.ModelProfile] = OrderedDict()
        self._here: ls.Machine | None = None
        self._here_since_s = 0.0

    def answer(self, question: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of one question.

        Raises:
            QuestionError: there is no such question, or it makes no sense.
            LayerstreamError: what layerstream says about it.
        """
        answers: dict[str, Callable[..., dict[str, Any]]] = {
            "known": self.known,
            "plan": self.plan,
            "default_model": self.default_model,
            "this_machine": self.this_machine,
        }
        if question not in answers:
            raise QuestionError(f"no such question: {question}")
        return answers[question](**arguments)

    def known(self) -> dict[str, Any]:
        """Return the well-known models by name."""
        return {"models": {name: model.title for name, model in ls.KNOWN_MODELS.items()}}

    def default_model(self) -> dict[str, Any]:
        """Return the directory of the default model, fetched where it is not there yet."""
        return {"path": str(ls.default_model_path())}

    def this_machine(self) -> dict[str, Any]:
        """Return this machine as numbers."""
        return {"machine": asdict(self._this_machine())}

    def plan(
        self,
        *,
        model: str = "",
        known: str = "",
        config: str = "",
        machine: dict[str, Any] | None,
        dtype: str = "auto",
        prompt_tokens: int = 512,
        new_tokens: int = 128,
        budget: str | int = "auto",
        share: float | None = None,
    ) -> dict[str, Any]:
        """Return the plan of a model, a known model or a config on a machine, and what lower precisions need.

        Args:
            model: a directory or Hub id.
            known: a name of `known`.
            config: the text of a `config.json`.
            machine: the machine as numbers; None is this one.
            dtype: the run dtype.
            prompt_tokens: of the prompt.
            new_tokens: of the answer.
            budget: memory of the device, as layerstream takes it.
            share: in place of a budget: 0 is the least that works, 1 all weights resident.
        """
        where = self._this_machine() if machine is None else ls.Machine(**machine)
        profile = self._profile(model, known, config, dtype, where.device)
        workload = ls.Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)

        def plan_within(budget: str | int) -> ls.PlacementPlan:
            return ls.simulate(profile, machine=where, workload=workload, budget=budget)

        least = _least_bytes(plan_within, budget)
        if share is not None:
            budget = least + round(
                min(max(share, 0.0), 1.0) * max(0, _all_bytes(plan_within, profile) - least)
            )
        try:
            plan, error = plan_within(budget), ""
        except ls.BudgetTooSmallError as too_small:
            plan, error = None, str(too_small)
        return {
            "plan": None if plan is None else _record(plan),
            "why_not": error,
            "least_bytes": least,
            "model": _numbers(profile),
            "machine": asdict(where),
        }

    def _this_machine(self) -> ls.Machine:
        """Return this machine, measured when the last measurement is old: it takes seconds."""
        if self._here is None or time.monotonic() - self._here_since_s > MEASURED_FOR_S:
            self._here, self._here_since_s = ls.probe_machine(), time.monotonic()
        return self._here

    def _profile(self, model: str, known: str, config: str, dtype: str, device: str) -> ls.ModelProfile:
        key = (json.dumps([model, known, config]), dtype, device.split(":")[0])
        if key not in self._profiles:
            subject = ls.known_config(known) if known else _config(config) if config else model
            self._profiles[key] = ls.profile_model(subject, dtype=dtype, device=device)
            while len(self._profiles) > MOST_PROFILES:
                self._profiles.popitem(last=False)
        self._profiles.move_to_end(key)
        return self._profiles[key]


def _least_bytes(plan_within: Callable[[str | int], ls.PlacementPlan], budget: str | int) -> int:
    try:
        return plan_within("min").ledger.device_budget_bytes
    except ls.BudgetTooSmallError as error:  # of the host: the device's least does not help then
        return error.needed_bytes


def _all_bytes(plan_within: Callable[[str | int], ls.PlacementPlan], profile: ls.ModelProfile) -> int:
    """Return the device memory at which nothing streams any more."""
    plenty = plan_within(8 * profile.weight_bytes + 64 * 2**30)
    return plenty.ledger.device_bytes


def _config(text: str) -> PreTrainedConfig:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise QuestionError(f"this is no JSON: {error}; paste the whole content of a config.json") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise QuestionError('this config has no "model_type"; paste the whole content of a config.json')
    for name, value in fields.items():
        most = MOST_LAYERS if "layer" in name else MOST_WIDTH
        if (
            isinstance(value, int)
            and name.startswith(("num_", "n_", "hidden", "inter", "d_"))
            and abs(value) > most
        ):
            raise QuestionError(f"{name} is {value}: at most {most} here")
    fields.pop("auto_map", None)  # code of a repository is never run here
    if fields.get("quantization_config"):
        raise QuestionError("this config is of a quantized checkpoint; paste the one of the original weights")
    try:
        config: PreTrainedConfig = AutoConfig.for_model(**fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise QuestionError(
            f"transformers knows no such config: {' '.join(str(error).split())[:200]}"
        ) from error
    config.name_or_path = str(fields.get("_name_or_path") or fields["model_type"])
    return config


def _record(plan: ls.PlacementPlan) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(asdict(plan), default=lambda value: value.value))
    return record


def _numbers(profile: ls.ModelProfile) -> dict[str, Any]:
    """Return a model as the few numbers that the page shows; `quantized_parameters` are those that a quantizer would take."""
    in_blocks = sum(unit.num_parameters for unit in profile.blocks)
    return {
        "name": profile.name,
        "type": profile.model_type,
        "dtype": profile.dtype,
        "parameters": profile.num_parameters,
        "weight_bytes": profile.weight_bytes,
        "quantized_parameters": in_blocks,
        "kept_bytes": profile.weight_bytes - sum(unit.weight_bytes for unit in profile.blocks),
        "bytes_by_precision": dict(ls.bytes_by_precision(profile.num_parameters)),
        "blocks": len(profile.blocks),
    }


def main() -> None:
    """Answer the lines of standard input until it closes."""
    # whatever a library prints must not get between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    answerer = Answerer()
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(_told(answerer, asked.pop("question"), asked)) + "\n")


def _told(answerer: Answerer, question: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return answerer.answer(question, arguments)
    except (ls.LayerstreamError, QuestionError) as error:
        return {"error": " ".join(str(error).split())}
    except Exception as error:  # noqa: BLE001  a config may break any part of transformers: the next question must find us alive
        return {"error": f"transformers cannot build this model: {' '.join(str(error).split())[:200]}"}


if __name__ == "__main__":
    main()
