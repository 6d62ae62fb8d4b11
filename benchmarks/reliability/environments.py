"""Environments for the reliability benchmarks: one that is slow, one that fails in every way."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Slow(gym.Wrapper):
    """Sleeps in every step, and ends its process at random.

    Args:
        env: what is slowed down.
        sleep: seconds a step.
        deadly: probability that a step ends the process.
    """

    def __init__(self, env: gym.Env, sleep: float, deadly: float) -> None:
        super().__init__(env)
        self.sleep, self.deadly = sleep, deadly

    def step(self, action: Any) -> Any:
        """Sleep, perhaps die, step."""
        time.sleep(self.sleep)
        if self.np_random.random() < self.deadly:
            os._exit(1)
        return self.env.step(action)


def make_slow(sleep: float = 0.05, deadly: float = 0.0, **kwargs: Any) -> gym.Env:
    """CartPole, slowly."""
    return Slow(gym.make("CartPole-v1", **kwargs), sleep, deadly)


FAULTS = ("raise", "raise at reset", "nan", "infinite reward", "shape", "die", "hang")


class Faulty(gym.Env):
    """Counts its steps, and fails at random.

    It shows (step of the episode, two random numbers) and rewards with the step, so that a replay shows whether it
    holds only what was really seen. A tenth of the episodes end at their first step, the others after at most 50.

    Args:
        chances: probability of each of `FAULTS` in a step (or reset).
        record: a file that gets a line for each fault before it happens.
        luck: seed of the faults; None draws one. It is not that of the episode, because an episode that is begun again
            must not fail again for ever; the faults in `record` are part of it.
    """

    observation_space = spaces.Box(-10, 1000, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, chances: Mapping[str, float], record: str | Path, luck: int | None = None) -> None:
        self.chances, self.record = chances, Path(record)
        self.count = self.length = 0
        happened = len(self.record.read_text()) if self.record.exists() else 0
        self.luck = np.random.default_rng(None if luck is None else [luck, happened])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin, or raise."""
        super().reset(seed=seed)
        self.count = 0
        self.length = 1 if self.np_random.random() < 0.1 else int(self.np_random.integers(2, 51))
        if self._chosen(("raise at reset",)):
            raise RuntimeError("the simulator cannot be reset")
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count, or fail."""
        self.count += 1
        fault = self._chosen(tuple(name for name in FAULTS if name != "raise at reset"))
        if fault == "raise":
            raise RuntimeError("the simulator crashed")
        if fault == "die":
            os._exit(7)
        if fault == "hang":
            time.sleep(1e6)
        observation = {"nan": self._see() * np.nan, "shape": np.zeros(5, np.float32)}.get(fault, self._see())
        reward = float("inf") if fault == "infinite reward" else float(self.count)
        return observation, reward, self.count >= self.length, False, {}

    def _see(self) -> np.ndarray:
        return np.array([self.count, *self.np_random.normal(size=2)], np.float32)

    def _chosen(self, kinds: tuple[str, ...]) -> str:
        for kind in kinds:
            if self.luck.random() < self.chances.get(kind, 0.0):
                with self.record.open("a") as file:
                    file.write(kind + "\n")
                return kind
        return ""


gym.register("Faulty-v0", Faulty)
gym.register("SlowCartPole-v0", make_slow, max_episode_steps=200)
