"""How fast World Models' world is dreamt, and how many generations of C that makes an hour.

    python -m benchmarks.mdn_rnn            # prints the table, writes benchmarks/results/mdn_rnn.json

One core, timed by the processor's clock, untrained worlds of Take Cover's spaces. A generation is the paper's: 64
candidates of 16 dreams each, here of a fixed length. The floor is the floating-point operations of a step's matrix
products at the rate of a product of two large square matrices measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch.utils.flop_counter import FlopCounterMode

from agents.controllers import Controller
from agents.rollouts import dream_returns
from benchmarks import report
from benchmarks.planner import matrix_rate, seconds
from wmgym.dream import DreamVectorEnv, StartStates, as_model
from wmgym.files import atomic_writer
from wmgym.random import TorchNoise
from wmgym.worlds.mdn_rnn import MDNRNN, MDNRNNConfig

FILE = Path(__file__).parent / "results" / "mdn_rnn.json"
DREAMS, CANDIDATES = 1024, 64
EPISODE = 250  # steps, about what C survives in Take Cover at four tics a step


def world(latent: int, hidden: int) -> MDNRNN:
    """An untrained world; how fast it is does not depend on what it has learnt."""
    picture = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    model = MDNRNN(picture, spaces.Discrete(3), MDNRNNConfig(latent=latent, hidden=hidden))
    return model.eval().requires_grad_(False)


def measure(latent: int, hidden: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    model = world(latent, hidden)
    controller = Controller(model.feature_size, model.action_space, ordered=True, bias=False)
    candidates = torch.randn(CANDIDATES, controller.size)
    noise, starts = TorchNoise(torch.Generator().manual_seed(0)), model.initial(1)

    def evolve(steps: int) -> None:
        rollouts = DREAMS // CANDIDATES
        dream_returns(model, controller, candidates, starts, rollouts, steps, noise, 1.15, "never")

    dreams = DreamVectorEnv(
        DREAMS,
        as_model(model, StartStates(starts, torch.ones(1, dtype=torch.bool))),
        observation="latent",
        horizon=10**6,
    )
    dreams.reset(seed=0)
    actions = np.zeros(DREAMS, np.int64)
    with FlopCounterMode(display=False) as counter:
        evolve(1)
    step = seconds(lambda: evolve(10), repeats) / 10
    return {
        "latent": latent,
        "hidden": hidden,
        "evolution_steps_per_s": DREAMS / step,
        "environment_steps_per_s": DREAMS / seconds(lambda: dreams.step(actions), repeats),
        "times_the_floor": step / (counter.get_total_flops() / matrix_rate()),
        "generations_per_hour": 3600 / (step * EPISODE),
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"{result['machine']}; commit {result['commit']}. `{result['command']}`. One core, processor time.",
        "",
        f"{DREAMS} dreams at once; a generation is {EPISODE} steps of them.",
        "",
        "| Z, H | steps a second, evolving | as `Dream-v0`'s latents | times the floor | generations an hour |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['latent']}, {row['hidden']} | {row['evolution_steps_per_s']:,.0f} "
        f"| {row['environment_steps_per_s']:,.0f} | {row['times_the_floor']:.1f} | {row['generations_per_hour']:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mdn_rnn", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.time()
    result = {
        **report.facts(),
        "rows": [measure(latent, hidden, args.repeats) for latent, hidden in ((32, 256), (64, 256), (64, 512))],
    }
    result["wall_clock_s"] = round(time.time() - begun, 1)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(FILE) as file:
        file.write(json.dumps(result, indent=1).encode())
    print(table(result))


if __name__ == "__main__":
    main()
