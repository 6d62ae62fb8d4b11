"""What a planned decision costs at PlaNet's sizes, for one and for eight environments, beside the arithmetic floor.

    python -m benchmarks.planner            # prints the table, writes benchmarks/results/planner.json
    python -m benchmarks.planner --envs 1

One core, timed by the processor's clock. The floor is the floating-point operations of the search's matrix products, at
the rate of a product of two large square matrices measured in the same run; what is between is everything else that a
search must do: gates, activations, random numbers, sorting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch.utils.flop_counter import FlopCounterMode

from agents import PlaNet
from agents.plannable import plannable
from agents.planners import CEM, Planner
from benchmarks import report
from wmgym.files import atomic_writer
from wmgym.random import TorchNoise
from wmgym.worlds.rssm import RSSM

PAPER = CEM()
CPU = CEM(candidates=100, elites=12, iterations=4)
FILE = Path(__file__).parent / "results" / "planner.json"


def world(deter: int, stoch: int, units: int) -> RSSM:
    """An untrained world of walker-walk's spaces; how fast it is does not depend on what it has learnt."""
    box, action = spaces.Box(-10, 10, (24,), np.float32), spaces.Box(-1, 1, (6,), np.float32)
    agent = PlaNet(None, deter=deter, stoch=stoch, units=units, _init_setup_model=False)
    return RSSM(box, action, agent.world_config).eval().requires_grad_(False)


def seconds(step: Callable[[], Any], repeats: int) -> float:
    """Processor time of one `step`, the median of `repeats`."""
    step()
    spent = []
    for _ in range(repeats):
        begun = time.process_time()
        step()
        spent.append(time.process_time() - begun)
    return statistics.median(spent)


def matrix_rate(size: int = 1024) -> float:
    """Floating-point operations a second of a product of two square float32 matrices."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / seconds(lambda: a @ b, 15)


def measure(name: str, model: RSSM, planner: Planner, envs: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    draws, where = TorchNoise(), plannable(model, model.initial(envs))
    with FlopCounterMode(display=False) as counter:
        planner.plan(where, draws)
    floor = counter.get_total_flops() / matrix_rate()
    spent = seconds(lambda: planner.plan(where, draws), repeats)
    row = {"search": name, "envs": envs, "milliseconds": 1e3 * spent, "floor_milliseconds": 1e3 * floor}
    return row | {"times_the_floor": spent / floor}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"{result['machine']}; commit {result['commit']}. `{result['command']}`. One core, processor time.",
        "",
        "| search and world | environments at once | ms a decision of all | floor, ms | times the floor |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["search"], row["envs"]] + [f"{row[key]:.1f}" for key in ("milliseconds", "floor_milliseconds")]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['times_the_floor']:.2f} |")
    return "\n".join(lines)


def run(envs: list[int], repeats: int) -> dict[str, Any]:
    """Measure everything."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {
        "paper: 1000 x 10 x 12, deter 200, heads 3 x 300": (world(200, 30, 300), PAPER),
        "preset cpu: 100 x 4 x 12, deter 100, heads 3 x 100": (world(100, 20, 100), CPU),
    }
    facts, rows = report.facts(), []
    for name, (model, planner) in sizes.items():
        for count in envs:
            rows.append(measure(name, model, planner, count, repeats))
            print(rows[-1], file=sys.stderr, flush=True)
    return {**facts, "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__.split("\n")[0])
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8], help="environments planned for at once")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    result = run(args.envs, args.repeats)
    FILE.parent.mkdir(exist_ok=True)
    with atomic_writer(FILE) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
