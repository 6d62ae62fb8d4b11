"""The commands of World Models: what they write, and that it fits together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from PIL import Image

from agents import WorldModels
from agents.zoo import iterations, take_cover
from agents.zoo.stage_plots import plot_evolution

FEW = ["vision_updates=2", "vision_batch=4", "memory_updates=2", "batch_size=2", "batch_length=8", "depth=2"]
FEW += ["hidden=8", "latent=4", "generations=2", "population=4", "rollouts=2", "evaluate_rollouts=2", "dream_horizon=6"]
FEW += ["iterations=2", "first_decisions=80", "together_updates=2", "together_length=8", "temperature=1.15"]


def test_take_cover_writes_its_table_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom")
    options = ["--decisions", "160", "--episodes", "2", "--table-generations", "1", "--temperatures", "0.5", "1.15"]
    path = take_cover.main([*options, "--anew", "--out", str(tmp_path), "--set", *FEW, "n_envs=2"])
    result = json.loads(path.read_text())
    assert result["complete"]
    assert result["decisions_collected"] == 160
    rows = [(row["anew"], row["temperature"], row["generations"]) for row in result["table"]]
    assert rows == [(False, 0.5, 1), (False, 1.15, 2 * 2), (True, 0.5, 1), (True, 1.15, 1)]
    for row in result["table"]:
        assert len(row["real"]["returns"]) == len(row["dream"]["returns"]) == 2
        assert row["real"]["mean"] > 50  # the game lasts at least that long whatever one does
        assert row["cost"]["processor_s"] > 0
    for name in ("reconstructions", "dreams", "evolution"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 300
    agent = WorldModels.load(tmp_path / "world_models.zip", device="cpu")
    assert agent.temperature == 1.15
    gym.make("Dream-v0", model=str(tmp_path / "world_models_0.5.zip"), temperature=0.5).reset(seed=0)


def test_take_cover_goes_on_within_its_table(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom")
    options = ["--decisions", "160", "--episodes", "2", "--table-generations", "1", "--anew", "--out", str(tmp_path)]
    options += ["--set", *FEW, "n_envs=2"]
    path = take_cover.main([*options, "--temperatures", "1.15", "0.5"])
    unbroken = json.loads(path.read_text())
    stopped = {**unbroken, "complete": False, "table": unbroken["table"][1:2]}  # the C of the rounds
    path.write_text(json.dumps(stopped))
    again = json.loads(take_cover.main([*options, "--temperatures", "1.15", "0.5", "--resume"]).read_text())
    assert again["complete"]
    assert again["wall_clock_s"] > stopped["wall_clock_s"]
    assert_same_table(again["table"], unbroken["table"])


def assert_same_table(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for row, same in zip(one, other, strict=True):
        for name in ("anew", "temperature", "generations", "dream", "real"):
            assert row[name] == same[name], name


def test_take_cover_goes_on_from_its_last_round_when_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vizdoom")
    options = ["--decisions", "160", "--episodes", "2", "--table-generations", "1", "--temperatures", "1.15", "--anew"]
    options += ["--set", *FEW, "n_envs=2"]
    unbroken = json.loads(take_cover.main([*options, "--out", str(tmp_path / "unbroken")]).read_text())

    memory_step = WorldModels._memory_step

    def killed(agent: WorldModels) -> None:
        if agent._iteration == 1:
            raise MemoryError("killed in the second round")
        memory_step(agent)

    options += ["--out", str(tmp_path / "broken")]
    monkeypatch.setattr(WorldModels, "_memory_step", killed)
    with pytest.raises(MemoryError):
        take_cover.main(options)
    monkeypatch.setattr(WorldModels, "_memory_step", memory_step)
    again = json.loads(take_cover.main([*options, "--resume"]).read_text())
    assert_same_table(again["table"], unbroken["table"])
    assert again["return_mean"] == unbroken["return_mean"]
    stages = [(tmp_path / "broken" / f"{name}.csv").read_text() for name in ("progress", "progress-1")]
    assert "together 2/2" in stages[0]  # what was logged before it was killed is still there
    assert "controller 1/1" in stages[1]  # of the table


def test_rounds_and_one_pass_get_the_same_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {"vision_updates": 4, "memory_updates": 4, "generations": 4, "n_envs": 2, "rollouts": 2}
    small |= {"population": 4, "evaluate_rollouts": 2, "dream_horizon": 5, "batch_size": 2, "batch_length": 8}
    monkeypatch.setattr(iterations, "SETTINGS", iterations.SETTINGS | small)
    paths = iterations.main(["--decisions", "80", "--rounds", "2", "--episodes", "2", "--out", str(tmp_path)])
    assert [path.name for path in paths] == ["rounds-seed0.json", "one_pass-seed0.json"]
    rounds, one_pass = (json.loads(path.read_text()) for path in paths)
    assert (rounds["env_steps"], one_pass["env_steps"]) == ([0, 40, 80], [0, 80])
    assert rounds["updates"] == one_pass["updates"] == 12
    assert rounds["return_mean"][0] == one_pass["return_mean"][0]  # at random
    for result in (rounds, one_pass):
        assert all(-2000 < mean < 0 for mean in result["return_mean"])
        assert len(result["dream_mean"]) == len(result["env_steps"]) - 1


def test_evolution_is_drawn_with_or_without_evaluations(tmp_path: Path) -> None:
    history = [{"best": 1.0, "mean": 0.0}, {"best": 2.0, "mean": 1.0}]
    assert plot_evolution(tmp_path / "a.png", history).is_file()
    assert plot_evolution(tmp_path / "b.png", [*history, {"best": 3.0, "mean": 2.0, "score": 2.5}]).is_file()
