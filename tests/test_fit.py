"""Worlds fitted to recorded episodes, without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import wmgym
from wmgym.dataset import record
from wmgym.dream import DreamVectorEnv
from wmgym.fit import fit_world

SMALL = {"deter": 32, "stoch": 8, "hidden": 32}


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record("CartPole-v1", None, 600, tmp_path_factory.mktemp("data") / "cartpole")


def test_it_opens_as_a_dream_and_is_saved_as_one(cartpole: Path, tmp_path: Path) -> None:
    model = fit_world(cartpole, updates=3, **SMALL)
    assert model.env["id"] == "CartPole-v1"
    assert not any(parameter.requires_grad for parameter in model.world.parameters())
    assert model.starts is not None
    assert 0 < int(model.starts.is_first.sum()) < len(model.starts)
    live = gym.make("Dream-v0", model=model)
    saved = gym.make("Dream-v0", model=str(model.save(tmp_path / "cartpole.zip")))
    live.reset(seed=0), saved.reset(seed=0)
    np.testing.assert_array_equal(live.step(1)[0], saved.step(1)[0])


def test_it_learns_the_world(cartpole: Path, tmp_path: Path) -> None:
    """On new episodes it predicts one step better than that nothing moves."""
    model = fit_world(
        cartpole, updates=300, batch_size=8, batch_length=16, learning_rate=3e-3, vector_scale=5.0, **SMALL
    )
    new = wmgym.load_dataset(record("CartPole-v1", None, 200, tmp_path / "new", seed=50)).replay
    batch = new.sample(64, 8)
    dreams = DreamVectorEnv(64, model, temperature=0.0, termination="never")
    seen = batch.observation["observation"].numpy()
    actions = batch.action.argmax(-1).numpy()
    dreams.reset(seed=0, options={"prefix": {"observation": seen[:7], "action": actions[:7]}})
    predicted, *_ = dreams.step(actions[7])
    inside = ~batch.is_first[1:].any(0).numpy()  # sequences that lie within one episode
    error, nothing_moves = (np.abs(guess - seen[7])[inside].mean() for guess in (predicted, seen[6]))
    assert error < 0.9 * nothing_moves


def test_the_seed_draws_the_sequences_and_a_replay_is_left_as_it_was(cartpole: Path) -> None:
    replay = wmgym.load_dataset(cartpole).replay
    drawn: list[torch.Tensor] = []
    sample = replay.sample

    def watched(*args: Any, **kwargs: Any) -> Any:
        batch = sample(*args, **kwargs)
        drawn.append(batch.observation["observation"])
        return batch

    before = replay.get_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "sample", watched)
        for seed in (3, 3, 4):
            fit_world(replay, updates=1, starts=1, seed=seed, **SMALL)
    assert replay.get_state() == before
    first, again, other = drawn[::2]  # the second of each are start states
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_only_an_agent_can_train_is_refused(cartpole: Path) -> None:
    with pytest.raises(ValueError, match="slow_targets=True is for agents"):
        fit_world(cartpole, "tdmpc", updates=1, slow_targets=True)


def test_the_same_seed_fits_the_same_world(cartpole: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (fit_world(cartpole, updates=2, seed=seed, **SMALL).world.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.get_rng_state())


def test_losses_are_reported(cartpole: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    fit_world(cartpole, updates=5, report=lambda *said: seen.append(said), report_every=2, **SMALL)
    assert [update for update, _ in seen] == [2, 4]
    assert "reward_loss" in seen[0][1]


def test_what_cannot_be_fitted(cartpole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"world='gpt' is unknown: choose one of .*'rssm'"):
        fit_world(cartpole, "gpt")
    with pytest.raises(ValueError, match="updates and batch_size must be 1 or more"):
        fit_world(cartpole, updates=0)
    with pytest.raises(ValueError, match="batch_length 2 or more"):
        fit_world(cartpole, batch_length=1)
    with pytest.raises(ValueError, match="latent='categoricals' is unknown: choose one of 'gaussian', 'categorical'"):
        fit_world(cartpole, latent="categoricals")
    with pytest.raises(TypeError, match="depth"):
        fit_world(cartpole, updates=1, depth=3)
