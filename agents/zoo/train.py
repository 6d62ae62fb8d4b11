"""Train an agent by its name and preset, and write its result file.

python -m agents.zoo.train --algo dreamer --env dm_control/walker-walk-v0 --seed 0 --env-steps 100000
"""

from __future__ import annotations

import argparse
import ast
import traceback
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from stable_baselines3.common.logger import configure

from agents import ALGORITHMS
from agents.zoo.results import ResultRecorder, result_path
from wmgym.real import make_vec

_ENV_KEYS = ("observation", "action_repeat")


def load_preset(algo: str, env_id: str, preset: str) -> dict[str, Any]:
    """Hyperparameters of `preset` for an environment: the preset's own, overridden by the environment's.

    Args:
        algo: name of the file below `zoo_configs`.
        env_id: looked up among the preset's `envs`.
        preset: a key of the file.

    Raises:
        KeyError: if there is no such file or preset; the message lists those there are.
    """
    file = files("zoo_configs") / f"{algo}.yml"
    if not file.is_file():
        raise KeyError(f"There is no zoo_configs/{algo}.yml.")
    presets = yaml.safe_load(file.read_text())
    if preset not in presets:
        raise KeyError(f"zoo_configs/{algo}.yml has no preset {preset!r}; it has {sorted(presets)}.")
    return {**presets[preset], **presets.get(env_id, {})}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m agents.zoo.train", description=__doc__)
    parser.add_argument("--algo", default="dreamer", choices=sorted(ALGORITHMS))
    parser.add_argument("--env", required=True, help="Gymnasium id of the real environment")
    parser.add_argument("--preset", default="default", help="a key of zoo_configs/<algo>.yml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env-steps", type=float, default=1e5, help="simulator steps, action repeat included")
    parser.add_argument("--eval-every", type=float, default=1e4, help="simulator steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="override hyperparameters")
    parser.add_argument("--results", default="zoo_configs/results", help="folder of result files")
    parser.add_argument("--save", help="write the trained agent there")
    parser.add_argument("--log", help="folder for progress.csv and TensorBoard")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)


def overrides(pairs: list[str]) -> dict[str, Any]:
    """`["horizon=10", "observation=pixels"]` as a dictionary of Python literals, or strings."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def main(arguments: list[str] | None = None) -> Path:
    """Train; returns the path of the result file."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    settings = {**load_preset(args.algo, args.env, args.preset), **overrides(args.set)}
    agent = ALGORITHMS[args.algo](args.env, seed=args.seed, device=args.device, verbose=0, **settings)
    env_options = {key: settings[key] for key in _ENV_KEYS if key in settings} | settings.get("env_kwargs", {})

    def make_eval_env() -> Any:
        return make_vec(args.env, args.eval_episodes, seed=args.seed + 10_000, **env_options)

    facts = {
        "algo": args.algo,
        "preset": args.preset,
        "overrides": overrides(args.set),
        "env_id": args.env,
        "observation": settings.get("observation", "state"),
        "action_repeat": agent.action_repeat,
        "seed": args.seed,
        "parameters": sum(p.numel() for p in agent.policy.parameters() if p.requires_grad),
    }
    path = result_path(args.results, args.algo, args.env, args.preset, args.seed)
    repeat = agent.action_repeat
    recorder = ResultRecorder(path, make_eval_env, facts, int(args.eval_every) // repeat, repeat, args.eval_episodes)
    if args.log:
        agent.set_logger(configure(args.log, ["csv", "tensorboard"]))
    try:
        agent.learn(int(args.env_steps) // repeat, callback=recorder)
    except BaseException:
        recorder.write(error=traceback.format_exc(limit=3))
        raise
    recorder.write(complete=True)
    if args.save:
        agent.save(args.save)
    return path


if __name__ == "__main__":
    main()
