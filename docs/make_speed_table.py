"""Print the tables of `docs/guides/speed.md`: seconds per token, calculated from bytes and rates alone.

    python docs/make_speed_table.py

Nothing is measured: seconds per token = bytes that are not in memory / bytes per second.
"""

from __future__ import annotations

import sys

import layerstream as ls

BYTES_PER_PARAMETER = 2
PARAMETERS = {"7B": 7e9, "13B": 13e9, "32B": 32e9, "70B": 70e9, "405B": 405e9}
DISKS = {"1 GB/s": 1e9, "2.5 GB/s": 2.5e9, "7 GB/s": 7e9}
HELD = {"nothing": 0.0, "8 GB": 8e9, "16 GB": 16e9, "32 GB": 32e9}
DISK_OF_SECOND_TABLE = "2.5 GB/s"


def main() -> None:
    """Print both tables."""
    first = [
        [
            name,
            gigabytes(2 * number),
            *(time_of(BYTES_PER_PARAMETER * number, rate) for rate in DISKS.values()),
        ]
        for name, number in PARAMETERS.items()
    ]
    held = HELD.values()
    rate = DISKS[DISK_OF_SECOND_TABLE]
    second = [
        [name, *(time_of(BYTES_PER_PARAMETER * number - stays, rate) for stays in held)]
        for name, number in PARAMETERS.items()
    ]
    print_table(["model", "weights in 16 bits", *DISKS], first)
    print_table([f"kept in memory ({DISK_OF_SECOND_TABLE}):", *HELD], second)


def time_of(num_bytes: float, bytes_per_s: float) -> str:
    """Return the time of reading `num_bytes`, as text."""
    return ls.format_seconds(num_bytes / bytes_per_s) if num_bytes > 0 else "nothing to read"


def gigabytes(num_bytes: float) -> str:
    """Return decimal gigabytes as text: disks are sold and measured in them."""
    return f"{num_bytes / 1e9:.0f} GB"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table, and an empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
