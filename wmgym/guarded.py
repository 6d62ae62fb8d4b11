"""Environments whose faults end an episode instead of the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from wmgym.spaces import as_dict, is_image

FAULT = "fault"
"""The key of `info` that says what went wrong in a step; the episode was cut there, and its step is not to be used."""

RESET_FAULTS = "reset_faults"
"""The key of `info` that lists what went wrong while the episode was begun; it has begun well after all."""


class FaultyEnvironmentError(RuntimeError):
    """An environment that does nothing but fail."""


class Guarded(gym.Wrapper):
    """Cuts the episode when the environment raises, or brings NaN, infinity or another shape than its space's.

    The faulty step comes out as a truncation with the last good observation, reward 0 and `info["fault"]`, the
    sentence that names the fault; agents leave such a step out of their replay. An environment that raised is made
    anew. A reset that fails is tried again with another seed, and `info["reset_faults"]` of the next step says so.

    Args:
        make: gives the environment; called again whenever it has raised.
        patience: how many faults in a row, without a good step between them, are borne.

    Raises:
        FaultyEnvironmentError: when patience is at an end; the message names the last fault.

    Example:
        >>> class Faulty(gym.Wrapper):
        ...     def step(self, action):
        ...         raise RuntimeError("the simulator crashed")
        >>> env = Guarded(lambda: Faulty(gym.make("CartPole-v1")))
        >>> _ = env.reset(seed=0)
        >>> _, reward, terminated, truncated, info = env.step(0)
        >>> truncated, info["fault"]
        (True, 'step raised RuntimeError: the simulator crashed')
    """

    def __init__(self, make: Callable[[], gym.Env], patience: int = 10) -> None:
        super().__init__(make())
        self.action_space = self.env.action_space  # and what is drawn from it next, whichever environment is behind it
        self._make = make
        self._patience = patience
        self._broken = False
        self._in_a_row = 0
        self._reset_faults: list[str] = []
        self._seen: Any = None  # the last good observation
        self._seed: int | None = None  # the last one given to reset
        self._other_seeds = 0  # that have followed from it

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with another seed where the one given brings only faults."""
        if seed is not None:
            self._seed, self._other_seeds = seed, 0
        elif self._broken:  # the environment that takes its place has no seed to go on from
            seed = self._next_seed()
        while True:
            fault, result = self._tried("reset", seed=seed, options=options)
            if fault is None and (fault := fault_of(result[0], self.observation_space)) is None:
                self._seen = result[0]
                return result
            self._bear(fault)
            self._reset_faults.append(fault)
            seed = self._next_seed()

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, or cut the episode."""
        fault, result = self._tried("step", action)
        if fault is None:
            fault = fault_of(result[0], self.observation_space) or _fault_of_reward(result[1])
        if fault is None:
            self._seen, self._in_a_row = result[0], 0
            observation, reward, terminated, truncated, info = result
        else:
            self._bear(fault)
            observation, reward, terminated, truncated, info = self._seen, 0.0, False, True, {FAULT: fault}
        if self._reset_faults:
            info, self._reset_faults = {**info, RESET_FAULTS: self._reset_faults}, []
        return observation, reward, terminated, truncated, info

    def _tried(self, name: str, *args: Any, **kwargs: Any) -> tuple[str | None, Any]:
        """Call a method of the environment, which is made anew first if it has raised; the fault, or the result."""
        try:
            if self._broken:
                self.env, self._broken = self._make(), False
            return None, getattr(self.env, name)(*args, **kwargs)
        except Exception as error:  # whatever an environment raises, or its making, is its fault
            self._drop()
            return f"{name} raised {type(error).__name__}: {error}", None

    def _drop(self) -> None:
        """The environment raised, and what it left behind is unknown: another takes its place at the next call."""
        self._broken = True
        with suppress(Exception):  # it is broken already
            self.env.close()

    def _bear(self, fault: str) -> None:
        self._in_a_row += 1
        if self._in_a_row > self._patience:
            raise FaultyEnvironmentError(
                f"The environment has failed {self._in_a_row} times without a good step between, the last time so: "
                f"{fault}."
            )

    def _next_seed(self) -> int | None:
        """Another seed, which follows from the one given, so that a run can be had again."""
        if self._seed is None:
            return None
        self._other_seeds += 1
        return int(np.random.SeedSequence([self._seed, self._other_seeds]).generate_state(1)[0])


def fault_of(observation: Any, space: spaces.Space) -> str | None:
    """What is wrong with an observation of `space`, a `Box` or a `Dict` of them; None where nothing is.

    Bounds are not looked at: environments step over them, and no harm is done.
    """
    boxes = space.spaces if isinstance(space, spaces.Dict) else as_dict(space)
    values = as_dict(observation)
    if values.keys() != boxes.keys():
        return f"the observation has the keys {sorted(values)}, expected {sorted(boxes)}"
    for key, box in boxes.items():
        array = np.asarray(values[key])
        if array.shape != box.shape:
            return f"{key!r} has shape {array.shape}, expected {box.shape}"
        if array.dtype.kind not in "biuf" or (is_image(box) and array.dtype != np.uint8):
            return f"{key!r} has dtype {array.dtype}, expected {box.dtype}"
        if not np.isfinite(array).all():
            place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            return f"{key!r} is {array[place]} at {list(place)}"
    return None


def _fault_of_reward(reward: Any) -> str | None:
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        return f"the reward is {reward!r}, no number"
    return None if np.isfinite(array).all() else f"the reward is {float(array.item())}"
