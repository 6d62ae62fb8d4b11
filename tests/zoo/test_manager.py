"""Runs that begin with a trained agent, run in dreams, or end between two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents import Dreamer
from agents.zoo import train

from .runs import TINY, arguments, interrupt_at, result

SETTINGS: dict[str, Any] = {name: int(value) for name, value in (pair.split("=") for pair in TINY)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    agent = Dreamer("CartPole-v1", seed=7, device="cpu", **SETTINGS).learn(60)
    return agent.save(tmp_path_factory.mktemp("teacher") / "teacher.zip")


def test_a_trained_agent_goes_on_in_the_environment_that_is_named(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = arguments(tmp_path, "-i", str(teacher), "--seed", "3", "--env-kwargs", "sutton_barto_reward=True")
    worlds: list[tuple[Any, ...]] = []
    learn = Dreamer.learn

    def watched(self: Dreamer, *args: Any, **options: Any) -> Any:
        worlds.append((self.env_settings, self.seed, self.num_timesteps))
        return learn(self, *args, **options)

    monkeypatch.setattr(Dreamer, "learn", watched)
    with monkeypatch.context() as patch:
        interrupt_at(50, patch)
        assert train.main(same) == 130
    stopped = result(tmp_path)
    assert train.main(same) == 0
    (first, seed, _), (again, _, resumed_at) = worlds
    assert first is not None
    assert first["sutton_barto_reward"] is True
    assert again == first
    assert (seed, resumed_at) == (3, 50)
    run = result(tmp_path)
    assert run["env_steps"] == [0, 40, 80, 120]
    assert run["return_mean"][:2] == stopped["return_mean"]


def test_a_trained_agent_takes_the_settings_that_are_named(teacher: Path, tmp_path: Path) -> None:
    tiny = [pair for pair in TINY if not pair.startswith("train_ratio")]
    more = ["train_ratio=64", "gamma=0.5"]
    assert (
        train.main(arguments(tmp_path, "-i", str(teacher), "--save", str(tmp_path / "a"), "--set", *tiny, *more)) == 0
    )
    agent = Dreamer.load(tmp_path / "a.zip", device="cpu")
    assert (agent.train_ratio, agent.gamma) == (64.0, 0.5)
    assert result(tmp_path)["overrides"]["gamma"] == 0.5
    with pytest.raises(ValueError, match="learns with n_envs=1, not 2"):
        train.main(arguments(tmp_path, "-i", str(teacher), "--anew", "--set", *TINY, "n_envs=2"))


def test_a_run_in_a_dream_goes_on_where_it_was_interrupted(teacher: Path, tmp_path: Path) -> None:
    options = ["--env-kwargs", f"model={teacher}", "horizon=20", "--set", *TINY]
    same = arguments(tmp_path, *options, env="Dream-v0")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(50, patch)
        assert train.main(same) == 130
    assert train.main(same) == 0
    run = result(tmp_path)
    assert run["env_steps"] == [0, 40, 80, 120]
    assert [part["env_steps"] for part in run["resumed"]] == [50]


def test_the_end_is_evaluated_where_it_lies_between_two_evaluations(tmp_path: Path) -> None:
    """Or a benchmark would run it again and again: it never saw its last step."""
    assert train.main(arguments(tmp_path, "--eval-every", "50", "--set", *TINY)) == 0
    assert result(tmp_path)["env_steps"] == [0, 50, 100, 120]
