"""The tools of stable-baselines3 work on these agents as on its own; dreams pass both checkers."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import Dreamer
from wmgym import make_env
from wmgym.real import make_vec

# -- callbacks ------------------------------------------------------------------------------------------------


def test_evaluate_policy(tiny: Any) -> None:
    agent = tiny("CartPole-v1").learn(60)
    for env in (agent.get_env(), make_vec("CartPole-v1", 3), make_env("CartPole-v1")):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Evaluation environment is not wrapped with a")
            returns, lengths = evaluate_policy(agent, env, n_eval_episodes=3, return_episode_rewards=True)
        assert returns == lengths  # CartPole gives 1 a step
        assert len(returns) == 3


def test_eval_callback_saves_the_best_model(tiny: Any, tmp_path: Path) -> None:
    env = make_vec("test/Reach-v0", 2, seed=5)
    callback = EvalCallback(
        env, best_model_save_path=str(tmp_path), log_path=str(tmp_path), eval_freq=50, n_eval_episodes=4, verbose=0
    )
    tiny("test/Reach-v0").learn(150, callback=callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [50, 100, 150]
    assert evaluations["results"].shape == evaluations["ep_lengths"].shape == (3, 4)
    best = Dreamer.load(tmp_path / "best_model.zip", device="cpu")
    assert best.num_timesteps == (50, 100, 150)[int(evaluations["results"].mean(1).argmax())]


def test_what_a_callback_saved_learns_on_without_its_replay(tiny: Any, tmp_path: Path) -> None:
    """Of updates that it was owed nothing is left to learn from."""

    def save(scope: dict[str, Any], _: Any) -> bool:
        if scope["self"].num_timesteps == 50:
            scope["self"].save(tmp_path / "agent.zip")
        return True

    tiny("CartPole-v1", train_ratio=32.0).learn(60, callback=save)
    agent = Dreamer.load(tmp_path / "agent.zip", env="CartPole-v1", device="cpu")
    owed = agent._n_updates
    assert agent.learn(60).num_timesteps == 60
    assert agent._n_updates > owed
    assert Dreamer.load(tmp_path / "agent.zip", device="cpu").learn(0).num_timesteps == 0


def test_training_stops_at_a_reward(tiny: Any) -> None:
    stop = StopTrainingOnRewardThreshold(reward_threshold=1.0)
    callback = EvalCallback(make_vec("CartPole-v1"), callback_on_new_best=stop, eval_freq=30, verbose=0)
    assert tiny("CartPole-v1").learn(200, callback=callback).num_timesteps == 30


def test_training_stops_after_episodes(tiny: Any, counter: Any) -> None:
    agent = tiny(counter(length=7)).learn(200, callback=StopTrainingOnMaxEpisodes(max_episodes=4))
    assert agent.num_timesteps == 28


def test_checkpoints_of_a_callback_load_and_go_on_as_the_run_did(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    callback = CheckpointCallback(save_freq=60, save_path=str(tmp_path), save_replay_buffer=True)
    unbroken = tiny("CartPole-v1").learn(140, callback=callback)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rl_model_120_steps.zip", "rl_model_60_steps.zip",
        "rl_model_replay_buffer_120_steps.pkl", "rl_model_replay_buffer_60_steps.pkl",
    ]  # fmt: skip
    for steps in (60, 120):
        agent = Dreamer.load(tmp_path / f"rl_model_{steps}_steps", device="cpu")
        agent.load_replay_buffer(tmp_path / f"rl_model_replay_buffer_{steps}_steps.pkl")
        assert agent.num_timesteps == steps
        assert_same(agent.learn(140 - steps, reset_num_timesteps=False), unbroken)


@pytest.mark.parametrize("asked", ["argument", "callback"])
def test_the_progress_bar_reaches_its_end(tiny: Any, asked: str, capfd: pytest.CaptureFixture[str]) -> None:
    agent = tiny("CartPole-v1")
    if asked == "argument":
        agent.learn(60, progress_bar=True)
    else:
        agent.learn(60, callback=ProgressBarCallback())
    shown = "".join(capfd.readouterr())
    assert "100%" in shown
    assert "60/60" in shown


# -- logs -----------------------------------------------------------------------------------------------------

KEYS = {
    "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/env_steps", "train/learning_rate",
    "train/actor_loss", "train/critic_loss", "train/reward_loss", "train/kl",
}  # fmt: skip


def test_logs_as_csv(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("test/Reach-v0", action_repeat=2)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(100, log_interval=1)
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[-1]) >= KEYS | {"time/total_timesteps", "time/episodes", "train/n_updates"}
    assert [int(row["time/total_timesteps"]) for row in rows] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert [int(row["time/env_steps"]) for row in rows] == [int(row["time/total_timesteps"]) * 2 for row in rows]
    assert float(rows[-1]["rollout/ep_len_mean"]) == 10
    assert all(np.isfinite(float(rows[-1][key])) for key in KEYS)
    assert rows[0]["train/actor_loss"] == ""  # nothing was learnt yet


@pytest.mark.parametrize("make", [
    lambda: "test/Reach-v0",
    lambda: make_env("test/Reach-v0", action_repeat=4),
    lambda: make_vec("test/Reach-v0", 2, action_repeat=4),
    lambda: make_vec("Pendulum-v1", 2, subprocess=True, action_repeat=4),
    lambda: gym.make("test/Reach-v0"),
])  # fmt: skip
def test_simulator_steps_are_counted_for_environments_of_any_kind(tiny: Any, make: Any) -> None:
    env = make()
    agent = tiny(env, **({"action_repeat": 4} if isinstance(env, str) else {}))
    assert agent.action_repeat == (1 if isinstance(env, gym.Env) and not env.has_wrapper_attr("repeat") else 4)
    agent.env.close()


def test_logs_for_tensorboard_go_on_in_the_same_run(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("test/Reach-v0", tensorboard_log=str(tmp_path)).learn(60, log_interval=1)
    agent.learn(40, log_interval=1, reset_num_timesteps=False)
    assert [folder.name for folder in tmp_path.iterdir()] == ["Dreamer_1"]
    events = EventAccumulator(str(tmp_path / "Dreamer_1")).Reload()
    assert set(events.Tags()["scalars"]) >= KEYS
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [20, 40, 60, 80, 100]
    agent.learn(20, log_interval=1, tb_log_name="again")
    assert {folder.name for folder in tmp_path.iterdir()} == {"Dreamer_1", "again_1"}


def test_the_table_is_printed_when_verbose(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("test/Reach-v0", verbose=1).learn(60, log_interval=2)
    assert "ep_rew_mean" in capsys.readouterr().out
    tiny("test/Reach-v0", verbose=1).learn(60, log_interval=None)
    assert "ep_rew_mean" not in capsys.readouterr().out


def test_success_rates_are_logged(tiny: Any, counter: Any, tmp_path: Path) -> None:
    class Judged(counter):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            *seen, info = super().step(action)
            return (*seen, {**info, "is_success": self.episode % 2 == 0})

    agent = tiny(Judged(length=10))
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(80, log_interval=4)
    with open(tmp_path / "progress.csv") as file:
        assert [float(row["rollout/success_rate"]) for row in csv.DictReader(file)] == [0.5, 0.5]


def test_a_callback_every_n_steps(tiny: Any) -> None:
    called: list[int] = []
    note = ConvertCallback(lambda scope, _: called.append(scope["self"].num_timesteps) or True)
    tiny("CartPole-v1", n_envs=5).learn(100, callback=EveryNTimesteps(25, note))
    assert called == [25, 50, 75, 100]


# -- checkers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("dm_control/cartpole-balance-v0", {}),
        ("CartPole-v1", {}),
        ("CartPole-v1", {"observation": "pixels", "train_ratio": 2.0}),
        ("CartPole-v1", {"observation": "both", "train_ratio": 2.0}),
    ],
    ids=["state", "state, ends", "pixels", "both"],
)
def test_dreams_of_a_trained_world_pass_both_checkers_without_a_warning(
    tiny: Any, tmp_path: Path, env: str, settings: dict[str, Any]
) -> None:
    agent = tiny(env, **settings).learn(70)
    assert agent._n_updates > 0
    path = agent.save(tmp_path / "world")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dream = gym.make("Dream-v0", model=str(path))
        gymnasium_check_env(dream.unwrapped)
        sb3_check_env(gym.make("Dream-v0", model=str(path)))
        latent = gym.make("Dream-v0", model=str(path), observation="latent")
        gymnasium_check_env(latent.unwrapped)
        sb3_check_env(latent)
    assert dream.observation_space == agent.observation_space
    assert dream.unwrapped.metadata["render_modes"] == ["rgb_array"]
