"""What agents that learned in a dream are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from agents.evaluation import evaluate_dream, evaluate_elsewhere, evaluate_real
from wmgym import DreamVecEnv, DreamVectorEnv, StartStates, as_model, make_env
from wmgym.dream import DreamModel
from wmgym.spaces import SpaceError
from wmgym.worlds.rssm import RSSM, RSSMConfig

SMALL = RSSMConfig(deter=8, stoch=4, hidden=8)
QUICK: dict[str, Any] = {"n_steps": 4, "batch_size": 16, "n_epochs": 1, "device": "cpu", "seed": 0}
BOX = spaces.Box(-1, 1, (2,), np.float32)


class Sum(gym.Env):
    """Rewards the sum of the last observation it showed; four steps an episode."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space = BOX) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(action), False, self.steps == 4, {}


def world_of(space: spaces.Space = BOX, **env: Any) -> DreamModel:
    torch.manual_seed(0)
    world = RSSM(space, spaces.Discrete(2), SMALL)
    return as_model(world, StartStates(world.initial(2), torch.tensor([True, True])), env)


class Always:
    """Chooses the same."""

    def __init__(self, space: spaces.Space, choice: int) -> None:
        self.observation_space, self.choice = space, choice

    def get_vec_normalize_env(self) -> None:
        return None

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return np.full(len(episode_start), self.choice), None


def test_returns_are_those_of_the_real_environment() -> None:
    for choice in (0, 1):
        assert list(evaluate_real(Always(BOX, choice), world_of(), 3, env=Sum())) == [4.0 * choice] * 3
    model = _cartpole()
    balancing = evaluate_real(Always(model.world.observation_space, 1), model, 5)
    assert ((balancing >= 8) & (balancing <= 11)).all()  # the pole falls


def _cartpole() -> DreamModel:
    return world_of(make_env("CartPole-v1").observation_space, id="CartPole-v1", observation="state")


@pytest.mark.parametrize("observation", ["decoded", "latent"])
def test_an_agent_sees_in_reality_what_it_saw_in_the_dream(observation: Any) -> None:
    model = _cartpole()
    agent = PPO("MlpPolicy", DreamVecEnv(4, model, observation=observation, horizon=8), **QUICK).learn(16)
    real = evaluate_real(agent, model, 3)
    np.testing.assert_array_equal(real, evaluate_real(agent, model, 3))
    assert (real >= 8).all()
    assert evaluate_dream(agent, model, 4, horizon=8, termination="never").shape == (4,)


@pytest.mark.parametrize("observation", ["decoded", "latent"])
def test_in_another_world_an_agent_earns_what_that_world_pays(observation: Any) -> None:
    model = _cartpole()
    paying = _cartpole()
    paying.world._reward = lambda features: torch.full(features.shape[:-1], 3.0)
    agent = PPO("MlpPolicy", DreamVecEnv(4, model, observation=observation, horizon=8), **QUICK).learn(16)
    elsewhere = evaluate_elsewhere(agent, model, paying, 3)
    np.testing.assert_array_equal(elsewhere, evaluate_elsewhere(agent, model, paying, 3))
    assert (elsewhere % 3 == 0).all()
    assert (elsewhere > 0).all()
    assert not np.array_equal(elsewhere, evaluate_dream(agent, model, 3))


@pytest.mark.parametrize("keys", [("a",), ("a", "b")])
def test_an_agent_of_some_keys(keys: tuple[str, ...]) -> None:
    whole = spaces.Dict({"a": BOX, "b": spaces.Box(0, 1, (3,), np.float32), "c": BOX})
    model = world_of(whole)
    dreams = DreamVecEnv(4, model, keys=keys, horizon=8)
    agent = PPO("MlpPolicy" if len(keys) == 1 else "MultiInputPolicy", dreams, **QUICK)
    assert evaluate_real(agent, model, 2, env=Sum(whole)).shape == (2,)
    assert evaluate_dream(agent, model, 2, horizon=8).shape == (2,)


def test_an_agent_that_normalises_is_shown_normalised_observations() -> None:
    model = world_of()
    dreams = VecNormalize(VecMonitor(DreamVecEnv(4, model, horizon=8)))
    agent = PPO("MlpPolicy", dreams, **QUICK).learn(16)
    seen: list[np.ndarray] = []
    predict = agent.predict
    agent.predict = lambda observation, *rest, **more: (seen.append(observation), predict(observation, *rest, **more))[
        1
    ]
    evaluate_real(agent, model, 1, env=Sum())
    env = Sum()
    first, _ = env.reset(seed=10_000)
    np.testing.assert_allclose(seen[0][0], dreams.normalize_obs(first), rtol=1e-5)


def test_what_cannot_be_evaluated() -> None:
    with pytest.raises(ValueError, match=r"does not tell how its real environment was made: give it, env="):
        evaluate_real(Always(BOX, 0), world_of())
    pendulum = as_model(
        RSSM(spaces.Box(-8, 8, (3,), np.float32), spaces.Box(-1, 1, (1,), np.float32)), None, env={"id": "Pendulum-v1"}
    )
    with pytest.raises(SpaceError, match=r"action space is Box\(-2.0, 2.0, .* but the world's is Box\(-1.0, 1.0"):
        evaluate_real(Always(BOX, 0), pendulum, env=gym.make("Pendulum-v1"))
    with pytest.raises(SpaceError, match=r"The agent sees .* which cannot be made of"):
        evaluate_real(Always(spaces.Box(-1, 1, (7,)), 0), world_of(), env=Sum())


def test_a_dreamer_learns_in_a_dreaming_vector_environment_and_is_evaluated(tmp_path: Path, tiny: Any) -> None:
    model = _cartpole()
    dreams = DreamVectorEnv(3, model, horizon=8)
    agent = tiny(dreams).learn(60)
    assert agent.n_envs == 3
    assert evaluate_real(agent, model, 2).shape == (2,)
    path = str(model.save(tmp_path / "cartpole.zip"))
    by_id = tiny("Dream-v0", env_kwargs={"model": path, "horizon": 8}).learn(60)
    assert evaluate_real(by_id, model, 2).shape == (2,)
    agent.set_env(dreams)
    assert agent.learn(6, reset_num_timesteps=False).num_timesteps == 66
