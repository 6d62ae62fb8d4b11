"""RL Zoo's algorithms with ours beside them, and the environments that RL Zoo must know of.

In a project of your own, a file `custom_envs.py` in the working directory is imported by RL Zoo itself; these lines
in it make `python -m rl_zoo3.train --algo dreamer` work, and it is also the place to register environments:

    import gymnasium
    from agents.zoo.registry import register_algorithms

    register_algorithms()
    gymnasium.register("Mine-v0", entry_point="my_package:MyEnv", max_episode_steps=200)
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import optuna
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import ALGORITHMS
from wmgym.real import PLUGINS
from wmgym.rendering import choose_backend


def register_algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Put our agents and what `tune` may choose for them into RL Zoo's tables; returns its table of algorithms.

    Example:
        >>> algorithms = register_algorithms()
        >>> algorithms["dreamer"].__name__, algorithms["sac"].__name__
        ('Dreamer', 'SAC')
    """
    for name, algorithm in ALGORITHMS.items():
        ALGOS[name] = algorithm
        HYPERPARAMS_SAMPLER.setdefault(name, _SAMPLERS.get(name, sample_world_model_params))
        HYPERPARAMS_CONVERTER.setdefault(name, as_sampled)
    return ALGOS


def is_ours(algo: str) -> bool:
    """Whether an algorithm learns a world model, and is built from an environment's id."""
    return algo in ALGORITHMS


def sample_world_model_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """What `tune` chooses for agents that learn a world and to act in its dreams."""
    return {
        "learning_rate": _rate(trial, "learning_rate"),
        "train_ratio": trial.suggest_float("train_ratio", 16.0, 256.0, log=True),
        **_sequences(trial),
    }


def sample_tdmpc_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """What `tune` chooses for `TDMPC` and `TDMPC2`, whose sequences are as long as their plans."""
    return {
        "learning_rate": _rate(trial, "learning_rate"),
        "train_freq": trial.suggest_categorical("train_freq", [1, 2, 4]),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
    }


def sample_planet_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """What `tune` chooses for `PlaNet`, which learns after every episode."""
    return {
        "learning_rate": _rate(trial, "learning_rate"),
        "updates_per_episode": trial.suggest_categorical("updates_per_episode", [50, 100, 200]),
        **_sequences(trial),
    }


def sample_stages_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """What `tune` chooses for `WorldModels`: rates of V and M, and how warm the dreams are that C learns in."""
    return {
        "learning_rate": _rate(trial, "learning_rate"),
        "memory_learning_rate": _rate(trial, "memory_learning_rate"),
        "temperature": trial.suggest_float("temperature", 0.5, 2.0),
    }


def _rate(trial: optuna.Trial, name: str) -> float:
    """One of Adam's rates."""
    return trial.suggest_float(name, 1e-4, 3e-3, log=True)


def _sequences(trial: optuna.Trial) -> dict[str, Any]:
    """How much each update of a recurrent world learns from."""
    return {
        "batch_size": trial.suggest_categorical("batch_size", [8, 16, 32]),
        "batch_length": trial.suggest_categorical("batch_length", [16, 32, 64]),
    }


_SAMPLERS = {
    "planet": sample_planet_params,
    "tdmpc": sample_tdmpc_params,
    "tdmpc2": sample_tdmpc_params,
    "world_models": sample_stages_params,
}


def as_sampled(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """A trial's parameters as hyperparameters: they are the same."""
    return dict(sampled_params)


def import_environments(env_id: str, packages: Iterable[str] = ()) -> None:
    """Import what registers an environment, before RL Zoo looks for it.

    Args:
        env_id: its prefix tells which package is needed.
        packages: further modules to import.

    Raises:
        ValueError: if the id is unknown afterwards; the message names the closest.
    """
    choose_backend()
    known = [module for prefix, module in PLUGINS.items() if env_id.startswith(prefix)]
    for module in [*known, *packages]:
        importlib.import_module(module)
    if env_id not in gym.registry:
        close = difflib.get_close_matches(env_id, gym.registry, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no environment {env_id!r}.{hint} Name the package with --gym-packages.")
