"""Compare budgets before a single weight is read."""

from __future__ import annotations

import sys

import layerstream as ls
from layerstream.default_model import default_model_path


def main(path: str) -> None:
    least = ls.plan(path, budget="min").ledger.device_bytes
    most = least + ls.profile_model(path).weight_bytes
    legend = "D stays, H in host memory, . streamed from disk"
    print(f"{'budget':>10}{'a sweep reads':>16}{'predicted':>12}  placement ({legend})")
    for budget in (least, (least + most) // 2, most):
        plan = ls.plan(path, budget=budget)
        read, sweep = ls.format_bytes(plan.cost.read_bytes), ls.format_seconds(plan.cost.sweep_s)
        print(f"{ls.format_bytes(budget):>10}{read:>16}{sweep:>12}  {plan.placement_map()}")
    try:
        ls.plan(path, budget=least // 2)
    except ls.BudgetTooSmallError as error:
        needed = ls.format_bytes(error.needed_bytes)
        print(f"half of the least is refused: {needed} are needed on the {error.where}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
