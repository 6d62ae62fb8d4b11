"""Many dreams as a vector environment of stable-baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from wmgym.dream.model import ModelLike
from wmgym.dream.vector import DreamVectorEnv
from wmgym.worlds.base import concat_states

CHANGEABLE = ("temperature", "termination", "horizon", "caution", "render_mode")
"""Attributes of a `DreamVectorEnv` that are read at every step."""


class DreamVecEnv(VecEnv):
    """A world model that any stable-baselines3 algorithm trains in, all dreams in one forward pass a step.

    Args:
        num_envs: how many dreams.
        model: a checkpoint's path, a live world, or `as_model(world, starts)`.
        **kwargs: as for `DreamVectorEnv` (its `autoreset_mode` and `output` are what stable-baselines3 expects).

    Wrap it in `VecMonitor` for episode statistics. The dreams are the attribute `dreams`; the `disagreement` of a world
    with an ensemble is in the infos.

    Example:
        >>> import torch
        >>> from gymnasium import spaces
        >>> from stable_baselines3 import PPO
        >>> from wmgym.dream import StartStates, as_model
        >>> from wmgym.worlds.rssm import RSSM
        >>> world = RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> starts = StartStates(world.initial(5), torch.ones(5, dtype=torch.bool))
        >>> dreams = DreamVecEnv(num_envs=8, model=as_model(world, starts), horizon=15)
        >>> PPO("MlpPolicy", dreams, n_steps=16, batch_size=64, n_epochs=1, device="cpu").learn(128).num_timesteps
        128
    """

    def __init__(self, num_envs: int = 1, model: ModelLike | None = None, **kwargs: Any) -> None:
        as_expected: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "output": "numpy"}
        self.dreams = DreamVectorEnv(num_envs, model, **as_expected, **kwargs)
        super().__init__(num_envs, self.dreams.single_observation_space, self.dreams.single_action_space)
        self.metadata["render_fps"] = self.dreams.metadata["render_fps"]
        self._actions: np.ndarray | None = None

    @classmethod
    def like(cls, dreams: DreamVectorEnv) -> DreamVecEnv:
        """Dreams as `dreams` has them, from their beginning; `dreams` itself is left as it is."""
        fixed = ("autoreset_mode", "output")
        settings = {name: value for name, value in dreams.settings.items() if name not in fixed}
        return cls(dreams.num_envs, dreams.model, **settings)

    def reset(self) -> VecEnvObs:
        """Begin new episodes with the seeds and options that `seed` and `set_options` have set, once."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observation, _ = self.dreams.reset(seed=seeds, options=self._merged_options())
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One dreamt step; environments that ended already show the first observation of their next episode.

        Returns:
            Observations, rewards, dones, and infos with `TimeLimit.truncated` and, at an end, `terminal_observation`.
        """
        observation, reward, terminated, truncated, info = self.dreams.step(self._actions)
        cut = truncated & ~terminated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": was_cut} for was_cut in cut.tolist()]
        dones = terminated | truncated
        for told in (info, info.get("final_info", {})):
            for i in np.flatnonzero(told.get("_disagreement", False)):
                infos[i]["disagreement"] = float(told["disagreement"][i])
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = info["final_obs"][i]
            self.reset_infos[i] = {}
        return observation, reward, dones, infos

    def close(self) -> None:
        """Nothing is held open."""
        self.dreams.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """What each dream looks like now; None without `render_mode="rgb_array"`."""
        frames = self.dreams.render()
        return [None] * self.num_envs if frames is None else list(frames)

    # -- the dreams share their settings, so attributes are theirs together -----------------------------------

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the `DreamVectorEnv`, once for each of `indices`; spaces are those of one environment."""
        name = f"single_{attr_name}" if attr_name in ("observation_space", "action_space") else attr_name
        value = getattr(self.dreams, name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the `DreamVectorEnv`, such as `temperature` or `horizon`, for all dreams.

        Raises:
            ValueError: if `indices` names only some, for an attribute that is read only when dreams are made, or for a
                value that dreams cannot be made with.
        """
        if attr_name not in CHANGEABLE:
            raise ValueError(
                f"{attr_name!r} cannot be changed ({', '.join(CHANGEABLE)} can): make other dreams, "
                "DreamVecEnv(...), with it."
            )
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"All dreams share {attr_name!r}: it cannot be set for some of them only.")
        given = {attr_name: value}
        if attr_name == "caution":
            given = {f"disagreement_{name}": getattr(value, name) for name in ("penalty", "halt")}
            given["halt_reward"] = value.halt_reward
        # Refused as it would be at first.
        DreamVectorEnv(1, self.dreams.model, **{**self.dreams.settings, **given, "compiled": False})
        setattr(self.dreams, attr_name, value)
        if attr_name == "render_mode":
            self.render_mode = value  # which Stable-Baselines3 reads

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the `DreamVectorEnv` once, for all; what it gives goes to each of `indices`.

        The pictures of `render`, one for each environment, are dealt out.
        """
        result = getattr(self.dreams, method_name)(*method_args, **method_kwargs)
        dealt = method_name == "render" and result is not None
        return [result[i] if dealt else result for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False: there are no single environments that a wrapper could be around."""
        return [False for _ in self._get_indices(indices)]

    def _merged_options(self) -> dict[str, Any] | None:
        """The options of the environments, one dictionary each, as one of batches."""
        kinds = {tuple(options) for options in self._options}
        if kinds == {()}:
            return None
        if len(kinds) != 1:
            raise ValueError("Give all dreams the same kind of reset option, or use dreams.reset with a reset_mask.")
        return {key: self._merge(key, [options[key] for options in self._options]) for key in self._options[0]}

    def _merge(self, key: str, values: list[Any]) -> Any:
        if key == "state":
            return concat_states(values)
        # The beginnings of episodes are batches in their second dimension, after time.
        return _stacked(values, axis=1 if key == "prefix" else 0)


def _stacked(values: list[Any], axis: int) -> Any:
    if isinstance(values[0], dict):
        return {name: _stacked([value[name] for value in values], axis) for name in values[0]}
    return np.stack(values, axis)
