"""Episodes of an agent, and of one that has learnt nothing to compare it with."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from agents.zoo.report import Returns


class RandomAgent:
    """Acts uniformly at random.

    Args:
        action_space: to draw from.
        seed: of the draws.
    """

    def __init__(self, action_space: spaces.Space, seed: int) -> None:
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """One action for each row of `episode_start`."""
        count = 1 if episode_start is None else len(episode_start)
        return np.stack([self.action_space.sample() for _ in range(count)]), None


def play(
    agent: Any, env: VecEnv, episodes: int, deterministic: bool = True, frames: list[Any] | None = None
) -> Returns:
    """Returns of some episodes.

    Args:
        agent: acts.
        env: is closed at the end.
        episodes: how many.
        deterministic: whether it acts without drawing.
        frames: pictures of the first environment are added to it.
    """

    def look(_: dict[str, Any], __: dict[str, Any]) -> None:
        if frames is not None:
            frames.append(np.asarray(env.get_images()[0]))

    try:
        returns, _ = evaluate_policy(
            agent, env, episodes, deterministic, callback=look, return_episode_rewards=True, warn=False
        )
    finally:
        env.close()
    return Returns(tuple(np.asarray(returns, float).tolist()))
