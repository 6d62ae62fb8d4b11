"""Dreams as stable-baselines3 sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecMonitor

from wmgym.dream import DreamEnv, DreamVecEnv
from wmgym.dream.ends import Caution
from wmgym.spaces import as_dict

from .toy import BOTH, PICTURE, PUSH, VECTOR, ToyState, toy_model


@pytest.mark.parametrize("observation", [VECTOR, BOTH], ids=["vector", "both"])
def test_it_does_what_a_dummy_vec_env_of_single_dreams_does(observation: Any) -> None:
    model = toy_model(observation, continue_logit=1.0)
    ours = DreamVecEnv(4, model, horizon=6)
    theirs = DummyVecEnv([lambda: DreamEnv(model, horizon=6)] * 4)
    ours.seed(20), theirs.seed(20)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    _same(ours.reset(), theirs.reset())
    PUSH.seed(0)
    ends = set()
    for _ in range(50):
        actions = np.stack([PUSH.sample() for _ in range(4)])
        one, two = ours.step(actions), theirs.step(actions)
        _same(one[0], two[0])
        np.testing.assert_allclose(one[1], two[1], atol=1e-5)
        assert one[1].dtype == two[1].dtype
        np.testing.assert_array_equal(one[2], two[2])
        for a, b in zip(one[3], two[3], strict=True):
            assert a.keys() == b.keys()
            assert a["TimeLimit.truncated"] is b["TimeLimit.truncated"]
            if "terminal_observation" in a:
                _same(a["terminal_observation"], b["terminal_observation"])
                ends.add(a["TimeLimit.truncated"])
    assert ends == {True, False}


def _same(one: Any, two: Any) -> None:
    one, two = as_dict(one), as_dict(two)
    assert one.keys() == two.keys()
    for key, array in one.items():
        assert array.dtype == two[key].dtype
        np.testing.assert_allclose(array, two[key], atol=1 if array.dtype == np.uint8 else 1e-5)


@pytest.mark.parametrize(("observation", "policy"), [(VECTOR, "MlpPolicy"), (BOTH, "MultiInputPolicy")])
def test_ppo_trains_in_dreams(observation: Any, policy: str) -> None:
    env = VecMonitor(VecCheckNan(DreamVecEnv(8, toy_model(observation, spaces.Discrete(3)), horizon=10)))
    agent = PPO(policy, env, n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(256)
    assert agent.num_timesteps == 256
    assert len(agent.ep_info_buffer) > 0
    assert all(info["l"] <= 10 for info in agent.ep_info_buffer)


def test_sac_trains_in_latent_dreams_and_is_evaluated_in_them() -> None:
    env = VecMonitor(DreamVecEnv(2, toy_model(), observation="latent", horizon=5, termination="never"))
    agent = SAC("MlpPolicy", env, learning_starts=20, batch_size=16, device="cpu", seed=0).learn(60)
    returns, lengths = evaluate_policy(agent, env, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == 4
    assert set(lengths) == {5}


def test_ppo_trains_from_pictures() -> None:
    env = DreamVecEnv(2, toy_model(PICTURE), horizon=10)
    assert PPO("CnnPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(16).num_timesteps == 16


def test_seeds_and_options_count_for_one_reset() -> None:
    env = DreamVecEnv(3, toy_model(), observation="latent", seed=0)
    env.seed(7)
    first = env.reset()
    second = env.reset()
    assert not np.array_equal(first, second)
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), first)
    env.set_options({"start": 5})
    np.testing.assert_allclose(env.reset(), 0.4, atol=1e-6)
    env.set_options([{"start": 5}, {"start": 0}, {"start": 5}])
    np.testing.assert_allclose(env.reset()[:, 0], [0.4, -0.6, 0.4], atol=1e-6)


def test_options_may_be_observations_and_states() -> None:
    env = DreamVecEnv(2, toy_model(BOTH), observation="latent")
    env.set_options({"observation": BOTH.sample()})
    assert env.reset() in env.dreams.observation_space
    env.set_options({"state": ToyState(torch.full((1, 4), 0.5), torch.zeros(1))})
    np.testing.assert_array_equal(env.reset(), np.full((2, 4), 0.5, np.float32))
    beginning = {"observation": {key: np.stack([BOTH.sample()[key]] * 3) for key in BOTH}, "action": np.zeros((3, 2))}
    env.set_options({"prefix": beginning})
    assert env.reset() in env.dreams.observation_space
    env.set_options([{"start": 1}, {}])
    with pytest.raises(ValueError, match="same kind of reset option"):
        env.reset()


def test_attributes_and_methods() -> None:
    env = DreamVecEnv(3, toy_model(PICTURE), render_mode="rgb_array", horizon=9)
    assert env.get_attr("horizon") == [9] * 3
    assert env.get_attr("horizon", indices=1) == [9]
    assert env.get_attr("action_space")[0] == PUSH
    assert not env.has_attr("wheels")
    env.set_attr("temperature", 0.5)
    assert env.dreams.temperature == 0.5
    with pytest.raises(ValueError, match="All dreams share 'temperature'"):
        env.set_attr("temperature", 1.0, indices=[0])
    for name in ("start", "disagreement_penalty", "keys"):  # read when the dreams are made: nothing would come of it
        with pytest.raises(ValueError, match=f"'{name}' cannot be changed"):
            env.set_attr(name, "any")
    env.reset()
    assert type(env.env_method("reset", seed=0)[0]) is tuple  # one call's result is nobody's own
    assert [frame.shape for frame in env.env_method("render", indices=[0, 2])] == [PICTURE.shape] * 2
    assert env.env_is_wrapped(Monitor) == [False] * 3


@pytest.mark.parametrize(("name", "value", "text"), [
    ("termination", "Never", "termination='Never' is unknown"),
    ("temperature", -1.0, "temperature not negative"),
    ("horizon", 0, "must be 1 or more, not 0"),
    ("caution", Caution(5.0), "no ensemble"),
    ("render_mode", "human", "render_mode='human' is unknown"),
])  # fmt: skip
def test_attributes_that_dreams_cannot_have(name: str, value: Any, text: str) -> None:
    env = DreamVecEnv(2, toy_model())
    before = getattr(env.dreams, name)
    with pytest.raises(ValueError, match=text):
        env.set_attr(name, value)
    assert getattr(env.dreams, name) == before


def test_pictures_can_be_asked_for_later() -> None:
    env = DreamVecEnv(2, toy_model(PICTURE))
    env.set_attr("render_mode", "rgb_array")
    env.reset()
    assert env.render().shape == (80, 36, 3)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int16, np.bool_, np.float64])
def test_dreams_of_numbers_of_any_kind_begin_anew(dtype: Any) -> None:
    env = DreamVecEnv(2, toy_model(spaces.Box(0, 1, (3,), dtype)), horizon=3)
    env.reset()
    seen = [env.step(np.zeros((2, 2), np.float32))[0] for _ in range(7)]
    assert all(observation.dtype == dtype for observation in seen)


def test_pictures_are_tiled() -> None:
    env = DreamVecEnv(4, toy_model(PICTURE), render_mode="rgb_array")
    env.reset()
    assert env.render().shape == (80, 72, 3)
