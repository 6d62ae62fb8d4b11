"""World Models seeded, interrupted, killed, saved and loaded, in any of its stages."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import WorldModels
from agents.checkpointing import CheckpointEvery, last_checkpoint
from tests.agents.small import assert_same, tiny


@pytest.mark.parametrize("env", ["CartPole-v1", "test/Reach-v0"])
def test_the_seed_decides_everything(env: str) -> None:
    one, two, other = (tiny(env, n_envs=2, seed=seed).learn(80) for seed in (3, 3, 4))
    assert_same(one, two)
    assert not torch.equal(one.policy.actor.weights, other.policy.actor.weights)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """A run that is killed after its last stage goes on with nothing."""
    agent = tiny("CartPole-v1").learn(60)
    path = agent.save(tmp_path / "done", include=["replay_buffer"])
    again = WorldModels.load(path, device="cpu").learn(0, reset_num_timesteps=False)
    assert_same(again, agent)


def test_every_stage_leaves_a_checkpoint(tmp_path: Path) -> None:
    stages: list[str] = []

    class Watched(CheckpointEvery):
        def write(self) -> Path | None:
            path = super().write()
            stages.append(self.model._stage)
            return path

    tiny("CartPole-v1").learn(60, Watched(tmp_path, every=30))
    assert stages[:2] == ["collect"] * 2
    assert stages[2:] == ["together", "memory", "controller", "collect"]


def test_a_run_killed_after_a_round_does_not_repeat_it(tmp_path: Path) -> None:
    class Copied(CheckpointEvery):
        def write(self) -> Path | None:
            path = super().write()
            if self.model._stage == "collect" and self.model.num_timesteps == 60:  # C's stage has just ended
                shutil.copytree(self.folder, tmp_path / "killed")
            return path

    changes = {"iterations": 2, "generations": 2}
    unbroken = tiny("CartPole-v1", **changes).learn(120, Copied(tmp_path / "run", every=1000))
    killed = WorldModels.load(last_checkpoint(tmp_path / "killed"), device="cpu")
    assert_same(killed.learn(60, reset_num_timesteps=False), unbroken)


@pytest.mark.parametrize(
    ("stage", "at", "changes"),
    [
        ("_vision_step", 4, {}),
        ("_together_step", 2, {}),
        ("_memory_step", 3, {}),
        ("_controller_step", 4, {}),
        ("_controller_step", 2, {"train_in": "real", "real_envs": 0}),
        ("_controller_step", 2, {"train_in": "real", "real_envs": 1}),
    ],
)
def test_what_is_interrupted_goes_on_within_its_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str, at: int, changes: dict[str, Any]
) -> None:
    changes = {"iterations": 2, "together_updates": 3, "vision_decay": 0.9, **changes}
    unbroken = tiny("CartPole-v1", **changes).learn(120)
    original, calls = getattr(WorldModels, stage), [0]

    def interrupted(self: WorldModels) -> None:
        original(self)
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(WorldModels, stage, interrupted)
    broken = tiny("CartPole-v1", **changes, interrupt_folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        broken.learn(120)
    assert broken._real is None  # its processes have ended
    saved = WorldModels.load(next(tmp_path.glob("worldmodels-CartPole-v1-seed*-interrupted.zip")), device="cpu")
    assert saved._stage_step == at
    monkeypatch.undo()
    assert saved.num_timesteps == 60
    assert_same(saved.learn(60, reset_num_timesteps=False), unbroken)


def test_what_is_loaded_acts_and_dreams_as_what_was_saved(tmp_path: Path) -> None:
    agent = tiny("CartPole-v1", temperature=1.15, ordered=True).learn(60)
    path = agent.save(tmp_path / "agent")
    again = WorldModels.load(path, device="cpu")
    assert (again.temperature, again.ordered, again.world_config) == (1.15, True, agent.world_config)
    assert again.history == agent.history
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    actions, state = agent.predict(observations, deterministic=True)
    for _ in range(3):
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], actions)
    assert [np.shape(leaf) for leaf in state] == [(20, 3), (20, 8), (20, 8), (20, 2)]  # type: ignore[union-attr]
    dream = gym.make("Dream-v0", model=str(path), temperature=1.15)
    assert dream.reset(seed=0)[0] in dream.observation_space
