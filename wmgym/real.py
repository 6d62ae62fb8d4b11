"""Real environments in one shape: any Gymnasium id, dm_control through shimmy, MuJoCo, Box2D, Atari.

env = make_env("dm_control/walker-walk-v0")                        # Box(24,) float32, actions in [-1, 1]
env = make_env("dm_control/walker-walk-v0", observation="pixels")  # Box(64, 64, 3) uint8
venv = make_vec("dm_control/walker-walk-v0", n_envs=4, seed=0)     # for Stable-Baselines3
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from wmgym.facts import LOST, make_arguments
from wmgym.games import CAR_RACING, DOOM, DoomScreen, HeldRace, as_in_paper, doom_options, is_doom
from wmgym.guarded import Guarded
from wmgym.rendering import (
    MujocoPictures,
    ScreenPictures,
    choose_backend,
    is_dm_control,
    is_gymnasium_mujoco,
    require_backend,
)
from wmgym.replayable import Replayable
from wmgym.spaces import SpaceError, action_size, is_image
from wmgym.supervised import SupervisedVecEnv
from wmgym.wrappers import ActionRepeat, FlatState, PixelObservation, ResizedPicture, UnitAction

ObservationKind = Literal["state", "pixels", "both"]

DM_CONTROL = "dm_control/"
PLUGINS = {DM_CONTROL: "shimmy", "ALE/": "ale_py", DOOM: "vizdoom.gymnasium_wrapper"}
"""The modules that register environments, by how their ids begin: Gymnasium 1.x finds no plugins by itself."""
_MUJOCO_MAJOR = "3"
_OF_VECTORS = ("subprocess", "guarded", "timeout")
"""Arguments of `make_vec` that `make_env` does not have."""


def make_env(
    id: str,
    observation: ObservationKind = "state",
    size: int = 64,
    action_repeat: int | None = None,
    camera: int | str | None = None,
    fast_render: bool = True,
    seed: int | None = None,
    render_mode: str | None = "rgb_array",
    render_size: int = 240,
    **kwargs: Any,
) -> gym.Env:
    """A real environment as worlds and agents see it.

    Args:
        id: any registered Gymnasium id, `"dm_control/walker-walk-v0"` (shimmy), `"ALE/Pong-v5"` (if ale_py is
            installed), ViZDoom's (if vizdoom is), `"module:Name-v0"`. Take Cover and CarRacing are cropped and steered
            as in World Models (`wmgym.games`).
        observation: `"state"` gives a flat float32 vector (the entries of a Dict in the order of its space),
            `"pixels"` a uint8 picture (size, size, 3), `"both"` a Dict of `image` and `state`.
        size: height and width of observed pictures.
        action_repeat: how often each action is done; None is 2 for dm_control and 1 for the rest.
        camera: number or name of MuJoCo's camera; None is the usual one (see `MujocoPictures`).
        fast_render: MuJoCo without shadows and multisampling; False gives the pixels of the literature.
        seed: seeds the first reset and the action space.
        render_mode: as in `gym.make`; films come from `render()`.
        render_size: height and width of films of MuJoCo (others have their own size).
        kwargs: go to `gym.make`.

    Returns:
        The environment. Box actions are float32 in [-1, 1], Discrete actions stay. Rewards are summed over the
        repeats, which stop at an end; a time limit is a truncation.

    Raises:
        ValueError: for an unknown id or a wrong argument; `SpaceError` (a ValueError) for spaces that worlds cannot
            use.
        RenderingError: if pixels are asked of MuJoCo where rendering is disabled.

    Example:
        >>> env = make_env("dm_control/walker-walk-v0", seed=0)
        >>> env.observation_space.shape, env.action_space.shape
        ((24,), (6,))
    """
    _check_arguments(id, observation, size, action_repeat, render_size)
    choose_backend()
    if is_doom(id):
        kwargs = {**doom_options(id, action_repeat or 1), **kwargs}
    env = _make(id, render_mode, kwargs)
    repeat = action_repeat or (2 if is_dm_control(env) else 1)
    if repeat > 1 and not is_doom(id):  # which skips frames by itself
        env = HeldRace(env, repeat) if id == CAR_RACING else ActionRepeat(env, repeat)
    env = as_in_paper(env, id)
    env = _add_pictures(_unit_actions(env), camera, render_size, fast_render)
    env = _observe(env, observation, size)
    if seed is not None:
        env.reset(seed=seed)
        env.action_space.seed(seed)
    return env


def make_vec(
    id: str,
    n_envs: int = 1,
    subprocess: bool = False,
    seed: int | None = None,
    guarded: bool | None = None,
    timeout: float = 120.0,
    **kwargs: Any,
) -> VecEnv:
    """`n_envs` environments for Stable-Baselines3, each with a Monitor and restorable (`Replayable`).

    Args:
        id: as in `make_env`.
        n_envs: how many.
        subprocess: whether each has a process of its own, which is replaced when it dies or hangs
            (`SupervisedVecEnv`). They come from a fork server (or are spawned), never from a fork: OpenGL hangs in the
            child of a process that has rendered. A script needs `if __name__ == "__main__":` around this.
        seed: environment `i` begins with `seed + i`.
        guarded: whether an environment that raises or brings NaN ends its episode instead of the run (`Guarded`);
            None: those with a process of their own are.
        timeout: seconds after which a process that gives no answer is replaced.
        kwargs: go to `make_env`.

    Example:
        >>> venv = make_vec("CartPole-v1", n_envs=2, seed=0)
        >>> venv.reset().shape
        (2, 4)
        >>> states = venv.env_method("get_state")
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be 1 or more, not {n_envs}.")
    guarded = subprocess if guarded is None else guarded
    thunks: list[Callable[[], gym.Env]] = [
        partial(_make_one, id, None if seed is None else seed + i, guarded, kwargs) for i in range(n_envs)
    ]
    vec_env: VecEnv = SupervisedVecEnv(thunks, timeout) if subprocess else DummyVecEnv(thunks)
    if seed is not None:
        vec_env.seed(seed)
    return vec_env


def remake_env(facts: Mapping[str, Any], id: str | None = None) -> gym.Env:
    """One real environment, made as that of which the facts tell.

    Args:
        facts: of a checkpoint or a data set.
        id: another environment's, made likewise.

    Raises:
        ValueError: if the facts do not tell how, or `make_env` refuses them.

    Example:
        >>> remake_env({"id": "CartPole-v1", "subprocess": True, "episode_limit": 500}).observation_space.shape
        (4,)
    """
    arguments = of_one(make_arguments(facts))
    name = id or arguments.get("id")
    if name is None:
        raise ValueError("The checkpoint does not tell how its real environment was made: give it, env=...")
    if lost := facts.get(LOST):
        raise ValueError(
            f"The checkpoint could not keep the environment's {', '.join(lost)}, and does not tell how its real "
            "environment was made: give it, env=..."
        )
    return make_env(**{**arguments, "id": name})


def of_one(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `make_vec`'s arguments that `make_env` has too.

    Example:
        >>> of_one({"size": 64, "subprocess": True})
        {'size': 64}
    """
    return {name: value for name, value in arguments.items() if name not in _OF_VECTORS}


def repeat_of(env: VecEnv) -> int:
    """Simulator steps per decision of environments that `make_env` made; 1 for others."""
    for wrapper, name in ((ActionRepeat, "repeat"), (DoomScreen, "frame_skip")):
        if all(env.env_is_wrapped(wrapper, 0)):
            return int(env.get_attr(name, 0)[0])
    return 1


def _make_one(id: str, action_seed: int | None, guarded: bool, kwargs: dict[str, Any]) -> gym.Env:
    def make() -> gym.Env:
        return Monitor(make_env(id, **kwargs))

    env = Replayable(Guarded(make) if guarded else make())
    env.action_space.seed(action_seed)
    return env


def _check_arguments(id: str, observation: str, size: int, action_repeat: int | None, render_size: int) -> None:
    if not isinstance(id, str):
        raise ValueError(f"The first argument is the id of an environment, a string, not {type(id).__name__}.")
    if observation not in get_args(ObservationKind):
        raise ValueError(f"observation={observation!r} is unknown: use one of {get_args(ObservationKind)}.")
    for name, value in (("size", size), ("render_size", render_size)):
        if not isinstance(value, int) or not _SMALLEST <= value <= _LARGEST:
            raise ValueError(f"{name} must be a whole number of pixels from {_SMALLEST} to {_LARGEST}, not {value!r}.")
    if action_repeat is not None and (not isinstance(action_repeat, int) or action_repeat < 1):
        raise ValueError(f"action_repeat must be a whole number, 1 or more, not {action_repeat!r}.")


_SMALLEST, _LARGEST = 8, 640


def _make(id: str, render_mode: str | None, kwargs: dict[str, Any]) -> gym.Env:
    for prefix, module in PLUGINS.items():
        if id.startswith(prefix):
            _import_plugin(id, module)
    if id.startswith(DM_CONTROL):
        _check_mujoco()
        kwargs = {"disable_env_checker": True, **kwargs}  # it warns of shimmy's float64 spaces, which we convert
    try:
        return gym.make(id, render_mode=render_mode, **kwargs)
    except gym.error.UnregisteredEnv as error:
        raise ValueError(_unknown(id)) from error
    except (TypeError, ValueError) as error:
        if render_mode is None or "render_mode" not in str(error):
            raise
        return gym.make(id, **kwargs)  # an environment that cannot render


def _import_plugin(id: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"The environment {id!r} needs {error.name!r}: pip install {module.split('.')[0]}.") from error


def _check_mujoco() -> None:
    version = importlib.metadata.version("mujoco")
    if version.split(".")[0] != _MUJOCO_MAJOR:
        raise RuntimeError(
            f"mujoco {version} is installed, and dm_control works with mujoco {_MUJOCO_MAJOR} only: "
            f'pip install "mujoco>=3.17,<4".'
        )


def _unknown(id: str) -> str:
    close = difflib.get_close_matches(id, gym.registry, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "gym.pprint_registry() lists what there is."
    return f"There is no environment {id!r}. {hint} Your own is found after gym.register, or as 'module:Name-v0'."


def _unit_actions(env: gym.Env) -> gym.Env:
    action_size(env.action_space)  # raises SpaceError with the way out
    return UnitAction(env) if isinstance(env.action_space, spaces.Box) else env


def _add_pictures(env: gym.Env, camera: int | str | None, render_size: int, fast: bool) -> gym.Env:
    if is_dm_control(env) or is_gymnasium_mujoco(env):
        return MujocoPictures(env, camera, render_size, fast)
    if camera is not None:
        raise ValueError(f"camera={camera!r}: only MuJoCo's environments have cameras, leave it None.")
    return ScreenPictures(env)


def _observe(env: gym.Env, observation: ObservationKind, size: int) -> gym.Env:
    if is_image(env.observation_space):
        if observation != "pixels":
            raise SpaceError(f"{env.spec and env.spec.id} has no state, it shows pictures: use observation='pixels'.")
        return ResizedPicture(env, size)
    if observation != "state":
        _check_can_render(env)
    if observation == "pixels":
        return PixelObservation(env, size)
    env = FlatState(env)
    return PixelObservation(env, size, keep_state=True) if observation == "both" else env


def _check_can_render(env: gym.Env) -> None:
    if isinstance(env, MujocoPictures):
        require_backend()
    elif env.render_mode != "rgb_array":
        raise ValueError(f"Pixels need render_mode='rgb_array', and this environment has {env.render_mode!r}.")
