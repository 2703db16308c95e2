"""What the stages share: the model, the prompts, and a file to which each finding is written as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import layerstream as ls
from layerstream.engine.tokenizer import load_tokenizer
from layerstream.errors import CheckpointError
from layerstream.spec.options import LoadOptions

PROMPTS = Path(__file__).resolve().parent.parent / "speculation_prompts.json"
KINDS = ("chat", "code", "extraction", "story")
ASSISTANT_TOKENS = 16
"""How many tokens transformers' assistant drafts."""

_SHORT_TOKENS = 24
"""Prompts of a model without a tokenizer are cut to so many made-up tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt.

    Attributes:
        name: its kind and number, such as `code-3`.
        kind: one of `KINDS`.
        ids: its tokens, in the model's chat format.
    """

    name: str
    kind: str
    ids: list[int]


class Findings:
    """What was found so far: one JSON object a line, so that a run that is cut off goes on where it was."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run found; a line that was cut off is left out."""
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._found[_name(entry["stage"], entry["key"])] = entry

    def get(self, stage: str, **key: Any) -> dict[str, Any] | None:
        """Return what was found under a key, or None."""
        entry = self._found.get(_name(stage, key))
        return None if entry is None else entry["found"]

    def put(self, stage: str, found: dict[str, Any], **key: Any) -> dict[str, Any]:
        """Write a finding down, and return it."""
        entry = {"stage": stage, "key": key, "found": found}
        self._found[_name(stage, key)] = entry
        with self._path.open("a") as file:
            # a line that was cut off must not spoil this one
            file.write("\n" + json.dumps(entry) + "\n")
        return found

    def forget(self, stages: Iterable[str]) -> None:
        """Remove what was found in these stages."""
        self._found = {name: entry for name, entry in self._found.items() if entry["stage"] not in stages}
        self._path.write_text("".join(json.dumps(entry) + "\n" for entry in self._found.values()))

    def of(self, stage: str, **key: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return key and finding of each entry of a stage whose key has these values."""
        return [
            (entry["key"], entry["found"])
            for entry in self._found.values()
            if entry["stage"] == stage and key.items() <= entry["key"].items()
        ]


def _name(stage: str, key: dict[str, Any]) -> str:
    return json.dumps([stage, key], sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is measured.

    Attributes:
        model: the folder of the target.
        prompts: what it is asked.
        new_tokens: the most tokens of an answer; it may end earlier by itself.
        rounds: rounds of the timed stage.
        rates: read limits of the timed stage in bytes per second; 0 is none.
        ways: names of the ways that the stages `sweeps` and `wall` measure; empty for all.
        part: the stage `wall` measures each `part[1]`-th prompt, beginning with number `part[0]`.
        is_quick: a try with a tiny model, whose figures mean nothing.
        findings: what was found so far.
    """

    model: Path
    prompts: list[Prompt]
    new_tokens: int
    rounds: int
    rates: tuple[int, ...]
    ways: tuple[str, ...]
    part: tuple[int, int]
    is_quick: bool
    findings: Findings = field(repr=False)

    def wants(self, way: str) -> bool:
        """Return whether the way with this name is measured."""
        return not self.ways or way in self.ways

    @property
    def own_prompts(self) -> list[Prompt]:
        """The prompts of this part."""
        return self.prompts[self.part[0] :: self.part[1]]

    @property
    def workload(self) -> ls.Workload:
        """Room for the longest prompt, with which transformers verifies drafted tokens, and its answer."""
        longest = max(len(prompt.ids) for prompt in self.prompts)
        return ls.Workload(prompt_tokens=longest + ASSISTANT_TOKENS, new_tokens=self.new_tokens)

    def remember(self, stage: str, find: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """Return what was found under a key; if nothing was yet, find it and write it down."""
        key |= {"new_tokens": self.new_tokens}
        found = self.findings.get(stage, **key)
        if found is None:
            found = self.findings.put(stage, find(), **key)
            print(stage, *key.values(), flush=True)
        return found

    def lacks(self, stage: str, prompts: Iterable[Prompt], **key: Any) -> bool:
        """Return whether anything is left to find for one of the prompts."""
        key |= {"new_tokens": self.new_tokens}
        return any(self.findings.get(stage, prompt=prompt.name, **key) is None for prompt in prompts)

    def found(self, stage: str, kind: str = "", **key: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return key and finding of each entry about this job's prompts, or about those of one kind."""
        names = {prompt.name for prompt in self.prompts if kind in ("", prompt.kind)}
        entries = self.findings.of(stage, **key, new_tokens=self.new_tokens)
        return [(each, found) for each, found in entries if each.get("prompt") in names]

    def kinds(self) -> list[str]:
        """Return the kinds that the prompts have."""
        return [kind for kind in KINDS if any(prompt.kind == kind for prompt in self.prompts)]


def read_prompts(model: Path, count: int | None) -> list[Prompt]:
    """Return `count` prompts, or all, the kinds in turns. Without a tokenizer, tokens are made up."""
    texts: dict[str, list[str]] = json.loads(PROMPTS.read_text())
    named = [
        (f"{kind}-{number}", kind, texts[kind][number])
        for number in range(max(map(len, texts.values())))
        for kind in KINDS
        if number < len(texts[kind])
    ]
    try:
        tokenizer: Any = load_tokenizer(str(model), LoadOptions())
    except CheckpointError:
        tokenizer = None
    return [Prompt(name=name, kind=kind, ids=_tokens(tokenizer, text)) for name, kind, text in named[:count]]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    if tokenizer is None:
        return [3 + byte for byte in text.encode()[:_SHORT_TOKENS]]
    messages = [{"role": "user", "content": text}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    return ids
