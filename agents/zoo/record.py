"""Film a trained agent beside its dream: the world watches for a while, then goes on without looking.

python -m agents.zoo record --model walker-walk     # videos/walker-walk.mp4
python -m agents.zoo record --suite nine            # a film a task, of the runs with the first seed

A world that has only seen states gets a picture decoder for the film; its state and dreams are not touched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agents.base import WorldModelAgent
from agents.evaluation import SEED
from agents.zoo.film import film_dream, film_path
from agents.zoo.loading import Trained, add_arguments, load_trained
from agents.zoo.painting import paint
from agents.zoo.suites import read_suites
from agents.zoo.tables import task_name
from wmgym.dream.frames import picture_key
from wmgym.real import make_env, of_one

LARGEST = 1_000_000
"""Bytes that a film may have."""


def record(trained: Trained, path: Path, args: argparse.Namespace) -> Path:
    """Film `args.steps` decisions.

    Raises:
        ValueError: if the agent has no world.
    """
    agent = trained.agent
    if not isinstance(agent, WorldModelAgent):
        raise ValueError(f"{type(agent).__name__} has no world to dream in: enjoy --film shows how it acts.")
    if picture_key(agent.world) is None:
        env = make_env(trained.env_id, **of_one(trained.env_options), render_size=64)
        try:
            paint(agent, env, args.frames, args.updates, seed=args.seed)
        finally:
            env.close()
    env = make_env(trained.env_id, **of_one(trained.env_options), render_size=args.size)
    try:
        return film_dream(
            agent, env, path, args.steps, args.watched, args.dreamt, size=args.size, seed=SEED + args.seed
        )
    finally:
        env.close()


def film_one(args: argparse.Namespace) -> bool:
    """Film the agent that the command line names; False if the film is too large."""
    trained = load_trained(args)
    path = record(trained, args.out or Path(f"videos/{task_name(trained.env_id)}.mp4"), args)
    size = path.stat().st_size
    print(f"Wrote {path}, {size / 1e6:.2f} MB.", flush=True)
    if size > LARGEST:
        print(f"It is larger than {LARGEST / 1e6:.0f} MB: use fewer --steps or a smaller --size.", file=sys.stderr)
    return size <= LARGEST


def of_suite(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The command lines of a suite's runs with its first seed; where it has several agents, films have their names."""
    suite = read_suites()[args.suite]
    lines = []
    for run in suite.runs():
        if run.seed == suite.seeds[0]:
            name = f"{task_name(run.env_id)}-{run.algo}-{run.preset}"
            out = Path(f"videos/{name}.mp4") if len(suite.agents) > 1 else None
            lines.append(argparse.Namespace(**{**vars(args), **run._asdict(), "env": run.env_id, "out": out}))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Film; returns the exit status, 1 for a film that is too large."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--suite", choices=sorted(read_suites()), help="film every task of a suite that was run")
    parser.add_argument("--out", type=film_path, help="the mp4 (default: videos/<task>.mp4)")
    parser.add_argument("--steps", type=int, default=250, help="decisions in the film")
    parser.add_argument("--watched", type=int, default=10, help="of them the world sees so many in a row")
    parser.add_argument("--dreamt", type=int, default=40, help="and then goes on so many without looking")
    parser.add_argument("--size", type=int, default=256, help="height and width of each picture")
    parser.add_argument("--frames", type=int, default=2000, help="pictures that a state world's decoder learns from")
    parser.add_argument("--updates", type=int, default=1500, help="batches of them")
    args = parser.parse_args(arguments)
    if args.suite and (args.out or args.model):
        parser.error("--suite films every task of the suite, each to its own file: leave --out and --model out.")
    small = [film_one(each) for each in (of_suite(args) if args.suite else [args])]
    return 0 if all(small) else 1


if __name__ == "__main__":
    sys.exit(main())
