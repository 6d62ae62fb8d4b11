"""What files tell of their real environment, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from agents import Dreamer
from benchmarks.reliability.fuzz import TINY
from wmgym import load_model
from wmgym.facts import episode_limit, make_arguments, registered_limit
from wmgym.real import remake_env
from wmgym.trust.report import open_real


class Short(gym.Env):
    """Ends by itself after 5 steps, and is cut by nothing."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 5, False, {}


def saved(agent: Dreamer, path: Path) -> Path:
    return agent.learn(60).save(path, include=["replay_buffer"])


def test_episodes_that_ended_by_themselves_are_no_limit(tmp_path: Path) -> None:
    """Or a dream, and each real episode of a report, would be cut where the first poor policies fell."""
    assert episode_limit(load_model(saved(Dreamer(Short(), **TINY), tmp_path / "short.zip")).env) is None
    cartpole = load_model(saved(Dreamer("CartPole-v1", **TINY), tmp_path / "cartpole.zip"))
    assert episode_limit(cartpole.env) == 500
    assert gym.make("Dream-v0", model=cartpole).unwrapped._dreams.horizon == 500


def test_episodes_that_were_cut_are(tmp_path: Path) -> None:
    env = gym.wrappers.TimeLimit(Short(), 4)
    assert episode_limit(load_model(saved(Dreamer(env, **TINY), tmp_path / "cut.zip")).env) == 4


def test_a_time_limit_of_the_user_comes_back(tmp_path: Path) -> None:
    settings = {"max_episode_steps": 30, "action_repeat": 2}
    path = saved(Dreamer("Pendulum-v1", env_kwargs=settings, **TINY), tmp_path / "pendulum.zip")
    agent = Dreamer.load(path, device="cpu")
    assert agent.env_settings is not None
    assert agent.env_settings["max_episode_steps"] == 30
    agent.learn(40, reset_num_timesteps=False)
    assert {info["l"] for info in agent.ep_info_buffer or ()} == {15}
    assert episode_limit(load_model(path).env) == 15


def test_the_environment_of_an_agent_with_processes_of_its_own_is_made_without(tmp_path: Path) -> None:
    """`Dreamer(id, env_kwargs={"subprocess": True})` is judged like any other."""
    facts = {"id": "CartPole-v1", "subprocess": True, "guarded": True, "timeout": 9.0, "episode_limit": 500}
    assert make_arguments(facts) == {"id": "CartPole-v1", "subprocess": True, "guarded": True, "timeout": 9.0}
    assert remake_env(facts).spec.id == "CartPole-v1"
    assert remake_env(facts, "Pendulum-v1").spec.id == "Pendulum-v1"
    path = saved(Dreamer("CartPole-v1", env_kwargs={"guarded": True}, **TINY), tmp_path / "guarded.zip")
    open_real(None, load_model(path)).close()


def test_older_files_name_the_limit_otherwise() -> None:
    facts = {"id": "CartPole-v1", "max_episode_steps": 500}
    assert episode_limit(facts) == 500
    assert make_arguments(facts) == {"id": "CartPole-v1"}


def test_what_cannot_be_made_again() -> None:
    with pytest.raises(ValueError, match="does not tell how its real environment was made: give it, env="):
        remake_env({"episode_limit": 5})
    with pytest.raises(ValueError, match="could not keep the environment's wind"):
        remake_env({"id": "CartPole-v1", "lost": ["wind"]})
    for limit in (0, -3, 2.5, True, "long"):
        with pytest.raises(ValueError, match="episode_limit must be a whole number"):
            episode_limit({"episode_limit": limit})


def test_an_id_that_names_its_module_has_its_limit() -> None:
    assert registered_limit({"id": "gymnasium.envs.classic_control:CartPole-v1"}, 2) == 250
