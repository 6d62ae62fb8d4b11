"""CEM on the true simulator: the return of planning with a model that makes no errors (the paper's last column).

    python -m benchmarks.true_simulator --env dm_control/cartpole-swingup-v0 --action-repeat 8
    python -m benchmarks.true_simulator --env dm_control/walker-walk-v0 --action-repeat 2

Writes benchmarks/results/true_simulator.json, one entry an environment. The paper searches 1000 plans, 10 times, from
zero; the default here is what one core carries in minutes, around the rest of the last plan.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from agents.planners import CEM, shifted
from agents.simulators import SimulatedPlans
from benchmarks import report
from wmgym import make_env
from wmgym.files import atomic_writer
from wmgym.random import TorchNoise

PAPER = {"dm_control/cartpole-swingup-v0": 850, "dm_control/walker-walk-v0": 994}
FILE = Path(__file__).parent / "results" / "true_simulator.json"


def episode(id: str, repeat: int, planner: CEM, seed: int, every_reward: bool) -> float:
    """The return of one episode."""
    env = make_env(id, action_repeat=repeat, seed=seed)
    model = SimulatedPlans([env], every_reward=every_reward)
    noise = TorchNoise(torch.Generator().manual_seed(seed))
    total, start, ended = 0.0, None, False
    while not ended:
        belief = planner.plan(model, noise, start)
        start = shifted(belief.mean)
        _, reward, terminated, truncated, _ = env.step(belief.action()[0].numpy())
        total, ended = total + float(reward), terminated or truncated
    env.close()
    return total


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    torch.set_num_threads(1)
    planner = CEM(args.horizon, args.candidates, args.iterations, args.elites)
    facts = report.facts()
    begun = time.process_time()
    returns = [episode(args.env, args.action_repeat, planner, seed, args.every_reward) for seed in args.seeds]
    return {
        **facts,
        "env_id": args.env,
        "action_repeat": args.action_repeat,
        "planner": str(planner),
        "every_reward": args.every_reward,
        "seeds": args.seeds,
        "returns": [round(value, 2) for value in returns],
        "paper": PAPER.get(args.env),
        "processor_s": round(time.process_time() - begun, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.true_simulator", description=__doc__.split("\n")[0])
    parser.add_argument("--env", default="dm_control/cartpole-swingup-v0")
    parser.add_argument("--action-repeat", type=int, default=8)
    parser.add_argument("--horizon", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--elites", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every-reward", action="store_true", help="search by the reward of every simulator step")
    args = parser.parse_args(arguments)
    result = run(args)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.parent.mkdir(exist_ok=True)
    with atomic_writer(FILE) as file:
        file.write((json.dumps({**known, args.env: result}, indent=1) + "\n").encode())
    print(f"{args.env}: {result['returns']} (paper, from one of its own searches: {result['paper']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
