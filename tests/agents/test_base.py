"""The loop: what is collected, what is stored, how much is learnt, in every kind of environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize, VecTransposeImage

from wmgym import DreamVecEnv, make_env
from wmgym.real import make_vec


class Watch(BaseCallback):
    """Counts the hooks, and notes the learning rates of every step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.hooks: list[str] = []
        self.rates: list[dict[str, float]] = []
        self.stop_at = stop_at

    def _on_training_start(self) -> None:
        self.hooks.append("start")

    def _on_rollout_start(self) -> None:
        self.hooks.append("rollout")

    def _on_step(self) -> bool:
        self.hooks.append("step")
        optimizers: Any = self.model.optimizers  # type: ignore[attr-defined]
        self.rates.append({name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()})
        return self.stop_at is None or self.num_timesteps < self.stop_at

    def _on_rollout_end(self) -> None:
        self.hooks.append("rolled out")

    def _on_training_end(self) -> None:
        self.hooks.append("end")


# -- what is stored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncated", [False, True], ids=["terminated", "truncated"])
@pytest.mark.parametrize("lengths", [[7], [5, 7]], ids=["one", "two"])
def test_the_replay_holds_every_step_of_every_episode_once(
    tiny: Any, counter: Any, lengths: list[int], truncated: bool
) -> None:
    thunks = [lambda length=length: counter(length=length, truncated=truncated) for length in lengths]
    agent = tiny(DummyVecEnv(thunks)).learn(36 * len(lengths))
    for env, length in enumerate(lengths):
        episodes = list(agent.replay_buffer.episodes(env))
        assert len(episodes) == 36 // length
        done = agent.get_env().envs[env].actions
        for number, episode in enumerate(episodes):
            steps = np.arange(length + 1)
            np.testing.assert_array_equal(episode.observation["observation"][:, 1], steps)
            np.testing.assert_array_equal(episode.observation["observation"][:, 0], number)
            np.testing.assert_array_equal(episode.reward, steps)
            np.testing.assert_array_equal(episode.is_first, steps == 0)
            np.testing.assert_array_equal(episode.is_terminal, (steps == length) & (not truncated))
            np.testing.assert_array_equal(episode.action[0], 0)
            np.testing.assert_allclose(episode.action[1:], done[number * length : (number + 1) * length], atol=1e-6)


def test_an_episode_may_end_at_its_first_step(tiny: Any, counter: Any, tmp_path: Path) -> None:
    agent = tiny(counter(length=1)).learn(80)
    assert agent._n_updates > 0
    assert all(len(episode) == 2 for episode in agent.replay_buffer.episodes())
    agent.save(tmp_path / "short")
    dream = gym.make("Dream-v0", model=str(tmp_path / "short.zip"))
    assert dream.reset(seed=0)[0] in dream.observation_space


# -- how much is learnt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"train_ratio": 32.0}, 1 + 60),  # 32 replayed steps a decision, 32 in a batch: one update each
        ({"train_ratio": 8.0}, 1 + 15),
        ({"train_ratio": 64.0, "pretrain": 10}, 10 + 120),
        ({"train_freq": 10, "gradient_steps": 3}, 1 + 18),
        ({"train_freq": 1, "gradient_steps": 2, "train_ratio": 1.0}, 1 + 120),
    ],
)
def test_updates_follow_the_train_ratio_or_train_freq(
    tiny: Any, counter: Any, settings: dict[str, Any], updates: int
) -> None:
    agent = tiny(counter(length=0), learning_starts=41, **settings).learn(100)
    # The 40th decision brings `pretrain` updates, each of the 60 after it its share.
    assert abs(agent._n_updates - updates) <= 1
    assert agent.num_timesteps == 100


def test_many_environments_count_each_decision(tiny: Any) -> None:
    agent = tiny("CartPole-v1", n_envs=4, train_ratio=32.0).learn(100)
    assert agent.num_timesteps == 100
    assert abs(agent._n_updates - (1 + 64)) <= 4


def test_nothing_is_learnt_before_learning_starts(tiny: Any, counter: Any) -> None:
    agent = tiny(counter(length=0), learning_starts=60).learn(50)
    assert agent._n_updates == 0
    assert len(np.unique(agent.get_env().envs[0].unwrapped.actions)) > 40  # random actions


@pytest.mark.parametrize("schedule", [lambda left: 1e-3 * left, LinearSchedule(1e-3, 0.0, 1.0)], ids=["own", "sb3"])
def test_learning_rates_follow_the_schedule_in_proportion(tiny: Any, schedule: Any) -> None:
    watch = Watch()
    agent = tiny("CartPole-v1", learning_rate=schedule, actor_learning_rate=2e-4).learn(200, callback=watch)
    last = watch.rates[-1]
    assert 0 < last["world"] < 0.05 * 1e-3
    assert last["actor"] / last["world"] == pytest.approx(2e-4 / 1e-3)
    assert all(late["world"] <= early["world"] for early, late in zip(watch.rates, watch.rates[1:]))
    assert agent.lr_schedule(0.5) == pytest.approx(5e-4)


# -- learn ----------------------------------------------------------------------------------------------------


def test_callbacks_are_called_as_stable_baselines3_does(tiny: Any) -> None:
    watch = Watch()
    tiny().learn(3, callback=[watch])
    assert watch.hooks == ["start", *["rollout", "step", "rolled out"] * 3, "end"]
    stopped = Watch(stop_at=2)
    assert tiny().learn(3, callback=stopped).num_timesteps == 2
    assert stopped.hooks == ["start", "rollout", "step", "rolled out", "rollout", "step", "end"]


def test_learn_takes_floats_and_functions_and_goes_on(tiny: Any) -> None:
    seen: list[int] = []
    agent = tiny().learn(6e1, callback=lambda scope, _: seen.append(scope["self"].num_timesteps) or True)
    assert agent.num_timesteps == 60 == seen[-1]
    assert agent.learn(20, reset_num_timesteps=False, log_interval=None).num_timesteps == 80
    stored, updates = len(agent.replay_buffer), agent._n_updates
    assert agent.learn(20).num_timesteps == 20
    assert len(agent.replay_buffer) > stored
    assert agent._n_updates > updates


# -- every kind of environment --------------------------------------------------------------------------------


def _pictures() -> spaces.Box:
    return spaces.Box(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "observation",
    [
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Box(0, 1, (), np.float32),
        spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(0, 5, (), np.float64)),
        _pictures(),
        spaces.Dict(image=_pictures(), speed=spaces.Box(-1, 1, (2,))),
    ],
    ids=["float64", "scalar", "dict", "pictures", "both"],
)
def test_observations_of_every_kind(tiny: Any, counter: Any, observation: spaces.Space, tmp_path: Path) -> None:
    agent = tiny(counter(observation, length=9)).learn(60)
    assert agent._n_updates > 0
    again = type(agent).load(agent.save(tmp_path / "agent"))
    seen = observation.sample()
    np.testing.assert_array_equal(
        agent.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0]
    )


@pytest.mark.parametrize(
    "action",
    [
        spaces.Box(np.array([0, -10], np.float32), np.array([1, 30], np.float32)),
        spaces.Box(-2, 2, (1,), np.float64),
        spaces.Discrete(4, start=3),
        spaces.Discrete(2, start=-1),
    ],
    ids=["bounds", "float64", "from 3", "from -1"],
)
def test_actions_reach_the_environment_in_its_own_units(tiny: Any, counter: Any, action: spaces.Space) -> None:
    agent = tiny(counter(action=action)).learn(120)  # the environment asserts that they are in its space
    done = np.array(agent.get_env().envs[0].unwrapped.actions, float)
    if isinstance(action, spaces.Discrete):
        assert set(done) == set(range(action.start, action.start + action.n))
    else:
        assert (done.min(0) < action.low + 0.2 * (action.high - action.low)).all()
        assert (done.max(0) > action.low + 0.8 * (action.high - action.low)).all()


def test_random_actions_are_held(tiny: Any, counter: Any) -> None:
    agent = tiny(counter(length=300), learning_starts=300, hold=20).learn(300)
    done = np.array(agent.get_env().envs[0].unwrapped.actions)[:, 0]
    lengths = np.diff(np.flatnonzero(np.diff(done, prepend=np.inf)))
    assert lengths.max() <= 20
    assert 7 < lengths.mean() < 14


def test_slips_take_the_place_of_the_policy_and_are_held_half_of_them_at_the_bounds(tiny: Any, counter: Any) -> None:
    settings = {"learning_starts": 2000, "exploration_noise": 0.0}
    agent = tiny(counter(length=500, action=spaces.Box(-1, 1, (3,), np.float32)), hold=40, slips=0.05, **settings)
    agent._setup_learn(1200, None)
    agent._begin_episodes()
    chosen, slipped = torch.full((1, 3), 0.25), []
    for _ in range(1200):
        slipped.append(agent._explore(chosen)[0].numpy())
    done = np.array(slipped)
    slips = (done != 0.25).all(1)
    begins = slips & (np.diff(done, axis=0, prepend=0.25) != 0).all(1)
    assert (done[~slips] == 0.25).all()
    assert 0.4 < slips.mean() < 0.62  # 20.5 decisions of slipping, 20 of not
    assert 13 < slips.sum() / begins.sum() < 28
    assert 0.25 < (abs(done[begins]) == 1).all(1).mean() < 0.75


def test_discrete_actions_slip_no_more_often_for_being_noisy_too(tiny: Any, counter: Any) -> None:
    settings = {"learning_starts": 2000, "exploration_noise": 0.01, "hold": 40, "slips": 0.01}
    agent = tiny(counter(length=500, action=spaces.Discrete(20)), **settings)
    agent._setup_learn(1500, None)
    agent._begin_episodes()
    chosen = torch.eye(20)[:1]
    others = [not torch.equal(agent._explore(chosen), chosen) for _ in range(1500)]
    assert 0.05 < np.mean(others) < 0.4  # a sixth by slips, which last 20.5 decisions, and a hundredth by noise


def test_the_same_agent_learns_in_an_id_an_env_and_a_vec_env(tiny: Any) -> None:
    for env in (
        make_env("CartPole-v1"),
        gym.make("CartPole-v1"),
        make_vec("CartPole-v1", 2),
        Monitor(gym.make("CartPole-v1")),
    ):
        agent = tiny(env).learn(60)
        assert agent._n_updates > 0
        assert len(agent.ep_info_buffer) > 0  # monitored, once
    assert [Monitor, gym.wrappers.TimeLimit] == [type(agent.get_env().envs[0]), type(agent.get_env().envs[0].env)]


def test_vec_env_wrappers_work_and_pictures_stay_hwc(tiny: Any, counter: Any) -> None:
    normalised = VecNormalize(make_vec("CartPole-v1", 2, seed=0))
    assert tiny(normalised).learn(60).get_vec_normalize_env() is normalised
    pictures = VecTransposeImage(DummyVecEnv([lambda: counter(_pictures())]))
    agent = tiny(pictures).learn(60)
    assert agent.observation_space.shape == (64, 64, 3)


def test_the_same_agent_learns_in_a_dream(tiny: Any, tmp_path: Path) -> None:
    path = str(tiny("CartPole-v1").learn(80).save(tmp_path / "world"))
    inside = tiny(VecMonitor(DreamVecEnv(3, path, horizon=20))).learn(90)
    assert inside._n_updates > 0
    assert len(inside.ep_info_buffer) > 0
    inside.save(tmp_path / "inside")

    by_id = tiny("Dream-v0", env_kwargs={"model": path, "horizon": 20}, n_envs=2).learn(90)
    assert by_id._n_updates > 0
    assert by_id.observation_space == by_id.world.observation_space
    by_id.save(tmp_path / "by_id", include=["replay_buffer"])
    again = type(by_id).load(tmp_path / "by_id").learn(10, reset_num_timesteps=False)
    assert again.num_timesteps == 100
    assert again.get_env().envs[0].unwrapped.world.action_space == spaces.Discrete(2)


def test_set_env_moves_the_agent(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1").learn(50)
    agent.set_env(make_env("CartPole-v1"))
    agent.learn(20, reset_num_timesteps=False)
    assert agent.num_timesteps == 70
    agent.save(tmp_path / "own")  # nothing is known of how that environment was made
    with pytest.raises(ValueError, match=r"no environment to learn in: call set_env\(env\) first"):
        type(agent).load(tmp_path / "own").learn(10)
    agent.set_env("CartPole-v1")
    assert agent.learn(10, reset_num_timesteps=False).num_timesteps == 80


def test_action_repeat_reaches_the_environment_and_the_log(tiny: Any) -> None:
    agent = tiny("CartPole-v1", action_repeat=3, verbose=0)
    assert agent.action_repeat == 3
    agent.learn(30)
    assert {info["l"] for info in agent.ep_info_buffer} <= set(range(1, 31))
    assert all(info["r"] >= 3 * (info["l"] - 1) for info in agent.ep_info_buffer)
    assert tiny("dm_control/cartpole-balance-v0").action_repeat == 2


# -- when something fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("observation", ValueError, "After 59 decisions .* NaN .*Mend the environment"),
        ("reward", ValueError, "'reward' of environment 0 is NaN"),
        ("first", ValueError, "NaN .*call learn again"),
        ("error", RuntimeError, "the simulator has crashed"),
    ],
)
def test_what_the_environment_breaks_leaves_the_agent_whole(
    tiny: Any, counter: Any, tmp_path: Path, bad: str, error: type[Exception], words: str
) -> None:
    agent = tiny(counter(length=20, bad=bad, bad_at=60))
    with pytest.raises(error, match=words):
        agent.learn(100)
    assert agent.num_timesteps == 59
    batch = agent.replay_buffer.sample(64, 8)
    assert np.isfinite(batch.observation["observation"].numpy()).all()
    assert np.isfinite(batch.reward.numpy()).all()
    assert all(value.isfinite().all() for value in agent.policy.state_dict().values())
    again = type(agent).load(agent.save(tmp_path / "whole"))
    assert again._n_updates == agent._n_updates > 0
    agent.learn(41, reset_num_timesteps=False)
    assert agent.num_timesteps == 100
    for episode in agent.replay_buffer.episodes():  # what follows the break is not joined to what came before it
        np.testing.assert_array_equal(episode.observation["observation"][:, 1], np.arange(len(episode)))
