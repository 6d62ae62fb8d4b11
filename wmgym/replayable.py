"""Exactly restorable environments, without any help from the simulator."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs


class Replayable(gym.Wrapper, RecordConstructorArgs):
    """Makes a deterministic environment restorable: its state is a seed and the actions since the last reset.

    Every episode is reset with a seed of its own, which follows from the first seed and the number of the episode:
    `reset(seed=s)` starts the sequence (its first episode is the environment's own with seed `s`), `reset()`
    continues it. So an episode can be had again by resetting with its seed and replaying its actions, which is what
    a resumed training run does. Wrap it outermost, so that what inner wrappers remember (a Monitor's sum of rewards)
    comes back too.

    It is exact for environments that are deterministic given the seed and the actions: Gymnasium's, MuJoCo's and
    dm_control's are.

    Example:
        >>> env = Replayable(gym.make("CartPole-v1"))
        >>> _ = env.reset(seed=0)
        >>> seen = env.step(1)[0]
        >>> other = Replayable(gym.make("CartPole-v1"))
        >>> bool((other.set_state(env.get_state()) == seen).all())
        True
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._seed: int | None = None
        self._episode = 0
        self._options: dict[str, Any] | None = None
        self._actions: list[np.ndarray] = []
        self._started = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the first episode of the sequence of `seed`, or the next one of the present sequence."""
        if seed is not None:
            self._seed, self._episode = int(seed), 0
        elif self._seed is None:
            self._seed, self._episode = int(np.random.SeedSequence().generate_state(1)[0]), 0
        elif self._started:
            self._episode += 1
        return self._begin(options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step and remember the action."""
        copy = np.array(action, self.action_space.dtype)  # the caller may reuse its array
        self._actions.append(copy)
        return self.env.step(copy if copy.ndim else copy[()])

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs.

        Returns:
            `seed` of the sequence (None before the first reset), `episode` (its number), `started` (whether it was
            reset), `options` (of that reset) and `actions` `(T, *action shape)`. All but the array is JSON-able, if
            the options are.
        """
        shape = (len(self._actions), *(self.action_space.shape or ()))
        return {
            "seed": self._seed,
            "episode": self._episode,
            "started": self._started,
            "options": self._options,
            "actions": np.array(self._actions, self.action_space.dtype).reshape(shape),
        }

    def set_state(self, state: dict[str, Any]) -> Any:
        """Return to where `get_state` was called, in an environment made in the same way.

        Returns:
            The last observation; None if the environment had not been reset.

        Raises:
            ValueError: if `state` is not one of `get_state`, or has actions of another shape.
        """
        missing = {"seed", "episode", "started", "actions"} - set(state)
        if missing:
            raise ValueError(f"The state lacks {sorted(missing)}: pass what Replayable.get_state() returned.")
        actions = np.asarray(state["actions"])
        if actions.shape[1:] != (self.action_space.shape or ()):
            raise ValueError(f"The state has actions of shape {actions.shape[1:]}, not those of {self.action_space}.")
        self._seed, self._episode, self._started = state["seed"], int(state["episode"]), bool(state["started"])
        self._options, self._actions = state.get("options"), []
        if not self._started:
            return None
        observation, _ = self._begin(self._options)
        for action in actions:
            observation = self.step(action)[0]
        return observation

    def _begin(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self._options, self._actions, self._started = options, [], True
        return self.env.reset(seed=self._episode_seed(), options=options)

    def _episode_seed(self) -> int:
        assert self._seed is not None
        if self._episode == 0:
            return self._seed
        return int(np.random.SeedSequence([self._seed, self._episode]).generate_state(1)[0])
