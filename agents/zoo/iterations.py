"""World Models' iterative procedure beside one pass with as many real decisions.

    python -m agents.zoo.iterations --env Pendulum-v1

trains `WorldModels` twice from the same seed: in several rounds of collecting, V, M and C, each with its share of the
decisions and of the updates, and in one round with all of them. After each round C plays in the real environment. Both
curves go to one result file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from agents.world_models import WorldModels
from agents.zoo.results import describe_commit, describe_machine
from wmgym.real import make_vec

# Small enough for states: what the rounds share out is in `_SHARED`.
SETTINGS: dict[str, Any] = {
    "latent": 8, "hidden": 64, "vision_updates": 600, "vision_batch": 64, "learning_rate": 3e-3, "memory_updates": 900,
    "memory_learning_rate": 5e-3, "memory_decay": 0.997, "batch_size": 32, "batch_length": 50, "generations": 60,
    "population": 16, "rollouts": 8, "sigma": 0.5, "evaluate_every": 5, "evaluate_rollouts": 64, "dream_horizon": 200,
    "hold": 10, "n_envs": 4, "exploration_noise": 0.1,
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


def train(args: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """Real returns after each of `rounds` rounds, which share decisions and updates out among them."""
    settings = SETTINGS | {name: SETTINGS[name] // rounds for name in _SHARED}
    agent = WorldModels(args.env, seed=args.seed, **settings)
    curve = []
    for _ in range(rounds):
        agent.learn(args.decisions // rounds, reset_num_timesteps=False)
        returns = play(agent, args)
        curve.append(
            {
                "decisions": agent.num_timesteps,
                "return_mean": round(float(np.mean(returns)), 1),
                "return_std": round(float(np.std(returns)), 1),
                "dream_mean": round(float(agent.dream(args.episodes).mean()), 1),
            }
        )
    return curve


def play(agent: WorldModels, args: argparse.Namespace) -> list[float]:
    """Returns of real episodes, acting deterministically."""
    env = make_vec(args.env, args.episodes, seed=args.seed + 10_000)
    returns, _ = evaluate_policy(agent, env, args.episodes, deterministic=True, return_episode_rewards=True, warn=False)
    env.close()
    return list(np.asarray(returns, float))


def main(arguments: list[str] | None = None) -> Path:
    """Train both, and write the result file."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    begun = time.time()
    data = {
        "algo": "world_models",
        "env_id": args.env,
        "seed": args.seed,
        "settings": SETTINGS,
        "eval_episodes": args.episodes,
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "rounds": train(args, args.rounds),
        "one_pass": train(args, 1),
        "processor_s": round(time.process_time(), 1),
        "wall_clock_s": round(time.time() - begun, 1),
    }
    path = args.out / f"{args.env.replace('/', '-')}-seed{args.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


if __name__ == "__main__":
    print(main())
