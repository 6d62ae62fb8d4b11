"""Every agent trains in the dream of World Models' V and M."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO

import agents
from tests.agents.small import TINY, tiny
from wmgym import DreamVecEnv

IN_DREAMS: dict[str, dict[str, Any]] = {
    "Dreamer": {
        "deter": 16, "stoch": 4, "units": 16, "imagine_starts": 8, "horizon": 4, "train_ratio": 8.0,
        "learning_starts": 20,
    },
    "PlaNet": {
        "deter": 16, "stoch": 4, "units": 16, "candidates": 8, "elites": 2, "iterations": 2, "horizon": 4,
        "seed_episodes": 2, "updates_per_episode": 2,
    },
    "TDMPC2": {
        "latent": 16, "units": 16, "encoder_units": 16, "candidates": 8, "elites": 2, "iterations": 2, "actor_plans": 2,
        "learning_starts": 20, "pretrain": 2, "train_freq": 8,
    },
    "WorldModels": TINY,
}  # fmt: skip


@pytest.fixture(scope="module")
def v_and_m(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of V and M that have seen Pendulum-v1."""
    return str(tiny("Pendulum-v1").learn(60).save(tmp_path_factory.mktemp("dreams") / "vm"))


def assert_learns(agent: Any, decisions: int) -> None:
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    assert agent.learn(decisions).num_timesteps >= decisions
    assert any(not torch.equal(value, before[key]) for key, value in agent.policy.state_dict().items())


@pytest.mark.parametrize("name", IN_DREAMS)
def test_every_agent_trains_in_the_dream_of_v_and_m(name: str, v_and_m: str) -> None:
    dream = {"model": v_and_m, "horizon": 10}
    common = {"batch_size": 4, "batch_length": 8, "seed": 0, "device": "cpu"}
    agent = getattr(agents, name)("Dream-v0", env_kwargs=dream, **(IN_DREAMS[name] | common))
    assert_learns(agent, 60)
    game = gym.make("Pendulum-v1")
    assert game.action_space.contains(agent.predict(game.reset(seed=0)[0])[0])


def test_stable_baselines3_trains_in_the_dream_of_v_and_m(v_and_m: str) -> None:
    dreams = DreamVecEnv(4, v_and_m, horizon=10)
    assert_learns(PPO("MlpPolicy", dreams, n_steps=16, batch_size=16, seed=0, device="cpu"), 64)
