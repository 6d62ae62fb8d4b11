"""PlaNet: its schedule, what it carries, and everything that the other agents can do."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from agents import PlaNet
from agents.planners import CEM, MPPI, RandomShooting
from wmgym.real import make_vec
from wmgym.worlds.family import DYNAMICS

SMALL: dict[str, Any] = {
    "deter": 16, "stoch": 4, "units": 16, "depth": 4, "batch_size": 4, "batch_length": 8, "horizon": 4,
    "candidates": 24, "elites": 4, "iterations": 2, "seed_episodes": 2, "updates_per_episode": 5, "seed": 0,
    "device": "cpu",
}  # fmt: skip
HALF, WHOLE = 70, 130

VARIANTS: dict[str, dict[str, Any]] = {
    "continuous": {"env": "test/Reach-v0"},
    "warm start": {"env": "test/Reach-v0", "warm_start": True},
    "in units, in the means, normalised": {
        "env": "test/Reach-v0", "standardize": True, "temperature": 0.0, "act": "silu", "norm": "layer",
    },
    "discrete, two environments": {"env": "CartPole-v1", "n_envs": 2, "seed_episodes": 3},
    "discrete, warm start": {"env": "CartPole-v1", "warm_start": True},
    "learning as the others do": {
        "env": "test/Reach-v0", "updates_per_episode": None, "train_ratio": 8.0, "learning_starts": 40,
        "seed_episodes": 0,
    },
    "average": {"ema": 0.9, "standardize": True},
}  # fmt: skip


def small(env: Any = "test/Reach-v0", **changes: Any) -> PlaNet:
    return PlaNet(env, **{**SMALL, **changes})


@pytest.fixture(params=VARIANTS, ids=VARIANTS.keys())
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


# -- the schedule ---------------------------------------------------------------------------------------------


def test_seed_episodes_are_random_and_updates_come_between_episodes() -> None:
    agent, updates, planned = small(), [], []
    plan = agent.policy.step
    agent.policy.step = lambda *args, **kwargs: planned.append(agent.num_timesteps) or plan(*args, **kwargs)
    agent.learn(100, callback=lambda scope, _: updates.append(scope["self"]._n_updates) or True)
    # Episodes have 20 steps; a step's updates follow its callback.
    assert updates == [0] * 40 + [5] * 20 + [10] * 20 + [15] * 20
    assert agent._n_updates == 20
    assert planned == list(range(40, 100))


def test_exploration_is_noise_on_the_plan() -> None:
    quiet, loud = small(exploration_noise=0.0), small(exploration_noise=0.3)
    action = torch.zeros(1, 1)
    assert torch.equal(quiet._explore(action), action)
    draws = torch.cat([loud._explore(action) for _ in range(400)])
    assert draws.std().item() == pytest.approx(0.3, rel=0.15)
    assert loud._explore(torch.ones(1, 1)).item() <= 1


def test_the_defaults_are_the_papers() -> None:
    agent = PlaNet("Pendulum-v1", seed=0)
    world = agent.world_config
    assert agent.search == CEM(horizon=12, candidates=1000, iterations=10, elites=100)
    assert (agent.seed_episodes, agent.updates_per_episode, agent.batch_size, agent.batch_length) == (5, 100, 50, 50)
    assert (world.free_nats, world.free_per_step, world.reward_scale, world.kl_balance) == (3.0, True, 10.0, None)
    assert (world.deter, world.stoch, world.min_std, world.picture_bits, world.continues) == (200, 30, 0.1, 5, None)
    assert (world.latent_overshooting, world.observation_overshooting, world.global_prior) == (1, 0, 0.0)
    assert {(part.act, part.norm) for part in (world, world.encoder, world.decoder)} == {("relu", "none")}
    assert (agent.learning_rate, agent.clip, agent.exploration_noise) == (1e-3, 1000.0, 0.3)


@pytest.mark.parametrize(("name", "kind"), [("cem", CEM), ("mppi", MPPI), ("random", RandomShooting)])
def test_planners_by_name(name: str, kind: type) -> None:
    agent = small(planner=name, iterations=None).learn(45)
    assert type(agent.policy.planner) is kind
    assert agent.policy.planner.iterations == (1 if name == "random" else 10)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_every_dynamics_with_every_objective_learns_and_dreams(dynamics: str, tmp_path: Path) -> None:
    objectives = {"latent_overshooting": 3, "observation_overshooting": 2, "global_prior": 0.1}
    agent = small(dynamics=dynamics, **objectives).learn(60)
    assert type(agent.world) is DYNAMICS[dynamics]
    assert agent._n_updates == 10
    path = agent.save(tmp_path / "agent")
    seen = np.zeros((2, 2), np.float32)
    again = PlaNet.load(path)
    np.testing.assert_array_equal(
        again.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(gym.make("Dream-v0", model=str(path)).unwrapped)
        sb3_check_env(gym.make("Dream-v0", model=str(path)))


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        ("dynamics", "lstm"),
        ("planner", "cme"),
        ("elites", 25),
        ("horizon", 0),
        ("seed_episodes", -1),
        ("updates_per_episode", 0),
        ("temperature", -0.5),
        ("image", "patchs"),
        ("picture_scale", -1.0),
        ("picture_share", 1.5),
        ("ema", 1.0),
    ],
)
def test_arguments_that_cannot_be_are_named(wrong: str, value: Any) -> None:
    with pytest.raises(ValueError, match=wrong):
        small(**{wrong: value})


@pytest.mark.parametrize("ignored", [{"train_ratio": 16.0}, {"train_freq": 1, "gradient_steps": 50}])
def test_updates_an_episode_leave_no_room_for_a_ratio(ignored: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"PlaNet has no use for {next(iter(ignored))}"):
        small(**ignored)


@pytest.mark.parametrize("change", [{"horizon": 6}, {"warm_start": True}])
def test_a_run_goes_on_with_plans_of_another_kind(change: dict[str, Any], tmp_path: Path) -> None:
    agent = small(warm_start="horizon" in change).learn(60)
    path = agent.save(tmp_path / "agent", include=["replay_buffer"])
    again = PlaNet.load(path, device="cpu", **change)
    assert again.learn(5, reset_num_timesteps=False).num_timesteps == 65
    assert again.predict(np.zeros((1, 2), np.float32))[1][-2].shape == (1, again.horizon, 1)


def test_the_world_is_the_average_of_what_learns() -> None:
    agent = small(ema=0.9, standardize=True)
    means, learner_weights = [], []
    average = agent._average

    def noted() -> None:
        average()
        learner_weights.append(torch.nn.utils.parameters_to_vector(agent.learner.parameters()).detach())
        means.append(torch.nn.utils.parameters_to_vector(agent.world.parameters()).detach())

    agent._average = noted
    agent.learn(300)
    assert len(means) == agent._n_updates > 50
    expected = means[0]
    for n, (mean, weights) in enumerate(zip(means[1:], learner_weights[1:]), start=1):
        share = max(0.1, 9 / (10 + n))
        expected = (1 - share) * expected + share * weights
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(means[-1], learner_weights[-1])
    for mine, learnt in zip(agent.world.buffers(), agent.learner.buffers(), strict=True):
        assert torch.equal(mine, learnt)


# -- acting ---------------------------------------------------------------------------------------------------


def test_deterministic_predictions_repeat_and_do_not_touch_the_run(variant: dict[str, Any]) -> None:
    agent = small(**variant).learn(60)
    before = agent.policy.generator.get_state()
    seen = agent.get_env().reset()
    seen = np.concatenate([seen, seen + 0.1])
    one, two = (agent.predict(seen, deterministic=True) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    assert torch.equal(before, agent.policy.generator.get_state())
    for i, row in enumerate(seen):  # as for each alone
        np.testing.assert_allclose(agent.predict(row, deterministic=True)[0], one[0][i], rtol=1e-3, atol=1e-4)


def test_a_warm_start_is_carried_and_forgotten_at_a_beginning() -> None:
    agent = small(warm_start=True, iterations=1).learn(60)
    seen = np.zeros((1, 2), np.float32)
    first, state = agent.predict(seen, deterministic=True)
    assert state[-2].shape == (1, 4, 1)
    later, _ = agent.predict(seen, state, np.array([False]), deterministic=True)
    again, _ = agent.predict(seen, state, np.array([True]), deterministic=True)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)


# -- as the other agents --------------------------------------------------------------------------------------


def test_the_seed_decides_everything(variant: dict[str, Any], assert_same: Any) -> None:
    one, two, other = (small(**{**variant, "seed": seed}).learn(100) for seed in (3, 3, 4))
    assert one._n_updates > 5
    assert_same(one, two)
    assert not torch.equal(one.replay_buffer.sample(9, 8).action, other.replay_buffer.sample(9, 8).action)


def test_a_resumed_run_equals_an_unbroken_one(variant: dict[str, Any], assert_same: Any, tmp_path: Path) -> None:
    path = small(**variant).learn(HALF).save(tmp_path / "half", include=["replay_buffer"])
    again = PlaNet.load(path, device="cpu").learn(WHOLE - HALF, reset_num_timesteps=False)
    unbroken = small(**variant).learn(WHOLE)
    assert unbroken._n_updates > 5
    assert_same(again, unbroken)


def test_watching_and_saving_do_not_change_the_run(assert_same: Any, tmp_path: Path) -> None:
    watched = EvalCallback(make_vec("test/Reach-v0", seed=9), n_eval_episodes=2, eval_freq=50, verbose=0)
    saved = CheckpointCallback(40, str(tmp_path), save_replay_buffer=True)  # the last step of an episode
    watched_run = small().learn(100, callback=[watched, saved])
    assert_same(watched_run, small().learn(100))
    again = PlaNet.load(tmp_path / "rl_model_40_steps", device="cpu")
    again.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps.pkl")
    assert_same(again.learn(60, reset_num_timesteps=False), watched_run)


def test_evaluate_policy_and_logs(tmp_path: Path) -> None:
    agent = small()
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(100, log_interval=1)
    returns, lengths = evaluate_policy(agent, make_vec("test/Reach-v0", 3), 3, return_episode_rewards=True)
    assert lengths == [20, 20, 20]
    assert np.isfinite(returns).all()
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["time/total_timesteps"]) for row in rows] == [20, 40, 60, 80, 100]
    assert all(np.isfinite(float(rows[-1][f"train/{key}"])) for key in ("observation_loss", "reward_loss", "kl"))


@pytest.mark.parametrize("image", ["dreamer", "patches"])
def test_from_pictures(image: str, needs_rendering: None) -> None:
    settings = {"image": image, "picture_scale": 4.0, "picture_share": 0.5}
    agent = small("CartPole-v1", observation="pixels", batch_size=2, updates_per_episode=1, **settings).learn(60)
    assert agent._n_updates >= 1
    assert agent.world_config.picture_bits == 5
    assert agent.world_config.encoder.image == agent.world_config.decoder.image == image
    assert (agent.world_config.picture_scale, agent.world_config.picture_share) == (4.0, 0.5)


# -- learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_it_clearly_beats_chance(discrete: bool) -> None:
    settings = {"env_kwargs": {"discrete": discrete}, "deter": 32, "units": 32, "updates_per_episode": 20}
    search = {"candidates": 40, "elites": 6, "iterations": 2, "horizon": 5}
    agent = small(**settings, **search, batch_size=8, batch_length=12, vector_scale=10.0, free_nats=0.5).learn(320)
    env = make_vec("test/Reach-v0", 10, seed=100, discrete=discrete)
    learnt, _ = evaluate_policy(agent, env, 10)
    chance, _ = evaluate_policy(small(**settings), env, 10)  # plans in a world that knows nothing
    # At best the return is about 18.5: the way there takes 3 of 20 steps.
    assert learnt > chance + 0.5 * (18.5 - chance)


def test_updates_that_a_file_owes_are_those_that_were_earned(tmp_path: Path) -> None:
    """A callback saves before the step's updates; in another environment, which was just reset, they stay as many."""

    def save(scope: dict[str, Any], _: Any) -> bool:
        agent = scope["self"]
        if agent.num_timesteps == 50:  # mid-episode
            agent.save(tmp_path / "agent.zip", include=["replay_buffer"])
        return True

    agent = small().learn(50, callback=save)
    again = PlaNet.load(tmp_path / "agent.zip", env=make_vec("test/Reach-v0"), device="cpu")
    again.learn(5, reset_num_timesteps=False)
    assert again._n_updates == agent._n_updates > 0
