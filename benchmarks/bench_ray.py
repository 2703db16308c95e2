"""Answer rows on a local Ray: kills, how full the sweeps are, two budgets, and what Ray costs a row.

kills      a job with a progress_dir, whose driver and workers are killed at random moments: is each row
           answered once, as `generate_many` answers it, and how many rows are answered again? With a tiny
           model and with the default one
occupancy  rows of different lengths, with blocks that share sweeps and with one block at a time
budgets    two jobs at the same time whose workers have different budgets: does each stay within its own?
overhead   `layerstream batch --ray local` with one worker against `layerstream batch --no-packed`, with a
           limit on reads
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import ray
from common import environment, option_parser, publish, work_directory

import layerstream as ls

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages" / "layerstream" / "tests"))

from kit.tiny_llama import save_tiny_llama
from ray_steps import budgets, kills, occupancy, overhead
from ray_steps.job import Job

STAGES = {stage.STAGE: stage for stage in (kills, occupancy, budgets, overhead)}


def main() -> int:
    """Run the stages, and publish a table for each."""
    parser = option_parser(__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="which to run, separated by commas")
    parser.add_argument("--rate", type=float, default=150.0, help="MB/s of the limit on reads")
    parser.add_argument("--models", default="tiny,default", help="models of `kills`, separated by commas")
    parser.add_argument("--rows", type=int, help="rows of `kills` (default: 2000)")
    parser.add_argument("--kills", type=int, help="how often `kills` kills (default: 20)")
    options = parser.parse_args()
    status = 0
    with work_directory(options) as work:
        facts = environment(work) | {"ray": ray.__version__}
        tiny = save_tiny_llama(work / "tiny")
        job = Job(
            work=work,
            tiny=tiny,
            default=tiny if options.quick else Path(ls.default_model_path()),
            models=tuple(options.models.split(",")),
            killed_rows=options.rows or (120 if options.quick else 2000),
            num_kills=options.kills or (3 if options.quick else 20),
            rounds=options.rounds or (1 if options.quick else 3),
            rate=0 if options.quick else int(options.rate * 1e6),
            is_quick=options.quick,
        )
        for name in options.stages.split(","):
            folder = work / name
            folder.mkdir()
            status |= publish(STAGES[name].run(replace(job, work=folder)), options, facts)
    return status


if __name__ == "__main__":
    sys.exit(main())
