"""Worlds of several agents judged by the same episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents import PlaNet
from agents.zoo.compare import compare, main, table
from wmgym.trust import simple_policies
from wmgym.trust.episodes import LivedEpisode, Returnable, record_episodes

SMALL: dict[str, Any] = {
    "deter": 16, "stoch": 4, "units": 16, "batch_size": 4, "batch_length": 8, "horizon": 3, "candidates": 8,
    "elites": 2, "iterations": 1, "seed_episodes": 1, "updates_per_episode": 1, "seed": 0, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("agents")
    made = {name: PlaNet("CartPole-v1", dynamics=name, **SMALL).learn(40) for name in ("rssm", "ssm")}
    return [str(agent.save(folder / f"{name}.zip")) for name, agent in made.items()]


@pytest.fixture(scope="module")
def episodes() -> list[LivedEpisode]:
    env = Returnable(gym.make("CartPole-v1"))
    return record_episodes(env, {"random": simple_policies(env.action_space, 0)["random"]}, 6, seed=0, max_steps=50)


def test_a_table_a_plot_and_the_curves_are_written(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--episodes", "2", "--horizon", "6", "--max-steps", "20", "--out", str(tmp_path)]
    assert main([*files, *given]) == 0
    written = json.loads((tmp_path / "worlds.json").read_text())
    assert written["env"] == "CartPole-v1"
    assert set(written["worlds"]) == {"rssm", "ssm", "persistence"}
    assert set(written["returns"]) == {"rssm", "ssm", "random"}
    assert all(len(curves["observation"]) == 6 for curves in written["worlds"].values())
    assert (tmp_path / "worlds.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "| rssm |" in printed
    assert "observation, 5" in printed
    assert "observation, 15" not in printed


def test_a_world_that_was_taught_foretells_better_than_one_that_was_not(episodes: list[LivedEpisode]) -> None:
    agent = PlaNet("CartPole-v1", **{**SMALL, "updates_per_episode": 40}).learn(300)
    untaught = PlaNet("CartPole-v1", **SMALL).world
    found = compare({"taught": agent.world, "new": untaught}, episodes, horizon=5)
    assert found["taught"]["observation"][0] < 0.9 * found["new"]["observation"][0]
    assert "taught" in table(found)


def test_all_worlds_meet_the_same_windows_and_the_same_persistence(episodes: list[LivedEpisode]) -> None:
    world = PlaNet("CartPole-v1", **SMALL).world
    found = compare({"one": world, "other": world}, episodes, horizon=5)
    assert found["one"] == found["other"]
    assert found["persistence"]["observation"][0] > 0


def test_files_that_cannot_be_compared_are_named(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = PlaNet("Pendulum-v1", **SMALL).save(tmp_path / "pendulum.zip")
    assert main([files[0], str(other), "--out", str(tmp_path)]) == 2
    assert "pendulum was trained on other spaces than rssm" in capsys.readouterr().err
    assert main([files[0], files[0], "--out", str(tmp_path)]) == 2
    assert "one name" in capsys.readouterr().err
    assert main([str(tmp_path / "none.zip"), "--out", str(tmp_path)]) == 2
