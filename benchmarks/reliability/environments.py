"""Environments for the reliability benchmarks: a slow one that now and then takes its process along."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium as gym


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


gym.register("SlowCartPole-v0", make_slow, max_episode_steps=200)
