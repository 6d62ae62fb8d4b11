"""Play a trained agent, in the real environment or inside a learned world.

python -m agents.zoo enjoy --model walker-walk --dream         # inside its own world
python -m agents.zoo enjoy --algo sac --env dm_control/walker-walk-v0 --dream walker-walk
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.evaluation import SEED
from agents.zoo.film import film_path
from agents.zoo.loading import Trained, add_arguments, load_trained
from agents.zoo.playing import play
from wmgym.dream import DreamVecEnv
from wmgym.films import write_film
from wmgym.real import make_vec


def real_env(trained: Trained, count: int, seed: int) -> VecEnv:
    """The environment that the agent was trained in, with episodes that it was not trained on."""
    return make_vec(trained.env_id, count, seed=SEED + seed, **trained.env_options)


def dream_env(world: str, count: int, seed: int, frames: bool = False) -> VecEnv:
    """Dreams of a world, with every episode's return in their infos."""
    return VecMonitor(DreamVecEnv(count, world, seed=SEED + seed, **({"render_mode": "rgb_array"} if frames else {})))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo enjoy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument(
        "--dream", nargs="?", const="", metavar="WORLD", help="play inside this world (default: its own)"
    )
    parser.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the likeliest")
    parser.add_argument("--film", type=film_path, help="write what is seen to this mp4")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Play and print the returns; returns the exit status."""
    args = build_parser().parse_args(arguments)
    trained = load_trained(args)
    frames: list[Any] | None = [] if args.film else None
    count = 1 if args.film else args.episodes
    if args.dream is None:
        env, where = real_env(trained, count, args.seed), trained.env_id
    else:
        env, where = dream_env(args.dream or trained.path, count, args.seed, bool(args.film)), "the dream"
    returns = play(trained.agent, env, args.episodes, not args.stochastic, frames)
    for number, value in enumerate(returns.values, start=1):
        print(f"episode {number}: {value:.1f}")
    print(f"{type(trained.agent).__name__} in {where}: {returns} over {len(returns.values)} episodes")
    if args.film and frames:
        print(f"Wrote {write_film(args.film, frames, fps=25)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
