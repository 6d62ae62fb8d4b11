"""Policies of differing skill that need no training: whatever is judged should not be one policy's world alone.

A policy is anything with Stable-Baselines3's `predict`; nothing is inherited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wmgym.spaces import action_size, as_dict

PolicyState = tuple[np.ndarray, ...] | None


class Policy(Protocol):
    """What can act: Stable-Baselines3's models and policies, this project's agents, and the classes here."""

    def predict(
        self,
        observation: Any,
        state: PolicyState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """Actions for a batch of observations, and the state to pass in with the next."""


class OpenLoop(ABC):
    """Acts by the clock, which is its state, and looks at nothing.

    Args:
        space: of the actions, `Box` with finite bounds or `Discrete`.
    """

    def __init__(self, space: spaces.Space) -> None:
        action_size(space)  # raises SpaceError with the way out
        self.space = space

    @abstractmethod
    def at(self, clock: NDArray[np.int64]) -> NDArray[np.floating]:
        """Actions at the steps `clock` `(B,)`: `(B, A)` in [-1, 1], or `(B,)` shares in [0, 1) of the choices."""

    def predict(
        self,
        observation: Any,
        state: PolicyState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """See `Policy`."""
        count = batch_size(observation)
        clock = np.zeros(count, np.int64) if state is None else state[0]
        if episode_start is not None:
            clock = np.where(episode_start, 0, clock)
        return in_space(self.at(clock), self.space), (clock + 1,)


class RandomPolicy(OpenLoop):
    """Acts uniformly at random, each action held for some steps.

    Args:
        space: of the actions.
        seed: of the draws.
        hold: steps for which an action is kept (by all rows together).
        reach: continuous actions are drawn from bounds so many times as wide and cut to the true ones: of 3, two thirds
            of the numbers lie on a bound, where trained policies often are.

    Example:
        >>> action, state = RandomPolicy(spaces.Discrete(3), seed=0).predict(np.zeros((4, 2)))
        >>> action.shape
        (4,)
    """

    def __init__(self, space: spaces.Space, seed: int, hold: int = 1, reach: float = 1.0) -> None:
        super().__init__(space)
        self.hold, self.reach = hold, reach
        self._random = np.random.default_rng(seed)
        self._kept: np.ndarray | None = None

    def at(self, clock: NDArray[np.int64]) -> NDArray[np.floating]:
        """See `OpenLoop`."""
        if self._kept is None or len(self._kept) != len(clock):
            self._kept = self._draw(len(clock))
        renewed = clock % self.hold == 0
        self._kept[renewed] = self._draw(int(renewed.sum()))
        return self._kept.copy()

    def _draw(self, count: int) -> np.ndarray:
        if isinstance(self.space, spaces.Discrete):
            return self._random.uniform(size=count)
        return (self.reach * self._random.uniform(-1, 1, (count, action_size(self.space)))).clip(-1, 1)


class WavePolicy(OpenLoop):
    """Swings every action between its bounds as a sine; discrete choices take turns.

    Args:
        space: of the actions.
        period: steps of a swing.
        reach: share of the bounds that is used.
    """

    def __init__(self, space: spaces.Space, period: float, reach: float = 1.0) -> None:
        super().__init__(space)
        self.period, self.reach = period, reach

    def at(self, clock: NDArray[np.int64]) -> NDArray[np.floating]:
        """See `OpenLoop`; dimension `d` of `A` is `d / A` of a swing ahead."""
        turns = clock / self.period
        if isinstance(self.space, spaces.Discrete):
            return turns % 1.0
        size = action_size(self.space)
        return self.reach * np.sin(2 * np.pi * (turns[:, None] + np.arange(size) / size))


class ConstantPolicy(OpenLoop):
    """Does the same always.

    Args:
        space: of the actions.
        level: in [-1, 1] between the bounds; of discrete actions, in [0, 1), which share of the choices lies below.
    """

    def __init__(self, space: spaces.Space, level: float = 0.0) -> None:
        super().__init__(space)
        self.level = level

    def at(self, clock: NDArray[np.int64]) -> NDArray[np.floating]:
        """See `OpenLoop`."""
        shape = clock.shape if isinstance(self.space, spaces.Discrete) else (len(clock), action_size(self.space))
        return np.full(shape, self.level, np.float64)


class NoisyPolicy:
    """Another policy that slips: with probability `epsilon` a step takes a uniformly random action, or holds its own.

    Args:
        policy: the other.
        space: of the actions.
        epsilon: how often it slips.
        seed: of the slips.
        hold: how many steps a slip lasts, all with the same action; after a long one the policy has to recover.
        reach: how far beyond the bounds the slips are drawn, see `RandomPolicy`; 0: none is drawn, what the policy
            does as it slips is held.

    A policy that remembers what it did is told what was done instead, if it has a method
    `did(state, action) -> state`.
    """

    def __init__(
        self, policy: Policy, space: spaces.Space, epsilon: float, seed: int, hold: int = 1, reach: float = 1.0
    ) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon is a probability, not {epsilon}.")
        if hold < 1:
            raise ValueError(f"A slip lasts hold=1 step or more, not {hold}.")
        self.policy, self.space, self.epsilon, self.hold = policy, space, epsilon, hold
        self._slips = RandomPolicy(space, seed, reach=reach) if reach else None
        self._random = np.random.default_rng(seed + 1)
        self._held: tuple[np.ndarray, np.ndarray] | None = None  # what is done in each row's slip, and for how long yet

    def predict(
        self,
        observation: Any,
        state: PolicyState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """See `Policy`."""
        chosen, state = self.policy.predict(observation, state, episode_start, deterministic)
        action = np.array(chosen).reshape(-1, *(self.space.shape or ()))  # one observation alone is a batch too
        slips, done = self._slip(action, episode_start)
        action[slips] = done[slips]
        did = getattr(self.policy, "did", None)
        return action.reshape(np.shape(chosen)), state if did is None else did(state, action)

    def _slip(self, chosen: np.ndarray, episode_start: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Which rows slip, `(B,)` bool, and what is done where they do, given what was chosen `(B, ...)`."""
        count = len(chosen)
        begins = self._random.uniform(size=count) < self.epsilon
        drawn = chosen
        if self._slips is not None:
            drawn = in_space(self._slips.at(np.zeros(count, np.int64)), self.space)
        if self._held is None or len(self._held[1]) != count:
            self._held = drawn.copy(), np.zeros(count, np.int64)
        done, left = self._held
        if episode_start is not None:
            left[np.asarray(episode_start, bool)] = 0
        begins &= left == 0
        done[begins], left[begins] = drawn[begins], self.hold
        slips = left > 0
        left[slips] -= 1
        return slips, done


class Seeing:
    """A policy that sees only some entries of a `Dict` observation.

    Args:
        policy: trained on these entries; on one alone, it sees its array.
        keys: which.
    """

    def __init__(self, policy: Policy, keys: Sequence[str]) -> None:
        self.policy, self.keys = policy, tuple(keys)

    def predict(
        self,
        observation: Any,
        state: PolicyState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """See `Policy`."""
        seen = {key: observation[key] for key in self.keys}
        only = seen if len(seen) > 1 else seen[self.keys[0]]
        return self.policy.predict(only, state, episode_start, deterministic)


def simple_policies(space: spaces.Space, seed: int = 0) -> dict[str, Policy]:
    """Eight policies without training, by name."""
    return {
        "random": RandomPolicy(space, seed),
        "random, held 5": RandomPolicy(space, seed + 1, hold=5),
        "random, held 25": RandomPolicy(space, seed + 2, hold=25),
        "still": ConstantPolicy(space),
        "push": ConstantPolicy(space, 0.9),
        "wave 10": WavePolicy(space, 10),
        "wave 25": WavePolicy(space, 25),
        "wave 60": WavePolicy(space, 60),
    }


def noisy_policies(
    name: str, policy: Policy, space: spaces.Space, levels: Sequence[float] = (0.0, 0.25, 0.5, 0.75), seed: int = 0
) -> dict[str, Policy]:
    """One policy at several levels of noise, by name: cheap policies of differing skill."""
    return {
        name if level == 0 else f"{name}, noise {level:g}": NoisyPolicy(policy, space, level, seed + index)
        for index, level in enumerate(levels)
    }


def batch_size(observation: Any) -> int:
    """How many observations there are."""
    return len(next(iter(as_dict(observation).values())))


def in_space(unit: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Actions in a space's own units, from [-1, 1] (`Box`) or shares of the choices in [0, 1) (`Discrete`).

    Example:
        >>> in_space(np.array([0.0, 0.7]), spaces.Discrete(2)), in_space(np.array([[0.5]]), spaces.Box(-2, 2, (1,)))
        (array([0, 1]), array([[1.]], dtype=float32))
    """
    if isinstance(space, spaces.Discrete):
        return np.floor(np.clip(unit, 0, 1 - 1e-9) * int(space.n)).astype(np.int64) + int(space.start)
    assert isinstance(space, spaces.Box)
    middle, half = (space.high.astype(float) + space.low) / 2, (space.high.astype(float) - space.low) / 2
    return np.clip(middle + half * unit, space.low, space.high).astype(space.dtype)
