"""Vectors in units of their deviation, alone and inside a world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import Dreamer
from tests.worlds.small import GAUSSIAN, PICTURES, build, fitted, sequences
from wmgym.nets.standardize import Standardizer
from wmgym.random import TorchNoise
from wmgym.worlds.base import SequenceBatch

BOXES = {"position": spaces.Box(-9, 9, (3,)), "height": spaces.Box(-9, 9, ())}


def some(rows: int, seed: int) -> dict[str, torch.Tensor]:
    draws = torch.randn(rows, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = (3 + draws * torch.tensor([0.01, 1.0, 50.0, 0.2])).float()
    return {"position": scaled[..., :3], "height": scaled[..., 3]}


def test_statistics_are_those_of_all_rows_together() -> None:
    scale, batches = Standardizer(BOXES), [some(rows, seed) for seed, rows in enumerate((7, 40, 3))]
    for batch in batches:
        scale.update(batch)
    rows = np.concatenate([batch["position"].reshape(-1, 3).numpy() for batch in batches]).astype(np.float64)
    expected = (batches[0]["position"].numpy() - rows.mean(0)) / rows.std(0)
    assert scale.rows == len(rows) == 100
    assert np.allclose(scale(batches[0])["position"].numpy(), expected, atol=2e-3)


def test_inverse_gives_back_what_was_seen() -> None:
    scale, seen = Standardizer(BOXES), some(50, 0)
    scale.update(seen)
    back = scale.inverse(scale(seen))
    assert all(torch.allclose(back[key], value, rtol=1e-5, atol=1e-5) for key, value in seen.items())
    assert scale(seen)["height"].std() == pytest.approx(1.0, abs=0.01)


def test_before_anything_was_seen_nothing_changes() -> None:
    seen = some(5, 0)
    assert torch.equal(Standardizer(BOXES)(seen)["position"], seen["position"])


def test_what_never_changed_stays_finite_when_it_does() -> None:
    scale = Standardizer({"touch": spaces.Box(-9, 9, (1,))})
    scale.update({"touch": torch.zeros(100, 1)})
    assert scale({"touch": torch.ones(1, 1)})["touch"].item() == pytest.approx(1000.0)


def test_pictures_pass_unchanged() -> None:
    world, batch = build(GAUSSIAN, PICTURES, standardize=True), sequences(PICTURES)
    assert world.standardizer is not None
    world.standardizer.update(batch.observation)
    changed = world.standardizer(batch.observation)
    assert changed["camera"] is batch.observation["camera"]
    assert not torch.equal(changed["state"], batch.observation["state"])


# -- in a world -----------------------------------------------------------------------------------------------


def faint(seed: int) -> SequenceBatch:
    """A faint number (deviation 0.02) beside a loud one, each drawn anew in every step."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(8, 16, 2, generator=generator) * torch.tensor([0.02, 2.0])
    is_first = torch.zeros(8, 16, dtype=torch.bool)
    is_first[0] = True
    return SequenceBatch({"it": seen}, torch.zeros(8, 16, 1), torch.zeros(8, 16), is_first, torch.zeros_like(is_first))


def told(standardize: bool) -> float:
    """How much of the faint number's variance a world's posterior tells, after 300 updates: 1 is all, 0 none."""
    config = replace(GAUSSIAN, deter=16, hidden=32, stoch=8, vector_scale=5.0, free_nats=1.0, standardize=standardize)
    world, noise = fitted(2, config, faint, updates=300)
    batch = faint(1000)
    with torch.no_grad():
        drawn = world.decode(world.features(world.loss(batch, noise).states))["it"]
    error = (drawn - batch.observation["it"])[..., 0].square().mean()
    return 1 - (error / batch.observation["it"][..., 0].var()).item()


def test_a_world_that_standardizes_tells_small_numbers_and_others_do_not() -> None:
    assert told(standardize=True) > 0.5
    assert told(standardize=False) < 0.2


def test_statistics_are_learned_in_training_only() -> None:
    world, batch = build(GAUSSIAN, standardize=True), sequences()
    noise = TorchNoise(torch.Generator().manual_seed(0), torch.device("cpu"))
    world.eval().loss(batch, noise)
    assert world.standardizer is not None
    assert world.standardizer.rows == 0
    world.train().loss(batch, noise)
    assert world.standardizer.rows == 18


def test_an_agent_and_its_dream_keep_them(tmp_path: Path) -> None:
    small = {"deter": 8, "stoch": 4, "units": 8, "batch_size": 2, "batch_length": 8, "imagine_starts": 4}
    agent = Dreamer("Pendulum-v1", learning_starts=40, standardize=True, seed=0, **small).learn(60)
    agent.save(tmp_path / "agent.zip")
    loaded = Dreamer.load(tmp_path / "agent.zip")
    assert agent.world.standardizer.rows > 0
    for name, value in agent.world.standardizer.state_dict().items():
        assert torch.equal(loaded.world.standardizer.state_dict()[name], value)
    dream = gym.make("Dream-v0", model=str(tmp_path / "agent.zip"), horizon=5)
    assert np.abs(dream.reset(seed=0)[0]).max() < 20
    assert dream.unwrapped.world.standardizer.rows == agent.world.standardizer.rows
