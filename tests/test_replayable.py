from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor

from wmgym.real import make_env, make_vec
from wmgym.replayable import Replayable

IDS = ["dm_control/walker-walk-v0", "CartPole-v1", "HalfCheetah-v5"]


def _make(id: str) -> Replayable:
    return Replayable(Monitor(make_env(id)))


def _play(env: gym.Env, actions: list) -> list:
    """What the environment shows, resetting at each end as a VecEnv does."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation.tolist(), float(reward), terminated, truncated, info.get("episode", {}).get("r")))
        if terminated or truncated:
            seen.append(env.reset()[0].tolist())
    return seen


@pytest.mark.parametrize("id", IDS)
def test_a_restored_environment_continues_exactly(id: str) -> None:
    one, two = _make(id), _make(id)
    one.action_space.seed(0)
    actions = [one.action_space.sample() for _ in range(130)]
    one.reset(seed=3)
    _play(one, actions[:50])
    one.reset()
    _play(one, actions[50:61])
    two.reset(seed=99)  # a past of its own must not matter
    _play(two, actions[:7])
    two.set_state(one.get_state())
    assert _play(one, actions[61:]) == _play(two, actions[61:])
    assert one.reset()[0].tolist() == two.reset()[0].tolist()


def test_set_state_returns_the_last_observation() -> None:
    one, two = _make("CartPole-v1"), _make("CartPole-v1")
    first, _ = one.reset(seed=1)
    assert two.set_state(one.get_state()).tolist() == first.tolist()
    last = one.step(1)[0]
    assert two.set_state(one.get_state()).tolist() == last.tolist()


def test_the_first_episode_is_the_environments_own_and_the_next_differ() -> None:
    env = _make("CartPole-v1")
    first, second, third = env.reset(seed=7)[0], env.reset()[0], env.reset()[0]
    assert first.tolist() == gym.make("CartPole-v1").reset(seed=7)[0].tolist()
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    again = [env.reset(seed=7)[0], env.reset()[0], env.reset()[0]]
    np.testing.assert_array_equal(again, [first, second, third])


def test_without_a_seed_runs_differ_and_can_still_be_restored() -> None:
    one, two = _make("CartPole-v1"), _make("CartPole-v1")
    first, other = one.reset()[0], two.reset()[0]
    assert first.tolist() != other.tolist()
    assert two.set_state(one.get_state()).tolist() == first.tolist()


def test_before_the_first_reset_there_is_nothing_to_replay() -> None:
    env = _make("CartPole-v1")
    state = env.get_state()
    assert state["started"] is False
    assert _make("CartPole-v1").set_state(state) is None


def test_the_state_is_json_but_for_the_array_and_is_a_copy() -> None:
    env = _make("dm_control/walker-walk-v0")
    env.reset(seed=0)
    action = np.zeros(6, np.float32)
    env.step(action)
    action[:] = 1.0  # callers reuse their arrays
    state = env.get_state()
    actions = state.pop("actions")
    assert json.loads(json.dumps(state)) == state
    assert actions.tolist() == [[0.0] * 6]
    env.step(action)
    assert len(actions) == 1


@pytest.mark.parametrize("subprocess", [False, True])
def test_vector_environments_are_restored_from_outside(subprocess: bool) -> None:
    one = make_vec("dm_control/walker-walk-v0", n_envs=2, seed=0)
    two = make_vec("dm_control/walker-walk-v0", n_envs=2, subprocess=subprocess)
    rng = np.random.default_rng(0)
    try:
        one.reset()
        two.reset()
        for _ in range(5):
            one.step(rng.uniform(-1, 1, (2, 6)).astype(np.float32))
        for index, state in enumerate(one.env_method("get_state")):
            two.env_method("set_state", state, indices=index)
        actions = rng.uniform(-1, 1, (2, 6)).astype(np.float32)
        for a, b in zip(one.step(actions)[:3], two.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(a, b.astype(a.dtype))  # SB3's subprocesses give float64 rewards
    finally:
        two.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": None}, "lacks \\['seed'\\]"), ({"actions": np.zeros((3, 2))}, "actions of shape \\(2,\\)")],
)
def test_foreign_states_are_refused(change: dict, message: str) -> None:
    env = _make("CartPole-v1")
    env.reset(seed=0)
    state = env.get_state()
    for key, value in change.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    with pytest.raises(ValueError, match=message):
        env.set_state(state)
