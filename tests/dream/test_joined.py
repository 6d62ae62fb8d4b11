"""Dreams of several worlds as one vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from wmgym.dream import DreamModel, DreamVecEnv, JoinedVecEnv

from .toy import BOTH, PICTURE, PUSH, VECTOR, toy_model


def other_model(observation: Any = VECTOR) -> DreamModel:
    """A toy that moves otherwise."""
    model = toy_model(observation)
    with torch.no_grad():
        model.world.drift.weight.mul_(-1)
    return model


@pytest.mark.parametrize("observation", [VECTOR, BOTH], ids=["vector", "both"])
def test_each_world_dreams_as_it_does_alone(observation: Any) -> None:
    models = [toy_model(observation), other_model(observation)]
    alone = [DreamVecEnv(count, model, horizon=5) for count, model in zip((2, 3), models)]
    joined = JoinedVecEnv([DreamVecEnv(count, model, horizon=5) for count, model in zip((2, 3), models)])
    joined.seed(4), alone[0].seed(4), alone[1].seed(6)
    _same(joined.reset(), [part.reset() for part in alone])
    PUSH.seed(0)
    for _ in range(12):
        actions = np.stack([PUSH.sample() for _ in range(5)])
        observations, rewards, dones, infos = joined.step(actions)
        first, second = alone[0].step(actions[:2]), alone[1].step(actions[2:])
        _same(observations, [first[0], second[0]])
        np.testing.assert_array_equal(rewards, np.concatenate([first[1], second[1]]))
        np.testing.assert_array_equal(dones, np.concatenate([first[2], second[2]]))
        for mine, theirs in zip(infos, first[3] + second[3], strict=True):
            assert mine.keys() == theirs.keys()
            assert mine["TimeLimit.truncated"] is theirs["TimeLimit.truncated"]
    assert dones.dtype == np.bool_


def _same(joined: Any, parts: list[Any]) -> None:
    if isinstance(joined, dict):
        for key, value in joined.items():
            np.testing.assert_array_equal(value, np.concatenate([part[key] for part in parts]))
    else:
        np.testing.assert_array_equal(joined, np.concatenate(parts))


def test_ppo_trains_in_two_worlds() -> None:
    env = VecMonitor(JoinedVecEnv([DreamVecEnv(4, toy_model(), horizon=8), DreamVecEnv(4, other_model(), horizon=8)]))
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(256)
    assert len(agent.ep_info_buffer) > 0
    assert all(info["l"] <= 8 for info in agent.ep_info_buffer)


def test_attributes_methods_and_pictures_are_those_of_the_parts() -> None:
    parts = [DreamVecEnv(2, toy_model(PICTURE), render_mode="rgb_array", horizon=n) for n in (5, 9)]
    env = JoinedVecEnv(parts)
    assert env.get_attr("horizon") == [5, 5, 9, 9]
    assert env.get_attr("horizon", indices=[3, 0]) == [9, 5]
    env.set_attr("temperature", 0.5, indices=[2, 3])
    assert [part.dreams.temperature for part in parts] == [1.0, 0.5]
    with pytest.raises(ValueError, match="All dreams share 'temperature'"):
        env.set_attr("temperature", 1.0, indices=[1])
    env.reset()
    assert [frame.shape for frame in env.env_method("render", indices=[3, 0])] == [PICTURE.shape] * 2
    assert len(env.get_images()) == 4
    assert env.env_is_wrapped(Monitor) == [False] * 4
    env.close()


def test_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="nothing to join"):
        JoinedVecEnv([])
    parts = [DreamVecEnv(1, toy_model()), DreamVecEnv(1, toy_model(action=spaces.Discrete(2)))]
    with pytest.raises(ValueError, match=r"one action_space, not Box.* and Discrete\(2\)"):
        JoinedVecEnv(parts)
    with pytest.raises(ValueError, match="alike when they are decoded"):
        JoinedVecEnv([DreamVecEnv(1, toy_model(), observation="latent"), DreamVecEnv(1, toy_model())])
    features = [DreamVecEnv(1, model, observation="latent") for model in (toy_model(), other_model())]
    with pytest.raises(ValueError, match="Features of different worlds"):
        JoinedVecEnv(features)
    JoinedVecEnv([features[0], DreamVecEnv(2, features[0].dreams.model, observation="latent")])
