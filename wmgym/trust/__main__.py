"""How far a world's dreams can be trusted, on the command line.

python -m wmgym.trust walker.zip --env dm_control/walker-walk-v0
python -m wmgym.trust walker.zip --sb3 SAC=sac.zip --policies my_package.my_module:make_policies
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stable_baselines3
import torch

from wmgym.checkpoint import CheckpointError
from wmgym.dream.model import DreamModel, load_model
from wmgym.trust.policies import Policy, noisy_policies, simple_policies
from wmgym.trust.report import TrustSettings, trust_report


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every form of this command has; all of `TrustSettings` are among them."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("checkpoint", help="file of a world or an agent")
    parser.add_argument("--env", help="id of the real environment; default: the checkpoint's")
    parser.add_argument("--episodes", type=int, default=10, help="real episodes of each policy (default: 10)")
    parser.add_argument("--out", type=Path, help="folder to write to; default: runs/trust/<name of the checkpoint>")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    hints = typing.get_type_hints(TrustSettings)
    for field in dataclasses.fields(TrustSettings):
        arguments = typing.get_args(hints[field.name])
        kind: dict[str, Any] = {"type": arguments[0] if arguments else hints[field.name]}
        if typing.get_origin(hints[field.name]) is tuple:
            kind["nargs"] = "*"
        shown = "" if field.default is None else f" (default: {_plain(field.default)})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", default=field.default, help=field.metadata["help"] + shown, **kind
        )
    return parser


def settings_of(args: argparse.Namespace) -> TrustSettings:
    """The settings among parsed arguments."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(TrustSettings):
        value = getattr(args, field.name)
        settings[field.name] = tuple(value) if isinstance(value, list) else value
    return TrustSettings(**settings)


def write_report(args: argparse.Namespace, policies: Mapping[str, Policy], model: DreamModel | None = None) -> int:
    """Examine, write and say where; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    report = trust_report(model or args.checkpoint, args.env, policies, args.episodes, settings_of(args))
    report.facts["checkpoint"] = Path(args.checkpoint).name
    folder = report.save(args.out or Path("runs/trust") / Path(args.checkpoint).stem)
    for section in report.sections.values():
        print(f"\n{section.title}")
        for name, figure in section.figures.items():
            print(f"  {name}: {figure} ({figure.n} {figure.of})")
        for note in section.notes:
            print(f"  {note}")
    print("", *report.summary, sep="\n")
    print(f"\nWritten to {folder}/: report.md, report.json and pictures.")
    return 0


def sb3_policies(pairs: Sequence[str], space: Any, seed: int) -> dict[str, Policy]:
    """Agents of Stable-Baselines3 at several levels of noise, from `["SAC=sac.zip", ...]`.

    Such files hold pickles, which run code when they are opened: only open those that you trust.
    """
    policies: dict[str, Policy] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        algorithm = getattr(stable_baselines3, name, None)
        if not path or not (isinstance(algorithm, type) and hasattr(algorithm, "load")):
            raise ValueError(f"--sb3 {pair}: write ALGORITHM=FILE, such as SAC=sac.zip.")
        policies |= noisy_policies(f"{name} {Path(path).stem}", algorithm.load(path, device="cpu"), space, seed=seed)
    return policies


def policies_from(entry: str, checkpoint: str) -> Mapping[str, Policy]:
    """What the function `"module:function"` gives for the path of a checkpoint: policies by name."""
    module, _, function = entry.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--policies {entry}: write MODULE:FUNCTION ({error}).") from error
    return make(checkpoint)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = make_parser("python -m wmgym.trust", (__doc__ or "").split("\n")[0])
    parser.add_argument("--sb3", nargs="*", default=[], metavar="ALGORITHM=FILE", help="agents of Stable-Baselines3")
    parser.add_argument("--policies", metavar="MODULE:FUNCTION", help="gives policies by name for a checkpoint's path")
    args = parser.parse_args(arguments)
    try:
        model = load_model(args.checkpoint)
        policies = simple_policies(model.world.action_space, args.seed)
        policies |= sb3_policies(args.sb3, model.world.action_space, args.seed)
        policies |= policies_from(args.policies, args.checkpoint) if args.policies else {}
        return write_report(args, policies, model)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
