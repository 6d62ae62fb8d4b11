"""What an agent that learned in a dream is worth: in the real environment, and in the dream beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation, TransformObservation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize, VecTransposeImage

from wmgym.dream import DreamEnv, DreamModel, DreamVecEnv, LatentObservation
from wmgym.dream.convert import latent_space
from wmgym.dream.model import ModelLike, resolve_model
from wmgym.real import remake_env
from wmgym.spaces import SpaceError, is_image

SEED = 10_000
"""Of evaluations, far from the seeds that are trained with."""


def evaluate_real(
    agent: BaseAlgorithm,
    model: ModelLike,
    episodes: int = 10,
    *,
    env: gym.Env | str | None = None,
    deterministic: bool = True,
    seed: int = SEED,
) -> np.ndarray:
    """Returns in the real environment of an agent that was trained in a dream of it.

    The agent sees what it saw in the dream: the world's features, filtered from the real observations, if it was
    trained with `observation="latent"`; some keys, if with `keys`; normalised as by its own `VecNormalize`.

    Args:
        agent: any Stable-Baselines3 algorithm, recurrent ones too, or an agent of this project.
        model: the world that it was trained in, as a dream takes it.
        episodes: how many.
        env: the real environment, or its id; None: the one that the checkpoint names.
        deterministic: whether the agent acts without its own chance.
        seed: of the first episode.

    Returns:
        `(episodes,)` float64.

    Raises:
        ValueError: if it is not known which environment is the real one.
        SpaceError: if the agent sees something that cannot be made of its observations.

    Example:
        >>> import wmgym, tempfile
        >>> from stable_baselines3 import PPO
        >>> model = wmgym.fit_world(wmgym.record("CartPole-v1", None, 40, tempfile.mkdtemp()), updates=2, deter=8)
        >>> ppo = PPO("MlpPolicy", DreamVecEnv(4, model, observation="latent"), device="cpu")
        >>> evaluate_real(ppo, model, episodes=2).shape
        (2,)
    """
    handle = resolve_model(model)
    make = partial(_real_environment, handle, env, agent.observation_space)
    given = isinstance(env, gym.Env)
    real = DummyVecEnv([make] * (1 if given else min(episodes, 10)))
    try:
        return _returns(agent, real, episodes, deterministic, seed)
    finally:
        if not given:
            real.close()


def evaluate_elsewhere(
    agent: BaseAlgorithm,
    model: ModelLike,
    other: ModelLike,
    episodes: int = 10,
    *,
    deterministic: bool = True,
    seed: int = SEED,
) -> np.ndarray:
    """Returns in another world's dream of an agent that was trained in the dream of `model`.

    The other world stands where the real environment stands in `evaluate_real`: the agent sees what it dreams as it
    would see reality. Two worlds of one environment err in different places, so an agent that lives on the errors of
    its own fails here, and no real step is needed to see it.

    Args:
        agent: as for `evaluate_real`.
        model: the world that it was trained in.
        other: another world of the same environment.
        episodes: how many.
        deterministic: whether the agent acts without its own chance.
        seed: of the first episode.

    Returns:
        `(episodes,)` float64.

    Raises:
        SpaceError: if the agent sees something that cannot be made of the other world's observations.
    """
    handle, elsewhere = resolve_model(model), resolve_model(other)

    def make() -> gym.Env:
        return _real_environment(handle, DreamEnv(elsewhere), agent.observation_space)

    return _returns(agent, DummyVecEnv([make] * min(episodes, 10)), episodes, deterministic, seed)


def evaluate_dream(
    agent: BaseAlgorithm,
    model: ModelLike,
    episodes: int = 10,
    *,
    deterministic: bool = True,
    seed: int = SEED,
    **settings: Any,
) -> np.ndarray:
    """Returns in the dream, as the world predicts them: whole episodes from real beginnings, unless `settings` differ.

    Args:
        agent: as for `evaluate_real`.
        model: the world.
        episodes: how many, each a dream of its own.
        deterministic: whether the agent acts without its own chance.
        seed: of the first dream.
        settings: of `DreamVecEnv`.

    Returns:
        `(episodes,)` float64.
    """
    handle = resolve_model(model)
    kind = "latent" if _sees_features(agent.observation_space, handle) else "decoded"
    settings = {"observation": kind, "keys": _keys_seen(agent.observation_space, handle), **settings}
    return _returns(agent, VecMonitor(DreamVecEnv(episodes, handle, **settings)), episodes, deterministic, seed)


def _returns(agent: BaseAlgorithm, env: VecEnv, episodes: int, deterministic: bool, seed: int) -> np.ndarray:
    """Returns of so many episodes."""
    env.seed(seed)
    if (trained := agent.get_vec_normalize_env()) is not None:
        same = {name: getattr(trained, name) for name in ("norm_obs", "norm_obs_keys", "clip_obs")}
        env = VecNormalize(env, training=False, norm_reward=False, **same)
        env.obs_rms = trained.obs_rms
    returns, _ = evaluate_policy(agent, env, episodes, deterministic, return_episode_rewards=True, warn=False)
    return np.asarray(returns, np.float64)


# -- what the agent sees --------------------------------------------------------------------------------------


def _real_environment(model: DreamModel, env: gym.Env | str | None, seen: spaces.Space) -> gym.Env:
    """The real environment with a Monitor, as an agent of the observation space `seen` knows it."""
    if not isinstance(env, gym.Env):
        env = remake_env(model.env, env)
    if env.action_space != model.world.action_space:
        raise SpaceError(
            f"The environment's action space is {env.action_space}, but the world's is {model.world.action_space}: "
            "give the environment that the world is of, env=..."
        )
    env = Monitor(env)
    if _same(seen, env.observation_space):
        return env
    if _sees_features(seen, model):
        return LatentObservation(env, model)
    keys = _keys_seen(seen, model)
    if keys is None or not isinstance(env.observation_space, spaces.Dict):
        raise SpaceError(f"The agent sees {seen}, which cannot be made of {env.observation_space}: give env=...")
    if isinstance(seen, spaces.Dict):
        return FilterObservation(env, keys)
    return TransformObservation(env, lambda observation: observation[keys[0]], env.observation_space[keys[0]])


def _sees_features(seen: spaces.Space, model: DreamModel) -> bool:
    return seen == latent_space(model.world)


def _keys_seen(seen: spaces.Space, model: DreamModel) -> tuple[str, ...] | None:
    """Which keys of the world's observations make the space `seen`; None for all, or where none do."""
    whole = model.world.observation_space
    if _same(seen, whole) or not isinstance(whole, spaces.Dict):
        return None
    if isinstance(seen, spaces.Dict):
        return tuple(seen.spaces) if set(seen.spaces) < set(whole.spaces) else None
    return next(((key,) for key, box in whole.spaces.items() if _same(seen, box)), None)


def _same(seen: spaces.Space, whole: spaces.Space) -> bool:
    """Whether the spaces are the same; Stable-Baselines3 turns the pictures of its agents to channels first."""
    turned = VecTransposeImage.transpose_space(whole) if is_image(whole) else whole  # type: ignore[arg-type]
    return seen in (whole, turned)
