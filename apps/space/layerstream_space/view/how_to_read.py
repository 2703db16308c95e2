"""One place that explains a page: its marks, its figures and its colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .columns import AGREEMENT, COSTS, COSTS_WITH_DEVICE
from .elements import BY_KEY, escape

_MARKS = (
    (
        "reference",
        "The exact model: streamed through little memory or held in memory, the same bits either way. The "
        "first exact column is the reference, and the others are compared with it.",
    ),
    (
        "marked word",
        "The first token that differs from the reference's. What follows it is tinted: from there on the "
        "two answers read different texts, so later differences say nothing about quality. Point at the "
        "mark to see what the reference has there and how sure it was (its margin: the probability of its "
        "first choice minus that of its second; near 0 is a coin flip).",
    ),
    ("bit-exact", "Every single logit (raw score) that was compared equals the reference's, bit for bit."),
    (
        "reading the reference's answer",
        "KL and same top token are not taken from the answer above. The column reads the reference's answer "
        "and predicts each next token, so one early difference does not spoil the rest. A column can "
        "therefore write another answer and still have 100 %.",
    ),
    (
        "noisy, ≈",
        "Other programs kept the machine busy, so the times may be far off. Memory, KL and the answer are "
        "not affected. Several rounds give a median and a range.",
    ),
)
_COMPARE_COLOURS = (
    ("held", "weights in memory"),
    ("working", "working memory: activations, attention scores, KV cache"),
    ("spike", "weights on their way into memory: the extra peak while loading"),
    ("mapped", "mapped files, which the system can take back"),
    ("time", "time"),
    ("mark", "the first different word"),
)
_BUDGET = (
    "budget",
    "What the streamed model may use for weights, KV cache and activations. The bars show the whole process, "
    "which also holds a tokenizer and Python's own objects. Mapped files do not count towards the budget.",
)
_WATCH_WORDS = (
    (
        "sweep",
        "One visit of all the model's blocks, in order. Every new token takes one sweep; with a draft, one "
        "sweep gives several.",
    ),
    (
        "draft",
        "Something quick that guesses the next tokens. One sweep checks the guesses together: it accepts "
        "those that the model would have written itself, up to the first wrong one, and adds the model's own "
        "next token. So the answer is the same as without a draft. Where guessing and checking would take "
        "longer than it saves, nothing is drafted.",
    ),
)
_WATCH_TRACKS = (
    ("read", "reading from disk", "Several reads run at the same time."),
    (
        "copy",
        "copying to the device",
        "From host memory to the accelerator. On a CPU there are none: weights are read straight into place.",
    ),
    ("compute", "computing", "Time inside a block's forward. Shades alternate from block to block."),
    (
        "wait",
        "waiting for weights",
        "The computation stood still because a block's weights had not arrived. None means that the disk "
        "keeps ahead.",
    ),
)


def how_to_read_columns(*, has_device: bool) -> str:
    """Return the explanation of the page that compares answers, folded up.

    Args:
        has_device: whether columns are measured on an accelerator, with a memory of its own.
    """
    costs = COSTS_WITH_DEVICE if has_device else COSTS
    keys = (*costs, ("inter_token_median_s", "between tokens"), *AGREEMENT)
    figures = [(name, f"{BY_KEY[key].includes}.") for key, name in keys]
    return _folded(_list((*_MARKS, *figures, _BUDGET)) + _colours(_COMPARE_COLOURS))


def how_to_read_timeline() -> str:
    """Return the explanation of the timeline, folded up."""
    rows = [(title, about) for _, title, about in _WATCH_TRACKS]
    return _folded(
        _list((*_WATCH_WORDS, *rows)) + _colours([(kind, title) for kind, title, _ in _WATCH_TRACKS])
    )


def _folded(html: str) -> str:
    return f'<details class="ls-read"><summary>How to read this</summary>{html}</details>'


def _list(entries: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(about)}</dd>" for name, about in entries)
    return f"<dl>{rows}</dl>"


def _colours(colours: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="{kind}"></i>{escape(about)}</li>' for kind, about in colours)
    return f'<p class="ls-note">Colours mean the same on every tab:</p><ul class="ls-legend">{items}</ul>'
