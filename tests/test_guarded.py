"""Environments whose faults end an episode instead of the run."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wmgym import make_vec
from wmgym.guarded import FAULT, RESET_FAULTS, FaultyEnvironmentError, Guarded

MADE: list[gym.Env] = []


class Faulty(gym.Env):
    """Goes wrong in the steps and resets, counted over all of the class's environments, that `plan` names."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)
    plan: dict[int, str] = {}  # noqa: RUF012  # shared on purpose: an environment that is made anew goes on in it
    calls = 0

    def __init__(self) -> None:
        self.steps = 0
        MADE.append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._next(), {"seed": seed}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = self._next()
        what = Faulty.plan.get(Faulty.calls - 1, "")
        reward = {"nan reward": float("nan"), "text reward": "much"}.get(what, 1.0)
        return observation, reward, False, False, {}

    def _next(self) -> Any:
        what = Faulty.plan.get(Faulty.calls, "")
        Faulty.calls += 1
        if what == "raise":
            raise RuntimeError("the simulator crashed")
        good = np.array([self.steps, 0], np.float32)
        return {
            "nan": np.array([0, np.nan]), "inf": np.array([np.inf, 0]), "shape": np.zeros(3), "dict": {"a": good},
            "text": np.array(["a", "b"]), "none": None,
        }.get(what, good)  # fmt: skip


@pytest.fixture
def guarded() -> Any:
    """Builds a guarded environment with a plan of faults; number 0 is its first reset."""

    def build(plan: dict[int, str], patience: int = 10) -> Guarded:
        Faulty.plan, Faulty.calls = plan, 0
        MADE.clear()
        return Guarded(Faulty, patience)

    return build


def test_making_it_anew_may_fail_too() -> None:
    """It is tried again, and counts among the faults in a row."""
    Faulty.plan, Faulty.calls = {1: "raise"}, 0
    made: list[str] = []

    def make() -> gym.Env:
        made.append("tried")
        if 1 < len(made) < 4:
            raise ConnectionError("no licence")
        return Faulty()

    env = Guarded(make)
    env.reset(seed=0)
    assert env.step(0)[3]
    env.reset()
    faults = env.step(0)[4][RESET_FAULTS]
    assert faults == ["reset raised ConnectionError: no licence"] * 2
    Faulty.plan, Faulty.calls = {1: "raise"}, 0
    made.clear()
    impatient = Guarded(make, patience=2)
    impatient.reset(seed=0)
    impatient.step(0)
    with pytest.raises(FaultyEnvironmentError, match="no licence"):
        impatient.reset()


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("raise", "step raised RuntimeError: the simulator crashed"),
        ("nan", r"'observation' is nan at \[1\]"),
        ("inf", r"'observation' is inf at \[0\]"),
        ("shape", r"'observation' has shape \(3,\), expected \(2,\)"),
        ("dict", r"the observation has the keys \['a'\], expected \['observation'\]"),
        ("text", "'observation' has dtype <U1"),
        ("none", "'observation' has shape"),
        ("nan reward", "the reward is nan"),
        ("text reward", "the reward is 'much', no number"),
    ],
)
def test_a_fault_cuts_the_episode_and_is_named(guarded: Any, what: str, named: str) -> None:
    env = guarded({3: what})
    env.reset(seed=0)
    for _ in range(2):
        seen = env.step(0)[0]
    observation, reward, terminated, truncated, info = env.step(0)
    np.testing.assert_array_equal(observation, seen)
    assert (reward, terminated, truncated) == (0.0, False, True)
    with pytest.raises(ValueError, match=named):
        raise ValueError(info[FAULT])
    env.reset()
    assert FAULT not in env.step(0)[4]


def test_only_an_environment_that_raised_is_made_anew(guarded: Any) -> None:
    env = guarded({1: "nan", 3: "raise"})
    env.reset(seed=0)
    env.step(0)
    assert len(MADE) == 1
    env.reset()
    env.step(0)
    assert env.reset(seed=5)[1] == {"seed": 5}
    assert len(MADE) == 2


def test_a_reset_that_fails_is_tried_again_with_another_seed_and_told(guarded: Any) -> None:
    env = guarded({0: "raise", 1: "nan"})
    first = env.reset(seed=7)[1]["seed"]
    assert first not in (None, 7)
    assert env.step(0)[4][RESET_FAULTS] == [
        "reset raised RuntimeError: the simulator crashed",
        "'observation' is nan at [1]",
    ]
    assert RESET_FAULTS not in env.step(0)[4]
    again = guarded({0: "raise", 1: "nan"})
    assert again.reset(seed=7)[1]["seed"] == first


def test_an_environment_in_place_of_a_broken_one_is_seeded_and_acts_at_random_alike(guarded: Any) -> None:
    runs = []
    for _ in range(2):
        env = guarded({1: "raise", 3: "raise", 5: "raise"})
        env.action_space.seed(3)
        seeds = [env.reset(seed=7)[1]["seed"]]
        for _ in range(3):
            env.step(env.action_space.sample())
            seeds.append(env.reset()[1]["seed"])
        runs.append((seeds, [env.action_space.sample() for _ in range(20)]))
    assert runs[0] == runs[1]
    assert None not in runs[0][0]
    assert len(set(runs[0][0])) == 4


def play(env: Guarded) -> None:
    for _ in range(99):
        env.reset(seed=0)
        env.step(0)


@pytest.mark.parametrize("first", [0, 1], ids=["resets", "steps"])
def test_patience_ends(guarded: Any, first: int) -> None:
    env = guarded(dict.fromkeys(range(first, 99), "raise"), patience=4)
    with pytest.raises(FaultyEnvironmentError, match=r"failed 5 times without a good step between.*simulator crashed"):
        play(env)


def test_a_good_step_restores_patience(guarded: Any) -> None:
    env = guarded({number: "nan" for number in range(99) if number % 3 == 2}, patience=1)
    env.reset(seed=0)
    faults = 0
    for _ in range(40):
        _, _, _, truncated, info = env.step(0)
        faults += FAULT in info
        if truncated:
            env.reset()
    assert faults > 5


def test_what_is_sound_passes_untouched() -> None:
    plain, guarded = make_vec("CartPole-v1", 2, seed=0), make_vec("CartPole-v1", 2, seed=0, guarded=True)
    np.testing.assert_array_equal(plain.reset(), guarded.reset())
    for step in range(60):
        actions = np.array([step % 2, step % 3 == 0], int)
        for one, two in zip(plain.step(actions)[:3], guarded.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(one, two)
