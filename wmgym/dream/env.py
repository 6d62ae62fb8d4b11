"""One dream: a world model as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from wmgym.dream.convert import row_of
from wmgym.dream.ends import Termination
from wmgym.dream.model import ModelLike
from wmgym.dream.resets import RESET_MASK
from wmgym.dream.starts import StartPolicy
from wmgym.dream.vector import DreamObservation, DreamState, DreamVectorEnv, Output
from wmgym.worlds.base import World


class DreamEnv(gym.Env[Any, Any]):
    """A world model as an environment: the view of one `DreamVectorEnv` of one dream, where every argument is told.

    `gym.make("Dream-v0", model="walker.zip")` gives one. With a path as a string its `spec` round-trips through
    JSON; with a live world pass `as_model(world, starts)`, which `gym.make` does not copy. The dream is truncated
    at `horizon`; where `gym.make` got `max_episode_steps` too, the shorter of the two wins.

    `reset` takes the options `{"start": index}`, `{"observation": observation}` of the real environment,
    `{"prefix": {"observation": (T, ...), "action": (T, ...)}}`, the beginning of a real episode, or
    `{"state": world state of one row}`.

    Example:
        >>> from gymnasium import spaces
        >>> from wmgym.dream import StartStates, as_model
        >>> from wmgym.worlds.rssm import RSSM
        >>> world = RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> starts = StartStates(world.initial(5), torch.ones(5, dtype=torch.bool))
        >>> dream = DreamEnv(as_model(world, starts))
        >>> observation, info = dream.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = dream.step(1)
        >>> observation.shape, type(reward)
        ((3,), <class 'float'>)
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(
        self,
        model: ModelLike | None = None,
        *,
        observation: DreamObservation = "decoded",
        keys: Sequence[str] | None = None,
        start: StartPolicy | int = "episode",
        horizon: int | None = None,
        termination: Termination = "sample",
        temperature: float = 1.0,
        disagreement_penalty: float = 0.0,
        disagreement_halt: float | None = None,
        halt_reward: float = 0.0,
        seed: int | None = None,
        device: str | torch.device | None = None,
        compiled: bool | None = None,
        output: Output = "numpy",
        render_mode: str | None = None,
    ) -> None:
        self._dreams = DreamVectorEnv(
            1,
            model,
            observation=observation,
            keys=keys,
            start=start,
            horizon=horizon,
            termination=termination,
            temperature=temperature,
            disagreement_penalty=disagreement_penalty,
            disagreement_halt=disagreement_halt,
            halt_reward=halt_reward,
            seed=seed,
            device=device,
            compiled=compiled,
            output=output,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
        )
        self.render_mode = render_mode
        self.observation_space = self._dreams.single_observation_space
        self.action_space = self._dreams.single_action_space

    @property
    def world(self) -> World:
        """The world that is dreamt."""
        return self._dreams.world

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode; without a seed, the next of the stream.

        Raises:
            ValueError: for options that do not fit.
        """
        super().reset(seed=seed)
        observation, info = self._dreams.reset(seed=seed, options=self._batched(options))
        return row_of(observation, 0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One dreamt step.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, or after the end.
            ValueError: for an action of the wrong shape or dtype, or one that is not finite.
        """
        action = action[None] if isinstance(action, torch.Tensor) else np.asarray(action)[None]
        observation, reward, terminated, truncated, infos = self._dreams.step(action)
        info = {name: float(value[0]) for name, value in infos.items() if not name.startswith("_")}
        return row_of(observation, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """What the dream looks like now: a uint8 (H, W, 3) picture."""
        frames = self._dreams.render()
        return None if frames is None else frames[0]

    def get_state(self) -> DreamState:
        """A copy of everything that the future depends on; see `DreamVectorEnv.get_state`."""
        return self._dreams.get_state()

    def set_state(self, state: DreamState) -> Any:
        """Go on from where `get_state` was called; returns the observation of that moment."""
        return row_of(self._dreams.set_state(state), 0)

    def branch(self, n: int, shared_noise: bool = False) -> DreamVectorEnv:
        """`n` copies of the dream as a vector environment; see `DreamVectorEnv.branch`.

        A copy that ends begins another episode with its next step, as Gymnasium's vector environments do.
        """
        return self._dreams.branch(n, shared_noise, autoreset_mode=AutoresetMode.NEXT_STEP)

    def _batched(self, options: dict[str, Any] | None) -> dict[str, Any]:
        batched = dict(options or {})
        if RESET_MASK in batched:
            raise ValueError(f"The option {RESET_MASK!r} is for vector environments: one dream is reset as a whole.")
        if "observation" in batched:
            batched["observation"] = _with_batch(batched["observation"], axis=0)
        if isinstance(batched.get("prefix"), dict):
            batched["prefix"] = {name: _with_batch(value, axis=1) for name, value in batched["prefix"].items()}
        return batched


def _with_batch(value: Any, axis: int) -> Any:
    """An observation or an array with the dimension of a batch of one."""
    if isinstance(value, dict):
        return {key: _with_batch(entry, axis) for key, entry in value.items()}
    return np.expand_dims(np.asarray(value), axis)
