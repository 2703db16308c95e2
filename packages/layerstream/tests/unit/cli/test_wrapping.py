"""Plans and reports on narrow terminals: lines end between words, and numbers stay whole."""

from __future__ import annotations

import re

import pytest

from layerstream.cli.wrapping import fit_lines

PLAN = """\
/models/SmolLM2-135M-Instruct-fp16 in float16 on cpu
  units       31 (blocks and the head): 6 on the device, 0 in host memory, 25 on disk
  map         ..D....D....D....D....D....D...
  device memory
    edges (norms, buffers)                 4 KiB             4,096 B
    resident blocks                     40.5 MiB        42,474,240 B
    running task, inside a unit         11.9 MiB        12,478,000 B
  one sweep   168 ms per token (predicted): 166 MiB read at 1.0 GB/s; limited by disk
  peak memory 89.2 MiB (ledger 99.4 MiB, budget 100.0 MiB)"""
NUMBER_AND_UNIT = re.compile(r"[\d.,]+ (?:[KMG]?i?B|GB/s|ms)")


@pytest.mark.parametrize("columns", [30, 40, 60, 80])
def test_no_line_is_longer_than_the_terminal_and_no_number_is_broken(columns: int) -> None:
    fitted = fit_lines(PLAN, columns)
    assert max(map(len, fitted.splitlines())) <= columns
    assert NUMBER_AND_UNIT.findall(fitted) == NUMBER_AND_UNIT.findall(PLAN)
    assert fitted.replace(" ", "").replace("\n", "") == PLAN.replace(" ", "").replace("\n", "")


def test_what_fits_stays_as_it_is() -> None:
    assert fit_lines(PLAN, 100) == PLAN


def test_a_line_goes_on_below_its_first_word() -> None:
    assert fit_lines(PLAN.splitlines()[1], 60).splitlines() == [
        "  units       31 (blocks and the head): 6 on the device, 0",
        "              in host memory, 25 on disk",
    ]


def test_the_columns_of_the_ledger_move_together() -> None:
    assert fit_lines("\n".join(PLAN.splitlines()[4:7]), 60).splitlines() == [
        "    edges (norms, buffers)         4 KiB             4,096 B",
        "    resident blocks             40.5 MiB        42,474,240 B",
        "    running task, inside a unit 11.9 MiB        12,478,000 B",
    ]
