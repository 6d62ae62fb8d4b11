"""The arguments of agents: checked when an agent is made, and as JSON in its checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from wmgym.checkpoint import CheckpointError
from wmgym.choices import check_choice
from wmgym.dream import DreamVectorEnv
from wmgym.facts import is_json
from wmgym.spaces import SpaceError, action_size, as_dict_space, is_image
from wmgym.worlds.store import WORLDS, config_from_dict

log = logging.getLogger("wmgym")

POLICY_NAMES = ("WorldModelPolicy", "MlpPolicy", "CnnPolicy", "MultiInputPolicy")

_NOT_ARGUMENTS = {"self", "env", "policy", "policy_kwargs", "device", "options", "_init_setup_model"}


# -- checks ---------------------------------------------------------------------------------------------------


def check_env_and_policy(agent: str, env: Any, policy: Any) -> None:
    """Refuse what is no environment, and Stable-Baselines3's order of arguments.

    Raises:
        ValueError, TypeError: naming what was given and what is wanted.
    """
    example = f"{agent}('dm_control/walker-walk-v0')"
    if (isinstance(env, str) and env in POLICY_NAMES) or isinstance(env, type):
        raise ValueError(f"The first argument is the environment, not the policy: {example}. Got {env!r}.")
    if isinstance(env, gym.vector.VectorEnv) and not isinstance(env, DreamVectorEnv):
        raise TypeError(
            f"env is a {type(env).__name__}, a vector environment of Gymnasium. Give a VecEnv of stable-baselines3 "
            "(wmgym.real.make_vec; for dreams wmgym.DreamVecEnv), or an id and n_envs."
        )
    if env is not None and not isinstance(env, str | gym.Env | VecEnv | DreamVectorEnv):
        raise TypeError(f"env must be an id, a gymnasium.Env or a VecEnv, not {type(env).__name__}: {example}.")
    if isinstance(policy, str) and policy not in POLICY_NAMES:
        raise ValueError(f"policy={policy!r} is unknown: leave it out, or say {POLICY_NAMES[0]!r}.")


def check_spaces(observation_space: Any, action_space: Any) -> None:
    """Refuse spaces that a world cannot use, before Stable-Baselines3 meets them.

    Raises:
        SpaceError: naming the space and the way out.
    """
    for key, box in as_dict_space(observation_space).items():
        if is_image(box) and min(box.shape) == box.shape[0] and is_image_space_channels_first(box):
            raise SpaceError(
                f"Observation {key!r} is a picture with the channels first, {box.shape}. Pictures must be (H, W, C): "
                "leave VecTransposeImage out, or transpose with gymnasium.wrappers.TransformObservation."
            )
    action_size(action_space)


def check_settings_of_ids(agent: Any, env: Any, action_repeat: int | None) -> None:
    """Refuse settings that only reach environments made from an id, where `env` is one already.

    Raises:
        ValueError: naming the argument and the way out.
    """
    n_envs = env.num_envs if isinstance(env, VecEnv) else 1
    given = {
        "observation": agent.observation != "state",
        "action_repeat": action_repeat is not None,
        "env_kwargs": bool(agent.env_kwargs),
        "n_envs": agent.n_envs not in (1, n_envs),
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise ValueError(
            f"{name} is for environments that are named by an id, and {type(env).__name__} is one already: leave "
            f"{name} out, or give the id."
        )


def check_numbers(agent: Any) -> None:
    """Refuse settings of a `WorldModelAgent` with which it could not learn; whole numbers become `int`.

    Raises:
        ValueError: naming the argument, its value, and what it may be.
    """
    least = {"buffer_size": 1, "learning_starts": 0, "batch_size": 1, "batch_length": 2, "pretrain": 0}
    least |= {"gradient_steps": 1, "n_envs": 1, "stats_window_size": 1, "max_skipped_updates": 1, "hold": 1}
    if agent.train_freq is not None:
        least["train_freq"] = 1
    check_whole(agent, least)
    if agent.gradient_steps != 1 and agent.train_freq is None:
        raise ValueError(
            f"gradient_steps={agent.gradient_steps} is of every train_freq decisions: give train_freq too, or "
            "train_ratio alone (replayed steps per decision)."
        )
    if not (_is_number(agent.train_ratio) and 0 < agent.train_ratio < math.inf):
        raise ValueError(
            f"train_ratio must be a number above 0 (replayed steps per decision), not {agent.train_ratio!r}."
        )
    if not (_is_number(agent.slips) and 0 <= agent.slips <= 1):
        raise ValueError(f"slips must be a share of the decisions, 0 to 1, not {agent.slips!r}.")
    _check_rate(agent.learning_rate)


def check_room(agent: Any) -> None:
    """Refuse a replay too small for what is drawn from it: the agent would never begin to learn.

    Raises:
        ValueError: naming both arguments.
    """
    rows = agent.buffer_size // agent.n_envs
    if rows < agent.batch_length:
        raise ValueError(
            f"buffer_size={agent.buffer_size} keeps {rows} steps of each of {agent.n_envs} environments, but sequences "
            f"have batch_length={agent.batch_length} steps: raise buffer_size."
        )
    if rows * agent.n_envs < agent.learning_starts:
        raise ValueError(
            f"buffer_size={agent.buffer_size} never holds the learning_starts={agent.learning_starts} steps that "
            "learning waits for: raise the first or lower the second."
        )


def check_whole(agent: Any, least: dict[str, int]) -> None:
    """Refuse attributes of `agent` that are no whole numbers of at least so much; those that are become `int`.

    Raises:
        ValueError: naming the argument, its value, and what it may be.
    """
    for name, minimum in least.items():
        value = getattr(agent, name)
        if not _is_number(value) or not math.isfinite(value) or value < minimum or value % 1:
            raise ValueError(f"{name} must be a whole number, {minimum} or more, not {value!r}.")
        setattr(agent, name, int(value))


def check_range(agent: Any, names: Iterable[str], low: float = 0.0, high: float = math.inf) -> None:
    """Refuse attributes of `agent` that are no numbers from `low` to `high`, or not finite.

    Raises:
        ValueError: naming the argument, its value, and what it may be.
    """
    for name in names:
        value = getattr(agent, name)
        if not (_is_number(value) and low <= value <= high and math.isfinite(value)):
            most = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"{name} must be a number, at least {low:g}{most}, not {value!r}.")


def check_choices(agent: Any, choices: dict[str, Iterable[str]]) -> None:
    """Refuse attributes of `agent` that are none of their choices.

    Raises:
        ValueError: naming the argument, its value and the choices.
    """
    for name, known in choices.items():
        check_choice(name, getattr(agent, name), known)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_rate(rate: Any) -> None:
    if callable(rate):
        if not rate(1.0) > 0:
            raise ValueError(f"The learning_rate schedule must begin above 0, but gives {rate(1.0)} at progress 1.")
    elif not (_is_number(rate) and 0 <= rate < math.inf):
        raise ValueError(f"learning_rate must be a number, 0 or more, or a schedule (a function), not {rate!r}.")


# -- in files -------------------------------------------------------------------------------------------------


def passed_on(base: type, given: dict[str, Any]) -> dict[str, Any]:
    """Of a constructor's arguments, `locals()` in it, those that `base`'s constructor has too."""
    return {name: given[name] for name in argument_names(base) if name in given}


def check_constant(kind: str, learning_rate: Any, instead: str) -> None:
    """Refuse a learning rate that changes, for an agent of `kind` that has no use for one.

    Raises:
        ValueError: naming the argument to use `instead`.
    """
    if callable(learning_rate) and learning_rate(1.0) != learning_rate(0.5):
        raise ValueError(f"{kind} learns in stages, each with rates of its own: a number, and {instead} lets it fall.")


def refuse_ignored(kind: str, base: type, options: dict[str, Any], names: Iterable[str]) -> None:
    """Refuse arguments of `base` among `options` that an agent of `kind` has no use for.

    Raises:
        TypeError: naming the argument. A checkpoint holds them too, at their defaults, which are let through.
    """
    defaults = inspect.signature(base.__init__).parameters  # type: ignore[misc]
    for name in names:
        if name in options and options[name] != defaults[name].default:
            raise TypeError(f"{kind} has no use for {name}={options[name]!r}: leave it out (it is {base.__name__}'s).")


def argument_names(cls: type) -> list[str]:
    """Every argument of the constructors, which agents keep as attributes of the same name."""
    names = [name for base in cls.__mro__ if "__init__" in base.__dict__ for name in _signature(base)]
    return sorted(set(names) - _NOT_ARGUMENTS)


def _signature(base: type) -> list[str]:
    return list(inspect.signature(base.__init__).parameters) if base.__module__.startswith("agents.") else []  # type: ignore[misc]


def arguments_to_json(agent: Any) -> dict[str, Any]:
    """The arguments that an agent was made with, as JSON data."""
    return {name: _to_json(name, getattr(agent, name)) for name in argument_names(type(agent))}


def arguments_from_json(arguments: dict[str, Any], kind: str, source: str) -> dict[str, Any]:
    """The inverse of `arguments_to_json`, for an agent whose world is of the kind `kind`."""
    arguments = dict(arguments)
    if isinstance(arguments.get("learning_rate"), dict):
        arguments["learning_rate"] = LinearSchedule(**arguments["learning_rate"])
    if arguments.get("world_config") is not None:
        if kind not in WORLDS:
            raise CheckpointError(f"{source} holds a world of the unknown kind {kind!r}.")
        config_class = WORLDS[kind].load()[1]
        where = f"{source}: world_config"
        arguments["world_config"] = config_from_dict(config_class, arguments["world_config"], where)
    return arguments


def _to_json(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return _schedule_to_json(name, value)
    return value if is_json(value) else None


def _schedule_to_json(name: str, value: Any) -> Any:
    if isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, LinearSchedule):
        return {"start": value.start, "end": value.end, "end_fraction": value.end_fraction}
    if not isinstance(value, ConstantSchedule):
        log.warning("%s is a function, which no checkpoint holds: its first value is. Give it again to load.", name)
    return float(value(1.0))
