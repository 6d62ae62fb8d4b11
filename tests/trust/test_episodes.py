"""Every moment of a recorded episode can be had again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wmgym.real import make_env
from wmgym.trust.episodes import Returnable, record_episode
from wmgym.trust.policies import (
    ConstantPolicy,
    NoisyPolicy,
    RandomPolicy,
    Seeing,
    WavePolicy,
    in_space,
    simple_policies,
)

BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


@pytest.mark.parametrize(
    ("env_id", "jumps"),
    [
        ("dm_control/walker-walk-v0", True),
        ("dm_control/reacher-easy-v0", True),  # its target is drawn into the model at each reset
        ("InvertedPendulum-v5", True),
        ("CartPole-v1", False),
    ],
)
def test_the_same_actions_from_the_same_moment_bring_the_same(env_id: str, jumps: bool) -> None:
    env = Returnable(make_env(env_id))
    episode = record_episode(env, "random", RandomPolicy(env.action_space, 0), seed=5, max_steps=30)
    assert (episode.physics is not None) == jumps
    record_episode(env, "random", RandomPolicy(env.action_space, 1), seed=6, max_steps=10)
    for t in (len(episode) // 2, 1, len(episode) - 3):
        env.return_to(episode, t)
        for k in range(t, len(episode)):
            seen, reward, *_ = env.step(episode.env_action[k])
            np.testing.assert_array_equal(seen, episode.observation["observation"][k + 1])
            assert np.float32(reward) == episode.reward[k + 1]


def test_an_episode_is_aligned_as_worlds_read_it() -> None:
    env = Returnable(make_env("CartPole-v1"))
    episode = record_episode(env, "push", ConstantPolicy(env.action_space, 0.9), seed=1, max_steps=100)
    assert episode.terminated
    assert len(episode.reward) == len(episode.observation["observation"]) == len(episode) + 1
    assert episode.reward[0] == 0
    assert episode.total == len(episode)
    assert episode.continues.tolist() == [1.0] * len(episode) + [0.0]
    assert set(episode.env_action.tolist()) == {1}


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3), spaces.Discrete(3, start=5)])
def test_simple_policies_act_within_any_space_and_differ(space: spaces.Space) -> None:
    seen = np.zeros((4, 2), np.float32)
    tracks = []
    for policy in simple_policies(space).values():
        state, actions = None, []
        for t in range(30):
            action, state = policy.predict(seen, state, np.full(4, t == 0))
            assert all(space.contains(row) for row in action)
            actions.append(action)
        tracks.append(np.array(actions))
    assert len(tracks) == 8
    same = sum(np.array_equal(a, b) for i, a in enumerate(tracks) for b in tracks[:i])
    assert same == 0


def test_clocks_begin_anew_with_an_episode() -> None:
    policy, seen = WavePolicy(BOX, 8), np.zeros((2, 2))
    first, state = policy.predict(seen, None, np.array([True, True]))
    _, state = policy.predict(seen, state, np.array([False, False]))
    again, _ = policy.predict(seen, state, np.array([True, False]))
    np.testing.assert_array_equal(again[0], first[0])
    assert not np.array_equal(again[1], first[1])


def test_noise_takes_over_as_often_as_it_says_and_says_so() -> None:
    told: list[np.ndarray] = []

    class Remembers(ConstantPolicy):
        def did(self, state: tuple[np.ndarray, ...], action: np.ndarray) -> tuple[np.ndarray, ...]:
            told.append(action)
            return state

    noisy = NoisyPolicy(Remembers(BOX), BOX, epsilon=0.3, seed=0)
    actions = np.concatenate([noisy.predict(np.zeros((50, 2)))[0] for _ in range(40)])
    slipped = (actions != in_space(np.zeros((1, 2)), BOX)).any(1)
    assert 0.25 < slipped.mean() < 0.35
    np.testing.assert_array_equal(np.concatenate(told), actions)
    with pytest.raises(ValueError, match="probability"):
        NoisyPolicy(ConstantPolicy(BOX), BOX, epsilon=2.0, seed=0)
    with pytest.raises(ValueError, match="hold=1 step or more, not 0"):
        NoisyPolicy(ConstantPolicy(BOX), BOX, epsilon=0.5, seed=0, hold=0)


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3)])
def test_noise_disturbs_a_single_observations_action_too(space: spaces.Space) -> None:
    class Fixed:
        def predict(self, *_: object) -> tuple[np.ndarray, None]:
            return np.zeros(space.shape, space.dtype), None

    noisy = NoisyPolicy(Fixed(), space, epsilon=0.5, seed=0)
    actions = np.stack([noisy.predict(np.zeros(2))[0] for _ in range(100)])
    assert all(space.contains(action) for action in actions)
    assert len(np.unique(actions, axis=0)) > 1


def test_a_policy_of_the_state_ignores_the_picture() -> None:
    policy = Seeing(ConstantPolicy(BOX), ["state"])
    action, _ = policy.predict({"image": np.zeros((3, 8, 8, 3)), "state": np.zeros((3, 2))})
    assert action.shape == (3, 2)


def test_any_gymnasium_environment_can_be_recorded() -> None:
    env = Returnable(gym.make("CartPole-v1"))
    assert env.physics() is None


def test_a_long_slip_is_one_action_and_ends_with_the_episode() -> None:
    noisy = NoisyPolicy(ConstantPolicy(BOX), BOX, epsilon=0.1, seed=0, hold=4)
    done = np.stack([noisy.predict(np.zeros((50, 2)))[0] for _ in range(40)])  # (time, row, A)
    rest, _ = ConstantPolicy(BOX).predict(np.zeros((50, 2)))
    slips = (done != rest).any(-1)
    assert 0.2 < slips.mean() < 0.4  # 4 of every 4 + 1 / 0.1
    changes = np.flatnonzero(slips[:, 0] & ~np.roll(slips[:, 0], 1))
    for begin in changes[(changes > 0) & (changes < 36)]:
        assert slips[begin : begin + 4, 0].all()
        np.testing.assert_array_equal(done[begin : begin + 4, 0], np.tile(done[begin, 0], (4, 1)))
    always = NoisyPolicy(ConstantPolicy(BOX), BOX, epsilon=1.0, seed=0, hold=100)
    first = always.predict(np.zeros((1, 2)))[0]
    np.testing.assert_array_equal(always.predict(np.zeros((1, 2)), episode_start=np.array([False]))[0], first)
    assert not np.array_equal(always.predict(np.zeros((1, 2)), episode_start=np.array([True]))[0], first)


def test_a_slip_without_reach_keeps_what_the_policy_does() -> None:
    frozen = NoisyPolicy(RandomPolicy(BOX, seed=3), BOX, epsilon=1.0, seed=0, hold=5, reach=0.0)
    done = np.stack([frozen.predict(np.zeros((4, 2)))[0] for _ in range(20)])  # (time, row, A)
    policy = RandomPolicy(BOX, seed=3)
    own = [policy.predict(np.zeros((4, 2)))[0] for _ in range(20)]
    for begin in range(0, 20, 5):
        np.testing.assert_array_equal(done[begin : begin + 5], np.tile(own[begin], (5, 1, 1)))


def test_far_reaching_actions_often_lie_on_the_bounds() -> None:
    actions, _ = RandomPolicy(BOX, seed=0, reach=3.0).predict(np.zeros((2000, 2)))
    on_bounds = np.isclose(actions, BOX.low) | np.isclose(actions, BOX.high)
    assert 0.62 < on_bounds.mean() < 0.71  # two thirds
    assert all(action in BOX for action in actions[:50])
    slips, _ = NoisyPolicy(ConstantPolicy(BOX), BOX, epsilon=1.0, seed=0, reach=3.0).predict(np.zeros((2000, 2)))
    on_bounds = np.isclose(slips, BOX.low) | np.isclose(slips, BOX.high)
    assert 0.62 < on_bounds.mean() < 0.71
