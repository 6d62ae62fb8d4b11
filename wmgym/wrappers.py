"""Wrappers that give every real environment the same shape: unit actions, repeats, flat states, square pictures."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from wmgym.rendering import Picture, resize
from wmgym.spaces import SpaceError, action_size, is_image


class UnitAction(gym.ActionWrapper, RecordConstructorArgs):
    """Box actions as float32 numbers in [-1, 1], whatever the bounds and the dtype of the environment.

    Unlike `gymnasium.wrappers.RescaleAction` it clips, casts to float32 (dm_control's spaces are float64, of which
    SB3 warns) and refuses NaN.

    Raises:
        SpaceError: for bounds that are not finite, an integer Box or one of several dimensions.
        ValueError: (from `step`) for an action with NaN or infinity.

    Example:
        >>> env = UnitAction(gym.make("Pendulum-v1"))  # torques in [-2, 2]
        >>> env.action(np.array([0.5], np.float32))
        array([1.], dtype=float32)
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        size = action_size(env.action_space)
        box = env.action_space
        if not isinstance(box, spaces.Box) or not np.issubdtype(box.dtype, np.floating):
            raise SpaceError(f"UnitAction scales Box actions of floating point, not {box}.")
        self._dtype = box.dtype
        self._middle = (box.high.astype(np.float64) + box.low) / 2
        self._half = (box.high.astype(np.float64) - box.low) / 2
        self.action_space = spaces.Box(-1.0, 1.0, (size,), np.float32)

    def action(self, action: NDArray[np.floating]) -> NDArray[np.floating]:
        """The environment's own action for one in [-1, 1]."""
        if not np.isfinite(action).all():
            raise ValueError(f"The action {action} is not finite: the policy that gave it has diverged.")
        return (self._middle + self._half * np.clip(action, -1.0, 1.0)).astype(self._dtype)


class ActionRepeat(gym.Wrapper, RecordConstructorArgs):
    """Does each action `repeat` times: rewards are summed, an end stops it.

    `gymnasium.wrappers.RepeatAction` exists from Gymnasium 1.3 only.

    Example:
        >>> env = ActionRepeat(gym.make("CartPole-v1"), 4)
        >>> _ = env.reset(seed=0)
        >>> env.step(0)[1]
        4.0
    """

    def __init__(self, env: gym.Env, repeat: int) -> None:
        RecordConstructorArgs.__init__(self, repeat=repeat)
        gym.Wrapper.__init__(self, env)
        if repeat < 1:
            raise ValueError(f"action_repeat must be 1 or more, not {repeat}.")
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """`repeat` steps of the environment, or fewer if it ends."""
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class FlatState(gym.ObservationWrapper, RecordConstructorArgs):
    """The observation as one float32 vector; entries of a Dict follow one another in the order of its space.

    Entries may have any shape, 0-d included (dm_control's `height`). Discrete observations become one-hot, as in
    `gymnasium.wrappers.FlattenObservation`, which is slower on a Dict of boxes.

    Example:
        >>> FlatState(gym.make("FrozenLake-v1")).observation_space.shape
        (16,)
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        inner = env.observation_space
        flat = spaces.flatten_space(inner)
        if not isinstance(flat, spaces.Box):
            raise SpaceError(f"The observation {inner} has no fixed length: it cannot be flattened to a vector.")
        limit = np.finfo(np.float32).max  # finite bounds, because checkers warn of infinite ones
        low, high = (np.clip(bound, -limit, limit).astype(np.float32) for bound in (flat.low, flat.high))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self._inner = inner
        boxes = isinstance(inner, spaces.Dict) and all(isinstance(box, spaces.Box) for box in inner.values())
        self._keys = list(inner.keys()) if isinstance(inner, spaces.Dict) and boxes else None

    def observation(self, observation: Any) -> NDArray[np.float32]:
        """The vector, always a new array."""
        if self._keys is None:
            return np.array(spaces.flatten(self._inner, observation), np.float32)
        return np.concatenate([observation[key].reshape(-1) for key in self._keys]).astype(np.float32)


class PixelObservation(gym.Wrapper, RecordConstructorArgs):
    """Pictures instead of the state, or beside it as `Dict(image=..., state=...)`.

    Args:
        env: an environment with a method `frame(size)` somewhere among its wrappers (`MujocoPictures`,
            `ScreenPictures`).
        size: height and width.
        keep_state: whether the state stays, under the key "state".
    """

    def __init__(self, env: gym.Env, size: int = 64, keep_state: bool = False) -> None:
        RecordConstructorArgs.__init__(self, size=size, keep_state=keep_state)
        gym.Wrapper.__init__(self, env)
        self._frame = env.get_wrapper_attr("frame")
        self._size = size
        self._keep_state = keep_state
        image = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict(image=image, state=env.observation_space) if keep_state else image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset and look."""
        state, info = self.env.reset(seed=seed, options=options)
        return self._see(state), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step and look."""
        state, reward, terminated, truncated, info = self.env.step(action)
        return self._see(state), reward, terminated, truncated, info

    def _see(self, state: Any) -> Picture | dict[str, Any]:
        image = self._frame(self._size)
        return {"image": image, "state": state} if self._keep_state else image


class ResizedPicture(gym.ObservationWrapper, RecordConstructorArgs):
    """Picture observations (CarRacing, Atari) as (size, size, C), by area, without OpenCV."""

    def __init__(self, env: gym.Env, size: int = 64) -> None:
        RecordConstructorArgs.__init__(self, size=size)
        gym.ObservationWrapper.__init__(self, env)
        inner = env.observation_space
        if not is_image(inner) or inner.shape is None or inner.shape[2] not in (1, 3):
            raise SpaceError(f"ResizedPicture needs uint8 pictures (H, W, 1 or 3), not {inner}.")
        self._size = size
        self.observation_space = spaces.Box(0, 255, (size, size, inner.shape[2]), np.uint8)

    def observation(self, observation: Picture) -> Picture:
        """The picture, resized."""
        return resize(observation, self._size)
