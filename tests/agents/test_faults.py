"""Training through environments that fail. `benchmarks.reliability.faults` goes through 20 000 decisions of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

from benchmarks.reliability.faults import foreign_steps, train
from wmgym.guarded import FaultyEnvironmentError, Guarded
from wmgym.replay import SequenceReplay
from wmgym.spaces import as_dict
from wmgym.supervised import SupervisedVecEnv


def test_every_fault_is_named_and_none_reaches_the_replay(tmp_path: Path) -> None:
    result = train(800, tmp_path, subprocess=False, luck=0)
    assert result["decisions"] == 800
    assert result["injected"] == result["named"]
    assert sum(count > 0 for count in result["injected"].values()) >= 3
    assert result["foreign"] == 0
    assert result["updates"] > 20
    assert result["skipped_updates"] == 0


def test_the_check_of_the_replay_sees_a_foreign_step(tiny: Any, counter: Any) -> None:
    env = gym.make("benchmarks.reliability.environments:Faulty-v0", chances={}, record="/dev/null")
    replay = SequenceReplay(50, env.observation_space, env.action_space)
    no, yes = np.array([False]), np.array([True])
    replay.add(as_dict(np.zeros((1, 3))), np.zeros((1, 1)), [0], yes, no)
    replay.add(as_dict(np.ones((1, 3))), np.zeros((1, 1)), [1], no, no)
    assert foreign_steps(replay) == 0
    replay.add(as_dict(np.ones((1, 3))), np.zeros((1, 1)), [0], no, no)  # a last observation seen twice
    assert foreign_steps(replay) == 1


class Dying(gym.Wrapper):
    """CartPole that ends its process in the step after it finds the file `trap`, which it removes."""

    def __init__(self, trap: Path) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.trap = trap

    def step(self, action: Any) -> Any:
        if self.trap.exists():
            self.trap.unlink()
            os._exit(5)
        return self.env.step(action)


def test_a_cut_episode_is_a_truncation_in_the_replay(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trap = tmp_path / "trap"
    env = SupervisedVecEnv([lambda: Monitor(Dying(trap))], start_method="fork")
    agent = tiny(env)

    def set_trap(scope: dict[str, Any], _: Any) -> bool:
        if scope["self"].num_timesteps == 47:
            trap.touch()
        return True

    agent.learn(70, set_trap)
    env.close()
    assert caplog.messages == [
        "Environment 0, decision 48: its process died (exit code 5). Its episode was cut.",
    ]
    assert agent._env_faults == 1
    episodes = list(agent.replay_buffer.episodes())
    (cut,) = (episode for episode in episodes if not episode.is_terminal.any())
    assert all(episode.is_terminal[-1] for episode in episodes if episode is not cut)
    assert (cut.reward[1:] == 1).all()  # the step that failed, with its reward of 0, is not there
    assert len(agent.replay_buffer) == 70 - 1 + 1 + agent._episode_num


def test_an_environment_that_only_fails_stops_training_with_the_agent_whole(tiny: Any, counter: Any) -> None:
    class Broken(counter):  # type: ignore[misc]
        broken = False

        def step(self, action: Any) -> Any:
            if Broken.broken:
                raise RuntimeError("the simulator has crashed")
            return super().step(action)

    def break_it(scope: dict[str, Any], _: Any) -> bool:
        Broken.broken = scope["self"].num_timesteps >= 50
        return True

    agent = tiny(Guarded(lambda: Monitor(Broken()), patience=3))
    with pytest.raises(FaultyEnvironmentError, match=r"failed 4 times.*the simulator has crashed"):
        agent.learn(90, break_it)
    Broken.broken = False
    assert agent.learn(20, reset_num_timesteps=False).num_timesteps == 73  # 50, 3 that failed, 20


def test_the_log_counts_faults(tiny: Any, tmp_path: Path) -> None:
    record = tmp_path / "faults"
    options = {"chances": {"nan": 0.05}, "record": str(record), "luck": 0, "guarded": True}
    agent = tiny("benchmarks.reliability.environments:Faulty-v0", env_kwargs=options)
    agent.set_logger(configure(str(tmp_path), ["json"]))
    agent.learn(120)
    agent.dump_logs()
    assert agent._env_faults == len(record.read_text().splitlines()) > 0
    assert f'"rollout/env_faults": {agent._env_faults}' in (tmp_path / "progress.json").read_text()
