"""Acting: `predict`, which carries the state of the world from step to step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from wmgym.real import make_vec

STEPS, ENVS = 6, 3


@pytest.fixture(scope="module", params=["box", "discrete"])
def agent(request: pytest.FixtureRequest, tiny: Any, counter: Any) -> Any:
    action = spaces.Discrete(3, start=5) if request.param == "discrete" else spaces.Box(-3, 1, (2,))
    return tiny(counter(spaces.Box(-1, 1, (4,)), action)).learn(60)


@pytest.fixture(scope="module")
def observations() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (STEPS, ENVS, 4)).astype(np.float32)


def test_batched_equals_unbatched(agent: Any, observations: np.ndarray) -> None:
    state, starts, together = None, np.ones(ENVS, bool), []
    for observation in observations:
        action, state = agent.predict(observation, state, starts, deterministic=True)
        starts[:] = False
        together.append(action)
    for env in range(ENVS):
        own = None
        for observation, actions in zip(observations, together):
            action, own = agent.predict(observation[env], own, deterministic=True)
            assert agent.action_space.contains(action)
            np.testing.assert_allclose(action, actions[env], atol=1e-4)
        for leaf, leaves in zip(own, state):
            np.testing.assert_allclose(leaf[0], leaves[env], atol=1e-4)


def test_a_row_that_starts_an_episode_is_as_fresh(agent: Any, observations: np.ndarray) -> None:
    _, state = agent.predict(observations[0], None, np.ones(ENVS, bool), deterministic=True)
    starts = np.array([True, False, False])
    action, after = agent.predict(observations[1], state, starts, deterministic=True)
    fresh_action, fresh = agent.predict(observations[1], deterministic=True)
    same = [[np.allclose(a[env], b[env], atol=1e-6) for a, b in zip(after, fresh)] for env in range(ENVS)]
    assert all(same[0])
    np.testing.assert_allclose(action[0], fresh_action[0], atol=1e-6)
    assert not all(same[1])  # the others remember
    assert not all(same[2])


def test_deterministic_is_repeatable_and_draws_nothing(agent: Any, observations: np.ndarray) -> None:
    before = agent.policy.generator.get_state()
    one, two = (agent.predict(observations[0], deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (before == agent.policy.generator.get_state()).all()
    drawn = [agent.predict(observations[0])[0] for _ in range(20)]
    assert len(np.unique(drawn, axis=0)) > 1
    assert all(agent.action_space.contains(row) for batch in drawn for row in batch)


def test_predict_does_not_change_the_state_that_was_given(agent: Any, observations: np.ndarray) -> None:
    _, state = agent.predict(observations[0])
    copies = [leaf.copy() for leaf in state]
    agent.predict(observations[1], state, np.array([True, False, True]))
    for leaf, copy in zip(state, copies):
        np.testing.assert_array_equal(leaf, copy)


def test_pictures_may_have_their_channels_first(tiny: Any, counter: Any) -> None:
    space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    agent = tiny(counter(space))
    pictures = np.stack([space.sample() for _ in range(2)])
    last, _ = agent.predict(pictures, deterministic=True)
    first, _ = agent.predict(pictures.transpose(0, 3, 1, 2), deterministic=True)
    np.testing.assert_array_equal(last, first)
    single, _ = agent.predict(pictures[0].transpose(2, 0, 1), deterministic=True)
    np.testing.assert_allclose(single, last[0], atol=1e-5)


def test_the_loop_of_stable_baselines3s_documentation(tiny: Any) -> None:
    agent, env = tiny("CartPole-v1").learn(60), make_vec("CartPole-v1", 2, seed=3)
    observation, state, starts = env.reset(), None, np.ones(2, bool)
    returns: list[list[float]] = [[], []]
    while min(map(len, returns)) < 2:
        action, state = agent.predict(observation, state=state, episode_start=starts, deterministic=True)
        observation, _, starts, infos = env.step(action)
        for i, info in enumerate(infos):
            returns[i] += [info["episode"]["r"]] if "episode" in info else []
    env = make_vec("CartPole-v1", 2, seed=3)
    evaluated, _ = evaluate_policy(agent, env, n_eval_episodes=4, return_episode_rewards=True)
    assert sorted(evaluated) == pytest.approx(sorted(returns[0][:2] + returns[1][:2]))
