"""Result files: one JSON a run, written as the run goes and completed at its end."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.vec_env import VecEnv

from wmgym.files import atomic_writer

_SWITCHES = ("--save-replay-buffer", "--anew", "--resume", "--traceback")
"""Options without a value that say what to write, or from where to go on."""
_FOLDERS = ("--results", "--save", "--log", "--log-folder", "--folder", "-f", "--out")
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


def without_folders(arguments: Sequence[str]) -> list[str]:
    """A command line without the options that say what to write, and where: they change no result.

    Example:
        >>> without_folders(["train", "--seed", "1", "--save", "/home/me/a.zip", "--results=there", "--anew"])
        ['train', '--seed', '1']
    """
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        name = argument.partition("=")[0]
        if not is_value and name not in (*_FOLDERS, *_SWITCHES):
            kept.append(argument)
        is_value = not is_value and argument in _FOLDERS
    return kept


def refuse_other_settings(
    path: Path, before: dict[str, Any], now: dict[str, Any], names: Sequence[str], way_out: str
) -> None:
    """An interrupted run goes on with the settings that it was begun with.

    Args:
        path: of the result file.
        before: what it holds.
        now: what is asked for.
        names: of the settings to compare; files of before may lack some.
        way_out: what else can be done.

    Raises:
        ValueError: naming the file and the setting.
    """
    plain = json.loads(json.dumps({name: now[name] for name in names}))  # as it comes back from a file
    for name in names:
        old, new = before.get(name, plain[name]), plain[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            old, new = ({key: values[key] for key in keys if key in values} for values in (old, new))
        raise ValueError(
            f"{path} was begun with {name}={old!r}, not {new!r}: go on with what it was begun with, or {way_out}."
        )


def open_logger(folder: str | Path, kinds: Sequence[str], goes_on: bool) -> Logger:
    """Writes the log in these kinds (progress.csv, TensorBoard's); a run that `goes_on` writes others beside them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    suffix = f"-{len(list(Path(folder).glob('progress*.csv')))}" if goes_on else ""
    return Logger(str(folder), [make_output_format(kind, str(folder), suffix) for kind in kinds])


def describe_origin(packages: Sequence[str]) -> dict[str, Any]:
    """What a result file says of how it came about: command, commit, versions of `packages`, machine and threads."""
    return {
        "command": shlex.join([Path(sys.executable).name, *without_folders(sys.orig_argv[1:])]),
        "commit": describe_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
    }


class ResultRecorder(EvalCallback):
    """Evaluates as a run goes and writes its result file after each evaluation.

    Beside the result file there are RL Zoo's `evaluations.npz` and `best_model.zip`, in the run's folder.

    Args:
        path: of the JSON file.
        make_eval_env: gives a fresh `VecEnv` of the real environment for each evaluation, so that each plays the same
            episodes and nothing of it stays in memory between them.
        facts: algorithm, preset, environment and the like, copied into the file.
        every: decisions between evaluations.
        action_repeat: simulator steps per decision; `env_steps` in the file counts simulator steps.
        folder: of the run.
        episodes: of each evaluation, deterministic.
    """

    def __init__(
        self,
        path: Path,
        make_eval_env: Callable[[], VecEnv],
        facts: dict[str, Any],
        every: int,
        action_repeat: int,
        folder: str | Path,
        episodes: int = 10,
    ) -> None:
        # It is asked to evaluate when an evaluation is due and only then: every call of it is one.
        super().__init__(
            make_eval_env(),
            n_eval_episodes=episodes,
            eval_freq=1,
            log_path=str(folder),
            best_model_save_path=str(folder),
            verbose=0,
            warn=False,
        )
        self.eval_env.close()
        self.path, self.make_eval_env = path, make_eval_env
        self.every, self.action_repeat = max(1, every), action_repeat
        self.started = time.time()
        self._spent_before = {"wall_clock_s": 0.0, "processor_s": 0.0}
        self.data: dict[str, Any] = {
            **facts,
            **describe_origin(_PACKAGES),
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

    def evaluate(self) -> bool:
        """Evaluate now and write the file; False when training should stop. It replaces what was found at this step."""
        if self.data["env_steps"][-1:] == [self._env_steps]:
            self._forget_last()
        self.eval_env = self.make_eval_env()
        try:
            going_on = super()._on_step()
        finally:
            self.eval_env.close()
        returns = self.evaluations_results[-1]
        self.data["env_steps"].append(self._env_steps)
        self.data["return_mean"].append(round(float(np.mean(returns)), 2))
        self.data["return_std"].append(round(float(np.std(returns)), 2))
        self.write()
        return going_on

    def write(self, **changes: Any) -> None:
        """Write the file with what is known now."""
        # Processor time beside the clock: on a machine that does other work the clock alone says too much.
        spent = {"wall_clock_s": time.time() - self.started, "processor_s": time.process_time()}
        self.data.update(
            changes, **{name: round(seconds + self._spent_before[name], 1) for name, seconds in spent.items()}
        )
        if hasattr(self, "model"):
            self.data["updates"] = self.model._n_updates
        with atomic_writer(self.path) as file:
            file.write((json.dumps(self.data, indent=1) + "\n").encode())

    def continue_from(self, decisions: int) -> None:
        """Take over the curve that an interrupted run wrote, up to the `decisions` it is resumed at.

        Raises:
            ValueError: if it was begun with other settings.
        """
        before = json.loads(self.path.read_text())
        names = ("overrides", "observation", "env_kwargs", "action_repeat", "eval_episodes")
        refuse_other_settings(self.path, before, self.data, names, "begin again (--anew)")
        evaluations = np.load(f"{self.log_path}.npz")
        kept = int((evaluations["timesteps"] <= decisions).sum())
        resumed = {"env_steps": decisions * self.action_repeat, "commit": self.data["commit"]}
        self.data.update({name: before[name][:kept] for name in ("env_steps", "return_mean", "return_std")})
        self.data.update({name: before[name] for name in ("command", "commit")})
        self.data["resumed"] = [*before.get("resumed", []), resumed]
        self._spent_before = {name: before.get(name, 0.0) for name in self._spent_before}
        self.evaluations_timesteps = evaluations["timesteps"][:kept].tolist()
        self.evaluations_results = evaluations["results"][:kept].tolist()
        self.evaluations_length = evaluations["ep_lengths"][:kept].tolist()
        self.best_mean_reward = max((float(np.mean(returns)) for returns in self.evaluations_results), default=-np.inf)

    @property
    def is_behind(self) -> bool:
        """Whether the run has gone on since the last evaluation."""
        return self.data["env_steps"][-1] < self._env_steps

    @property
    def _env_steps(self) -> int:
        """Simulator steps so far, those that C's evolution took in the real environment among them."""
        return (self.num_timesteps + getattr(self.model, "evolution_steps", 0)) * self.action_repeat

    def _forget_last(self) -> None:
        for name in ("env_steps", "return_mean", "return_std"):
            self.data[name].pop()
        for values in (self.evaluations_timesteps, self.evaluations_results, self.evaluations_length):
            values.pop()

    def _init_callback(self) -> None:
        Path(self.log_path or ".").parent.mkdir(parents=True, exist_ok=True)

    def _on_training_start(self) -> None:
        if not self.data["env_steps"]:
            self.num_timesteps = self.model.num_timesteps
            self.evaluate()

    def _on_step(self) -> bool:
        before = self.num_timesteps - self.training_env.num_envs
        return self.evaluate() if self.num_timesteps // self.every > before // self.every else True
