"""What tests of agents share: a tiny Dreamer, and environments that are as simple as they get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from agents import Dreamer
from agents.zoo.playing import RandomAgent
from tests.agents.learnt import assert_learnt_the_same
from wmgym.real import make_vec

TINY: dict[str, Any] = {
    "deter": 32, "stoch": 8, "units": 32, "depth": 4, "batch_size": 4, "batch_length": 8, "horizon": 5,
    "imagine_starts": 16, "learning_starts": 40, "train_ratio": 8.0, "seed": 0, "device": "cpu",
}  # fmt: skip


class Counter(gym.Env):
    """Shows (number of the episode, step in it) and gives the step as reward; remembers the actions done.

    Args:
        observation: a space to sample from instead; its first number is still the step.
        action: the action space.
        length: steps of an episode; 0 and less never ends it.
        truncated: whether episodes are cut instead of ending.
        bad: what goes wrong at step `bad_at`, counted over all episodes: "observation", "reward", "first", "error".
        bad_at: when.
    """

    def __init__(
        self,
        observation: spaces.Space | None = None,
        action: spaces.Space | None = None,
        length: int = 7,
        truncated: bool = False,
        bad: str = "",
        bad_at: int = 0,
    ) -> None:
        counted = spaces.Box(-1000, 1000, (2,), np.float32)
        self.observation_space = counted if observation is None else observation
        self.action_space = action or spaces.Box(-1, 1, (1,), np.float32)
        self.counts = observation is None
        self.length, self.truncated, self.bad, self.bad_at = length, truncated, bad, bad_at
        self.episode, self.step_number, self.total = -1, 0, 0
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode, self.step_number = self.episode + 1, 0
        return self._see("first"), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(action)
        self.step_number, self.total = self.step_number + 1, self.total + 1
        if self._goes_wrong("error"):
            raise RuntimeError("the simulator has crashed")
        reward = float("nan") if self._goes_wrong("reward") else float(self.step_number)
        ended = self.step_number == self.length
        return self._see("observation"), reward, ended and not self.truncated, ended and self.truncated, {}

    def _goes_wrong(self, what: str) -> bool:
        return self.bad == what and self.total == self.bad_at

    def _see(self, moment: str) -> Any:
        seen = (
            np.array([self.episode, self.step_number], np.float32) if self.counts else self.observation_space.sample()
        )
        if self._goes_wrong(moment):
            self.bad = ""
            seen[0] = np.nan
        return seen


class Reach(gym.Env):
    """Go to the goal on a line and stay: the reward is 1 minus the distance. 20 steps, cut by `max_episode_steps`."""

    def __init__(self, discrete: bool = False) -> None:
        self.observation_space = spaces.Box(-2, 2, (2,), np.float32)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.place = self.goal = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, 2)
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(action) - 1 if isinstance(self.action_space, spaces.Discrete) else float(action[0])
        self.place = float(np.clip(self.place + 0.2 * push, -1, 1))
        return self._see(), 1 - abs(self.place - self.goal), False, False, {}

    def _see(self) -> np.ndarray:
        return np.array([self.place, self.goal - self.place], np.float32)


@pytest.fixture(scope="session", autouse=True)
def test_environments() -> None:
    """Environments of these tests, by id."""
    gym.register("test/Counter-v0", Counter)
    gym.register("test/Reach-v0", Reach, max_episode_steps=20)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Dreamer]:
    """Builds a Dreamer that learns in a second."""

    def build(env: Any = "CartPole-v1", **changes: Any) -> Dreamer:
        return Dreamer(env, **{**TINY, **changes})

    return build


@pytest.fixture(scope="session")
def counter() -> type[Counter]:
    return Counter


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Dreamer, Dreamer], None]:
    """Asserts that two agents have learnt the same, to the last bit: networks, moments, counters, what is next."""

    def compare(one: Dreamer, two: Dreamer) -> None:
        assert_learnt_the_same(one, two)
        for name in ("num_timesteps", "_n_updates", "_updates_due", "_episode_num", "_pretrained"):
            assert getattr(one, name) == getattr(two, name), name
        assert torch.equal(one.policy.generator.get_state(), two.policy.generator.get_state())

    return compare


@pytest.fixture(scope="session")
def assert_beats_chance() -> Callable[..., None]:
    """Checks that an agent that has learnt in test/Reach-v0 is half-way at least from random actions to the best."""

    def check(agent: Any, episodes: int = 20, **options: Any) -> None:
        env = make_vec("test/Reach-v0", 10, seed=100, **options)
        learnt, _ = evaluate_policy(agent, env, n_eval_episodes=episodes)
        env.seed(100)
        chance, _ = evaluate_policy(RandomAgent(env.action_space, 0), env, n_eval_episodes=episodes)  # type: ignore[arg-type]
        # At best the return is about 18.5: the way there takes 3 of 20 steps.
        assert learnt > chance + 0.5 * (18.5 - chance)

    return check
