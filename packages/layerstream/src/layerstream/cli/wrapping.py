"""Fit the text of plans and reports to the width of a terminal: pure, nothing is printed here.

A terminal breaks a long line in the middle of a number. Here, the gaps between columns shrink first; then
lines are broken between words, and go on below their own first word. A number stays with its unit.
"""

from __future__ import annotations

import re
import textwrap

# the first column of a plan or report, such as `  one sweep   `
_LABEL = re.compile(r"  (?=\S).{11} (?=\S)")
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=[KMGTP]?i?B\b|[kM]?B/s|GFLOP|ms\b|s\b|min\b|h\b)")
_NARROWEST_COLUMNS = 20
_NO_BREAK = "\u00a0"


def fit_lines(text: str, columns: int) -> str:
    """Return `text` with no line longer than `columns`; shorter lines stay as they are."""
    columns = max(columns, _NARROWEST_COLUMNS)
    return "\n".join(fitted for line in text.split("\n") for fitted in _fit_line(line, columns))


def _fit_line(line: str, columns: int) -> list[str]:
    if len(line) <= columns:
        return [line]
    label = _LABEL.match(line)
    if label is None:
        # what follows a label is text; other lines with gaps are rows of a table
        line = _with_smaller_gaps(line, len(line) - columns)
    indent = len(line) - len(line.lstrip()) + 4
    if label is not None and label.end() <= columns // 3:
        indent = label.end()
    whole = _NUMBER_AND_UNIT.sub(_NO_BREAK, line)
    broken = textwrap.wrap(whole, columns, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [each.replace(_NO_BREAK, " ") for each in broken]


def _with_smaller_gaps(line: str, num_too_many: int) -> str:
    """Take spaces from the gaps between columns, from the first one first; one stays in each."""

    def shrink(gap: re.Match[str]) -> str:
        nonlocal num_too_many
        num_taken = min(num_too_many, len(gap.group()) - 1)
        num_too_many -= num_taken
        return gap.group()[num_taken:]

    return _GAP.sub(shrink, line)
