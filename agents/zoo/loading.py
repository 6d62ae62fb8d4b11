"""Trained agents by the name of their run or file, ours and Stable-Baselines3's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import ALGORITHMS, WorldModelAgent
from agents.zoo.agent_files import agent_class
from wmgym.checkpoint import CheckpointError


class Trained(NamedTuple):
    """A trained agent and where it is at home."""

    agent: BaseAlgorithm
    path: str
    """Of its file; for one of ours its world is in there too."""
    env_id: str
    env_options: dict[str, Any]
    """Arguments of `wmgym.make_env`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a trained agent."""
    parser.add_argument("--model", help="an agent's file, or a ready-trained one such as walker-walk; else the run's:")
    parser.add_argument("--algo", default="dreamer", help="(default: dreamer)")
    parser.add_argument("--env", help="Gymnasium id of the real environment")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-f", "--log-folder", default="runs/zoo", help="where train wrote")
    parser.add_argument("--load-best", action="store_true", help="the best of the run's evaluations, not its end")
    parser.add_argument("--device", default="auto")


def load_trained(args: argparse.Namespace) -> Trained:
    """The agent that the command line names.

    Raises:
        CheckpointError: if there is no such file, or it is no agent.
        ValueError: if the environment is not known from the file and not named.
    """
    path = args.model or str(_run_file(args))
    if args.model is None and args.algo not in ALGORITHMS:
        return _load_stock(args, path, _saved_options(path, args.env))
    if args.algo not in ALGORITHMS:
        return _load_stock(args, path, {})
    cls = _class_in(path)
    agent = cls.load(path, device=args.device)
    settings = dict(agent.env_settings or (_saved_options(path, args.env) if args.model is None else {}))
    own = settings.pop("id", None)
    env_id = args.env or own
    if env_id is None:
        raise ValueError(f"{path} does not say where it was trained: name the environment with --env.")
    return Trained(agent, path, env_id, settings)


def _load_stock(args: argparse.Namespace, path: str, env_options: dict[str, Any]) -> Trained:
    if args.env is None:
        raise ValueError(f"Name the environment of {path} with --env.")
    return Trained(ALGOS[args.algo].load(path, device=args.device), path, args.env, env_options)


def _run_file(args: argparse.Namespace) -> Path:
    """The agent that `train` wrote with the same options."""
    if args.env is None:
        raise ValueError("Name an agent with --model, or a run with --algo, --env, --preset and --seed.")
    name = args.env.replace("/", "-")
    folder = Path(args.log_folder) / args.preset / args.algo / f"{name}_{args.seed + 1}"
    path = folder / ("best_model.zip" if args.load_best else f"{name}.zip")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: train it first (python -m agents.zoo train), or give --model.")
    return path


def _saved_options(path: str, env_id: str) -> dict[str, Any]:
    """Arguments of the environments that a run of `train` was made with, which must be all that made them."""
    config = yaml.safe_load((Path(path).parent / env_id.replace("/", "-") / "config.yml").read_text())
    for name in ("normalize", "frame_stack", "env_wrapper", "vec_env_wrapper"):
        if config.get(name):
            raise ValueError(f"{path} was trained with {name}, which is not made again here: use rl_zoo3's own enjoy.")
    return config.get("env_kwargs") or {}


def _class_in(path: str) -> type[WorldModelAgent]:
    kind = agent_class(path)
    if kind is None:
        raise CheckpointError(f"{path} holds none of the agents {', '.join(k.__name__ for k in ALGORITHMS.values())}.")
    return kind
