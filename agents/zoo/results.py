"""Result files: one JSON a run, written as the run goes and completed at its end."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

_PACKAGES = ("torch", "gymnasium", "stable-baselines3", "dm_control", "mujoco", "shimmy", "numpy")


def result_path(root: str | Path, algo: str, env_id: str, preset: str, seed: int) -> Path:
    """Where the result of a run belongs below `root`."""
    return Path(root) / algo / env_id.replace("/", "-") / f"{preset}-seed{seed}.json"


def describe_machine() -> str:
    """Processor and accelerator in a line, such as "2 x AMD EPYC, no GPU"."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} x {name}, {gpu}"


def describe_commit() -> str:
    """The commit of the source tree, with "+" when it has uncommitted changes to code; "unknown" outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/agents", ":/wmgym", ":/zoo_configs/*.yml")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class ResultRecorder(BaseCallback):
    """Evaluates as a run goes and writes its result file after each evaluation.

    Args:
        path: of the JSON file.
        make_eval_env: gives a fresh `VecEnv` of the real environment for each evaluation.
        facts: algorithm, preset, environment and the like, copied into the file.
        every: decisions between evaluations.
        action_repeat: simulator steps per decision; `env_steps` in the file counts simulator steps.
        episodes: of each evaluation, deterministic.
    """

    def __init__(
        self,
        path: Path,
        make_eval_env: Callable[[], VecEnv],
        facts: dict[str, Any],
        every: int,
        action_repeat: int,
        episodes: int = 10,
    ) -> None:
        super().__init__()
        self.path, self.make_eval_env = path, make_eval_env
        self.every, self.action_repeat, self.episodes = every, action_repeat, episodes
        self.started = time.time()
        self.data: dict[str, Any] = {
            **facts,
            "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "commit": describe_commit(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "machine": describe_machine(),
            "threads": torch.get_num_threads(),
            "wall_clock_s": 0.0,
            "processor_s": 0.0,
            "updates": 0,
            "complete": False,
            "eval_episodes": episodes,
            "deterministic": True,
            "env_steps": [],
            "return_mean": [],
            "return_std": [],
        }

    def evaluate(self) -> None:
        """Evaluate now and write the file."""
        env = self.make_eval_env()
        try:
            returns, _ = evaluate_policy(
                self.model, env, self.episodes, deterministic=True, return_episode_rewards=True, warn=False
            )
        finally:
            env.close()
        self.data["env_steps"].append(self.model.num_timesteps * self.action_repeat)
        self.data["return_mean"].append(round(float(np.mean(returns)), 2))
        self.data["return_std"].append(round(float(np.std(returns)), 2))
        self.write()

    def write(self, **changes: Any) -> None:
        """Write the file with what is known now."""
        # Processor time beside the clock: on a machine that does other work the clock alone says too much.
        spent = {"wall_clock_s": time.time() - self.started, "processor_s": time.process_time()}
        self.data.update(changes, **{name: round(seconds, 1) for name, seconds in spent.items()})
        self.data["updates"] = getattr(self.model, "_n_updates", 0) if hasattr(self, "model") else 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        temporary.replace(self.path)

    def _on_training_start(self) -> None:
        if not self.data["env_steps"]:
            self.evaluate()

    def _on_step(self) -> bool:
        if (
            self.model.num_timesteps // self.every
            > (self.model.num_timesteps - self.training_env.num_envs) // self.every
        ):
            self.evaluate()
        return True
