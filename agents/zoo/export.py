"""Make a small, ready-trained checkpoint with its card.

python -m agents.zoo export --model walker.zip --result zoo_configs/results/.../default-seed1.json --name walker-walk

The checkpoint holds the world, its start states and the agent's networks in half precision; no optimisers and no
replay. `gym.make("Dream-v0", model="walker-walk")` and `Dreamer.load("walker-walk")` open it, wherever wmgym is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.zoo.enjoy import dream_env, real_env
from agents.zoo.hyperparams import in_words
from agents.zoo.loading import load_trained
from agents.zoo.playing import play
from agents.zoo.report import Returns
from agents.zoo.tables import markdown
from wmgym import checkpoint
from wmgym.worlds.store import STARTS

LARGEST = 3_000_000
"""Bytes that a ready-trained checkpoint may have."""

_KEPT_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_pretrained", "episodes")
_KEPT_GROUPS = ("world", "agent", STARTS)
_PATHS = ("interrupt_folder", "buffer_folder", "tensorboard_log")  # of the machine it was trained on


def shrink(source: str | Path, target: str | Path) -> Path:
    """Write the part of a checkpoint that acting and dreaming need, its networks in half precision.

    Raises:
        CheckpointError: if `source` cannot be read.
        ValueError: if the result is larger than `LARGEST`; nothing is written then.
    """
    manifest, tensors = checkpoint.load(source, prefix=_KEPT_GROUPS)
    kept = {name: value if name.startswith(f"{STARTS}/") else _halved(value) for name, value in tensors.items()}
    size = sum(value.numel() * value.element_size() for value in kept.values())
    if size > LARGEST:
        raise ValueError(f"{source} would be {size / 1e6:.1f} MB, and {LARGEST / 1e6:.0f} MB is the most.")
    run = {name: manifest["run"][name] for name in _KEPT_COUNTERS if name in manifest["run"]}
    agent = manifest["agent"]
    arguments = {name: value for name, value in agent["arguments"].items() if name not in _PATHS}
    return checkpoint.save(target, manifest | {"run": run, "agent": agent | {"arguments": arguments}}, kept)


def _halved(value: Tensor) -> Tensor:
    return value.to(torch.float16) if value.dtype == torch.float32 else value


# -- the card -------------------------------------------------------------------------------------------------


def card(name: str, result: dict[str, Any], size: int, real: Returns, dream: Returns, trust: str | None) -> str:
    """What a ready-trained checkpoint is, as Markdown.

    Args:
        name: of the checkpoint.
        result: the result file of its run.
        size: of the checkpoint, bytes.
        real: returns of this very file, after its networks were rounded, in the real environment.
        dream: the same inside its world.
        trust: a report on how far its dreams can be trusted, or None.
    """
    steps = result["env_steps"][-1]
    facts = {
        "algorithm": f"{result['algo']}, preset {result['preset']}" + in_words(result.get("overrides", {})),
        "environment": f"`{result['env_id']}`, {result['observation']}, action repeat {result['action_repeat']}",
        "data": f"{steps:,} simulator steps, collected by itself; seed {result['seed']}; {result['updates']:,} updates",
        "trained again by": f"`{_command(result)}`",
        "commit, versions": f"{result['commit']}; torch {result['versions']['torch']}, mujoco "
        f"{result['versions']['mujoco']}, dm_control {result['versions']['dm_control']}",
        "machine, time": f"{result['machine']}; {result['wall_clock_s'] / 60:.0f} minutes",
        "size": f"{size / 1e6:.1f} MB, networks in float16, with critics, without optimisers and replay",
    }
    scores = {
        "at the end of training": f"{result['return_mean'][-1]:.0f} ± {result['return_std'][-1]:.0f} "
        f"({result['eval_episodes']} episodes)",
        "this file, real environment": f"{real} ({len(real.values)} episodes)",
        "this file, its own dream": f"{dream} ({len(dream.values)} dreams)",
    }
    return "\n\n".join(
        [
            f"# {name}",
            f"A world and the agent that learned it. Made by `python -m agents.zoo export`.\n\n"
            f'```python\nimport gymnasium as gym, wmgym\n\ndream = gym.make("Dream-v0", model="{name}")\n```',
            markdown(["", ""], facts.items()),
            "## Returns",
            "Deterministic actions; mean ± deviation over episodes. A dream return is what the world predicts.",
            markdown(["", "return"], scores.items()),
            "## Trust",
            _answers(trust) if trust else f"Not measured yet: `python -m agents.zoo.trust {name}`.",
        ]
    ) + "\n"  # fmt: skip


def _command(result: dict[str, Any]) -> str:
    """The command without folders of the machine it ran on."""
    pairs = [f"{name}={value}" for name, value in result.get("overrides", {}).items()]
    changed = f" --set {' '.join(pairs)}" if pairs else ""
    return (
        f"python -m agents.zoo train --algo {result['algo']} --preset {result['preset']} --env {result['env_id']} "
        f"--seed {result['seed']} --env-steps {result['env_steps'][-1]}{changed}"
    )


# -- both -----------------------------------------------------------------------------------------------------


def _answers(report: str) -> str:
    """The sentences that a trust report begins with, one to each question; its tables stay where it lies."""
    return "\n".join(line for line in report.partition("\n## ")[0].splitlines() if line.startswith("- **"))


def export(model: str, result: dict[str, Any], folder: Path, name: str, episodes: int, trust: str | None) -> Path:
    """Write `<name>.zip` and `<name>.md` to a folder; returns the first.

    Raises:
        ValueError: if the result is not of a complete run.
    """
    if not result["complete"]:
        raise ValueError(f"The result of {result['env_id']}, seed {result['seed']}, is not of a complete run.")
    path = shrink(model, folder / f"{name}.zip")
    trained = load_trained(argparse.Namespace(model=str(path), algo=result["algo"], env=None, device="auto"))
    real = play(trained.agent, real_env(trained, episodes, seed=0), episodes)
    dream = play(trained.agent, dream_env(trained.path, episodes, seed=0), episodes)
    text = card(name, result, path.stat().st_size, real, dream, trust)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Export; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the trained agent's file")
    parser.add_argument("--result", required=True, help="the result file of its run")
    parser.add_argument("--name", required=True, help="what users will call it, such as walker-walk")
    parser.add_argument("--trust", help="a trust report in Markdown, for the card")
    parser.add_argument("--folder", default="wmgym/models")
    parser.add_argument("--episodes", type=int, default=10)
    args = parser.parse_args(arguments)
    result = json.loads(Path(args.result).read_text())
    trust = Path(args.trust).read_text() if args.trust else None
    path = export(args.model, result, Path(args.folder), args.name, args.episodes, trust)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
