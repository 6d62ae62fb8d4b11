"""A real environment seen through a world's eyes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs

from wmgym.dream.convert import ActionConverter, latent_space, to_array, to_tensors
from wmgym.dream.model import ModelLike, resolve_model
from wmgym.random import ModeNoise, StreamNoise
from wmgym.spaces import as_dict
from wmgym.worlds.base import Noise, State, World


class LatentObservation(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Gives a world's features for a real environment's observations, by filtering.

    A policy trained in dreams with `observation="latent"` acts through this in the real environment.

    Args:
        env: an environment with the spaces that the world was trained on.
        model: a checkpoint's path, a live world, or `as_model(world)`.
        deterministic: take the mode of each posterior instead of a draw (draws follow the seed of `reset`).
        device: where a checkpoint is loaded to, None: the CPU.

    Raises:
        ValueError: if the spaces differ.

    Example:
        >>> from wmgym.worlds.rssm import RSSM
        >>> env = gym.make("CartPole-v1")
        >>> env = LatentObservation(env, RSSM(env.observation_space, env.action_space))
        >>> features, info = env.reset(seed=0)
        >>> features.shape == (env.world.feature_size,)
        True
    """

    def __init__(
        self,
        env: gym.Env,
        model: ModelLike,
        deterministic: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        # A path is recorded as it is, so that the spec stays JSON; a live world as the handle that is never copied.
        live = resolve_model(model, device) if isinstance(model, World) else model
        RecordConstructorArgs.__init__(self, model=live, deterministic=deterministic, device=device)
        gym.Wrapper.__init__(self, env)
        self.world = resolve_model(live, device).world
        _check_spaces(env, self.world)
        self.observation_space = latent_space(self.world)
        self.deterministic = deterministic
        self._read_actions = ActionConverter(self.world.action_space, self.world.device)
        self._noise: Noise | None = ModeNoise(self.world.device) if deterministic else None
        self._state: State = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode and filter its first observation."""
        observation, info = self.env.reset(seed=seed, options=options)
        if not self.deterministic and (seed is not None or self._noise is None):
            chosen = seed if seed is not None else int(np.random.SeedSequence().generate_state(1, np.uint32)[0])
            self._noise = StreamNoise(torch.tensor([chosen]), self.world.device)
        action = torch.zeros(1, self._read_actions.size, device=self.world.device)
        return self._filter(self.world.initial(1), action, observation, is_first=True), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and filter what it shows."""
        if self._state is None:
            raise ResetNeeded("Call reset before step.")
        observation, reward, terminated, truncated, info = self.env.step(action)
        features = self._filter(self._state, self._read_actions(np.asarray(action)[None]), observation, is_first=False)
        return features, reward, terminated, truncated, info

    def _filter(self, state: State, action: torch.Tensor, observation: Any, is_first: bool) -> np.ndarray:
        device = self.world.device
        batch = {key: np.asarray(value)[None] for key, value in as_dict(observation).items()}
        seen = to_tensors(batch, self.world.observation_space, 1, device)
        assert self._noise is not None  # reset has set it
        with torch.no_grad():
            first = torch.tensor([is_first], device=device)
            self._state = self.world.observe(state, action, seen, first, self._noise)
            return to_array(self.world.features(self._state).float())[0]


def _check_spaces(env: gym.Env, world: World) -> None:
    for name in ("observation_space", "action_space"):
        real, known = getattr(env, name), getattr(world, name)
        if real != known:
            raise ValueError(f"The environment's {name} is {real}, but the world was trained on {known}.")
