"""Peers: layerstream beside others that run a model larger than memory, on the same checkpoints.

oLLM, AirLLM, accelerate's disk offload and llama.cpp take turns with layerstream: every pass from a cold
disk, once under one memory limit, with 32 prompts, with a larger model and with a mixture of experts. Results
are written after each stage, beside those of stages that ran earlier under the same name.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import (
    RESULTS,
    environment,
    hardware_slug,
    has_bf16_instructions,
    option_parser,
    work_directory,
)
from peers import environments, report
from peers.checkpoints import write_checkpoint
from peers.figures import targets
from peers.measure import Bench, Clock, run_stage
from peers.stages import ENVIRONMENTS, STAGES, Case, Stage, expected_s
from peers.stages import shapes as model_shapes
from rich.console import Console
from rich.table import Table

DEFAULT_ROUNDS = 3
PEERS = tuple(peer for peer in ENVIRONMENTS if peer != "transformers")
VERSIONS = ("torch", "transformers", "accelerate", "peft", "ollm", "airllm", "llama_cpp_python")


def main() -> int:
    options = parse()
    rounds = options.rounds or (2 if options.quick else DEFAULT_ROUNDS)
    shapes = model_shapes(is_quick=options.quick, has_bf16=has_bf16_instructions())
    plan = [
        (stage, [case for case in stage.cases if case.peer in options.only])
        for stage in STAGES
        if stage.name in options.stages
    ]
    pythons = find_pythons(options)
    clock = Clock(
        expected_s=sum(
            expected_s(stage, case, rounds, shapes[stage.model].weight_bytes)
            for stage, cases in plan
            for case in cases
        )
    )
    with work_directory(options) as work:
        facts = environment(work) | versions(pythons)
        bench = Bench(pythons=pythons, work=work, rounds=rounds, clock=clock)
        print(f"{len(plan)} stages, {rounds} rounds, {clock.left()}", flush=True)
        found = measure(bench, plan, shapes, options, facts)
    for line in targets(found):
        print(line)
    return 0


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = option_parser(__doc__)
    parser.add_argument("--install", action="store_true", help="make the environments that are missing first")
    parser.add_argument("--only", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", help=f"some of {','.join(names)} (default: all; with --quick: dense,moe)")
    options = parser.parse_args()
    options.stages = (options.stages or ("dense,moe" if options.quick else ",".join(names))).split(",")
    options.only = options.only.split(",")
    for chosen, known in ((options.stages, names), (options.only, PEERS)):
        unknown = [each for each in chosen if each not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return options


def find_pythons(options: argparse.Namespace) -> dict[str, Path | str]:
    """Return the interpreter of each environment that the chosen peers need, or why there is none."""
    wanted = {ENVIRONMENTS[peer] for peer in options.only} - {""}
    look = environments.make if options.install else environments.find
    return {"": Path(sys.executable)} | {name: look(name) for name in sorted(wanted)}


def versions(pythons: dict[str, Path | str]) -> dict[str, str]:
    """Return what the peers' own environments hold, by environment."""
    return {
        f"packages of {name}": environments.versions(python, VERSIONS)
        for name, python in pythons.items()
        if name and isinstance(python, Path)
    }


def measure(
    bench: Bench,
    plan: list[tuple[Stage, list[Case]]],
    shapes: dict[str, Any],
    options: argparse.Namespace,
    facts: dict[str, str],
) -> dict[str, Any]:
    """Run the stages in order; write the results, and remove what no later stage needs, after each."""
    out = options.out or (None if options.quick else RESULTS)
    stem = None if out is None else out / f"peers_{options.hardware or hardware_slug()}_{options.date}"
    found = {} if stem is None else report.read_stages(stem)
    checkpoints = {}
    for number, (stage, cases) in enumerate(plan):
        if stage.model not in checkpoints:
            print(f"[{stage.name}] writing the checkpoint", flush=True)
            checkpoints[stage.model] = write_checkpoint(bench.work / stage.model, shapes[stage.model])
        found[stage.name] = run_stage(bench, stage, cases, checkpoints[stage.model])
        report.print_stage(found[stage.name], Console(width=180), Table(title=found[stage.name]["title"]))
        if stem is not None:
            report.write_files(found, facts, stem, draw(found))
            print(f"written: {stem}.md", flush=True)
        if stage.model not in {later.model for later, _ in plan[number + 1 :]}:
            for folder in bench.work.glob(f"{stage.model}*"):
                shutil.rmtree(folder)
    return found


def draw(found: dict[str, Any]) -> dict[str, str]:
    """Return a plot of each stage; none where the library for plots is not installed."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
        return {}
    from peers import drawing  # noqa: PLC0415

    return {name: drawing.draw(stage) for name, stage in found.items()}


if __name__ == "__main__":
    raise SystemExit(main())
