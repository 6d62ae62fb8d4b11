"""World Models' iterative procedure beside one pass with as many real decisions.

    python -m agents.zoo.iterations --env Pendulum-v1

trains `WorldModels` twice from the same seed: in several rounds of collecting, V, M and C, each with its share of the
decisions and of the updates, and in one round with all of them. After each round C plays in the real environment. The
two write a result file each, `rounds-seed0.json` and `one_pass-seed0.json`, whose curves begin with random actions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from agents.evaluation import SEED
from agents.world_models import WorldModels
from agents.zoo.playing import RandomAgent, play
from agents.zoo.report import Returns
from agents.zoo.results import describe_origin
from wmgym.allocator import keep_freed_memory
from wmgym.real import make_vec

# Small enough for states: what the rounds share out is in `_SHARED`. With less weight on V's error its codes are too
# coarse for two hundred steps of a dream.
SETTINGS: dict[str, Any] = {
    "latent": 8, "hidden": 64, "observation_scale": 100.0, "vision_updates": 3000, "vision_batch": 64,
    "learning_rate": 3e-3, "memory_updates": 3000, "memory_learning_rate": 5e-3, "memory_decay": 0.999,
    "batch_size": 32, "batch_length": 50, "generations": 150, "population": 16, "rollouts": 8, "sigma": 0.5,
    "evaluate_every": 5, "evaluate_rollouts": 64, "dream_horizon": 200, "hold": 10, "n_envs": 4,
    "exploration_noise": 0.1,
}  # fmt: skip
_SHARED = ("vision_updates", "memory_updates", "generations")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m agents.zoo.iterations", description=__doc__)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decisions", type=int, default=12_000, help="in the real environment, of each of the two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20, help="real episodes of each evaluation")
    parser.add_argument("--out", type=Path, default=Path("runs/iterations"))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def train(args: argparse.Namespace, rounds: int) -> dict[str, Any]:
    """A run's curve: after random actions, and after each of `rounds` rounds, which share decisions and updates out."""
    settings = SETTINGS | {name: SETTINGS[name] // rounds for name in _SHARED}
    agent = WorldModels(args.env, seed=args.seed, **settings)
    points = [(0, real(RandomAgent(agent.action_space, args.seed), args))]
    dreams = []
    for _ in range(rounds):
        agent.learn(args.decisions // rounds, reset_num_timesteps=False)
        points.append((agent.num_timesteps, real(agent, args)))
        dreams.append(round(float(agent.dream(args.episodes).mean()), 1))
    return {
        "env_steps": [steps * agent.action_repeat for steps, _ in points],
        "return_mean": [round(returns.mean, 1) for _, returns in points],
        "return_std": [round(returns.std, 1) for _, returns in points],
        "dream_mean": dreams,
        "updates": agent._n_updates,
        "settings": settings,
    }


def real(player: Any, args: argparse.Namespace) -> Returns:
    """Returns of real episodes, acting deterministically."""
    return play(player, make_vec(args.env, args.episodes, seed=args.seed + SEED), args.episodes)


def measure(args: argparse.Namespace, preset: str, rounds: int) -> Path:
    """Train in so many rounds, and write the result file."""
    begun, processor = time.time(), time.process_time()
    data = {
        "algo": "world_models",
        "preset": preset,
        "env_id": args.env,
        "observation": "state",
        "action_repeat": 1,
        "seed": args.seed,
        **describe_origin(("torch", "gymnasium", "cma", "numpy")),
        "eval_episodes": args.episodes,
        "deterministic": True,
        **train(args, rounds),
        "processor_s": round(time.process_time() - processor, 1),
        "wall_clock_s": round(time.time() - begun, 1),
        "complete": True,
    }
    path = args.out / f"{preset}-seed{args.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> list[Path]:
    """Train both ways, and write both result files."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    return [measure(args, "rounds", args.rounds), measure(args, "one_pass", 1)]


if __name__ == "__main__":
    keep_freed_memory()
    print(*main(), sep="\n")
