"""Real environments in one shape: any Gymnasium id, dm_control through shimmy, MuJoCo, Box2D, Atari.

    env = make_env("dm_control/walker-walk-v0")                        # Box(24,) float32, actions in [-1, 1]
    env = make_env("dm_control/walker-walk-v0", observation="pixels")  # Box(64, 64, 3) uint8
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium import spaces

from wmgym.rendering import choose_backend
from wmgym.spaces import SpaceError, action_size, is_image
from wmgym.wrappers import ActionRepeat, FlatState, UnitAction

ObservationKind = Literal["state", "pixels", "both"]

DM_CONTROL = "dm_control/"
_PLUGINS = {"dm_control": "shimmy", "ALE": "ale_py"}  # Gymnasium 1.x finds no plugins by itself


def make_env(
    id: str,
    observation: ObservationKind = "state",
    size: int = 64,
    action_repeat: int | None = None,
    camera: int | str | None = None,
    fast_render: bool = True,
    seed: int | None = None,
    render_mode: str | None = "rgb_array",
    **kwargs: Any,
) -> gym.Env:
    """A real environment as worlds and agents see it.

    Args:
        id: any registered Gymnasium id, `"dm_control/walker-walk-v0"` (shimmy), `"ALE/Pong-v5"` (if ale_py is
            installed), `"module:Name-v0"`.
        observation: `"state"` gives a flat float32 vector (the entries of a Dict in the order of its space).
        action_repeat: how often each action is done; None is 2 for dm_control and 1 for the rest.
        seed: seeds the first reset and the action space.
        render_mode: as in `gym.make`.
        kwargs: go to `gym.make`.

    Returns:
        The environment. Box actions are float32 in [-1, 1], Discrete actions stay. Rewards are summed over the
        repeats, which stop at an end; a time limit is a truncation.

    Raises:
        ValueError: for an unknown id or a wrong argument; `SpaceError` for spaces that worlds cannot use.

    Example:
        >>> env = make_env("dm_control/walker-walk-v0", seed=0)
        >>> env.observation_space.shape, env.action_space.shape
        ((24,), (6,))
    """
    _check_arguments(observation, size, action_repeat)
    choose_backend()
    env = _make(id, render_mode, kwargs)
    repeat = action_repeat or (2 if id.startswith(DM_CONTROL) else 1)
    if repeat > 1:
        env = ActionRepeat(env, repeat)
    env = _observe(_act(env), id)
    if seed is not None:
        env.reset(seed=seed)
        env.action_space.seed(seed)
    return env


def _check_arguments(observation: str, size: int, action_repeat: int | None) -> None:
    if observation not in get_args(ObservationKind):
        raise ValueError(f"observation={observation!r} is unknown: use one of {get_args(ObservationKind)}.")
    if action_repeat is not None and action_repeat < 1:
        raise ValueError(f"action_repeat must be 1 or more, not {action_repeat}.")


def _make(id: str, render_mode: str | None, kwargs: dict[str, Any]) -> gym.Env:
    namespace = id.split("/")[0]
    if namespace in _PLUGINS and "/" in id:
        _import_plugin(id, _PLUGINS[namespace])
    if id.startswith(DM_CONTROL):
        kwargs = {"disable_env_checker": True, **kwargs}
    try:
        return gym.make(id, render_mode=render_mode, **kwargs)
    except gym.error.UnregisteredEnv as error:
        raise ValueError(_unknown(id)) from error


def _import_plugin(id: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"The environment {id!r} needs the package {module!r}: pip install {module}.") from error


def _unknown(id: str) -> str:
    close = difflib.get_close_matches(id, gym.registry, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "gym.pprint_registry() lists what there is."
    return f"There is no environment {id!r}. {hint} Your own one is found after gym.register, or as 'module:Name-v0'."


def _act(env: gym.Env) -> gym.Env:
    action_size(env.action_space)
    return UnitAction(env) if isinstance(env.action_space, spaces.Box) else env


def _observe(env: gym.Env, id: str) -> gym.Env:
    if is_image(env.observation_space):
        raise SpaceError(f"{id} has no state, it shows pictures: use observation='pixels'.")
    return FlatState(env)
