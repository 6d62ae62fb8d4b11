"""Numbers that count by how well the prior foretells them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import Dreamer
from tests.worlds.small import ACTIONS, GAUSSIAN, KINDS, PICTURES, VECTORS, build, fitted, sequences
from wmgym.nets.distributions import symlog
from wmgym.random import ModeNoise
from wmgym.worlds.base import SequenceBatch, index_state, map_state
from wmgym.worlds.family import DYNAMICS
from wmgym.worlds.foresight import Foresight
from wmgym.worlds.tssm import TSSM, TSSMConfig

BOXES = {"position": spaces.Box(-9, 9, (3,)), "height": spaces.Box(-9, 9, ())}


def test_the_average_is_over_what_counts() -> None:
    foresight, errors = Foresight(BOXES), {"position": torch.arange(12.0).reshape(4, 3), "height": torch.ones(4)}
    foresight.take(errors, torch.tensor([True, False, True, False]))
    weights = foresight.weights(0.5)
    assert weights["position"].tolist() == pytest.approx([0.5 / 3.5, 0.5 / 4.5, 0.5 / 5.5])
    assert weights["height"].item() == pytest.approx(0.5 / 1.5)
    before = {name: value.clone() for name, value in foresight.state_dict().items()}
    foresight.take({key: error * np.nan for key, error in errors.items()}, torch.zeros(4, dtype=torch.bool))
    assert foresight.batches == 1
    assert all(torch.equal(value, before[name]) for name, value in foresight.state_dict().items())


def test_it_is_a_mean_at_first_and_follows_slowly_later() -> None:
    foresight, counted = Foresight({"height": BOXES["height"]}), torch.ones(1, dtype=torch.bool)
    for value in range(100):
        foresight.take({"height": torch.tensor([float(value)])}, counted)
    assert foresight.get_buffer("missed_0").item() == pytest.approx(49.5, rel=1e-4)
    foresight.take({"height": torch.tensor([149.5])}, counted)
    assert foresight.get_buffer("missed_0").item() == pytest.approx(50.5, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missed_is_what_the_prior_decodes_to(kind: str) -> None:
    world, batch = build(KINDS[kind], foresight=True), sequences()
    states = world.loss(batch, ModeNoise()).states
    missed = []
    for time in range(3, 6):
        for row in range(3):
            if batch.is_first[time, row]:
                continue
            before = map_state(lambda leaf: leaf[time - 1, row][None], states)  # noqa: B023
            foretold = world.transition(before, batch.action[time, row][None], ModeNoise())
            mean = world.decoder(world.features(foretold))["position"][0]
            missed.append((mean - symlog(batch.observation["position"][time, row])).square())
    assert world.foresight is not None
    assert torch.allclose(world.foresight.get_buffer("missed_1"), torch.stack(missed).mean(0), atol=1e-5)


@pytest.mark.parametrize("likelihood", ["mse", "normal"])
def test_a_squared_error_counts_as_under_a_normal_of_both_variances(likelihood: str) -> None:
    coder = replace(GAUSSIAN.decoder, likelihood=likelihood)
    world, batch = build(GAUSSIAN, PICTURES, foresight=True, decoder=coder, vector_scale=5.0), sequences(PICTURES)
    plain = build(GAUSSIAN, PICTURES, decoder=coder, vector_scale=5.0)
    assert world.foresight is not None
    world.foresight.take({"state": torch.tensor([[0.0, 0.3, 9.0]])}, torch.ones(1, dtype=torch.bool))
    features = world.features(world.eval().loss(batch, ModeNoise()).states)
    error = (world.decoder(features)["state"] - symlog(batch.observation["state"])).square()
    given = 0.1 if likelihood == "mse" else 0.2  # the variance under which an error counts 5, or 5 halves
    expected = 0.5 * error / (given + torch.tensor([0.0, 0.3, 9.0]))
    losses = world.decoding_losses(features, batch, ModeNoise())
    assert torch.allclose(losses["state"], expected.sum(-1), rtol=1e-4)
    assert torch.equal(losses["camera"], plain.decoding_losses(features, batch, ModeNoise())["camera"])


@pytest.mark.parametrize("name", [*DYNAMICS, "tssm"])
def test_the_whole_family_has_it_and_learns_it_in_training_only(name: str) -> None:
    config = replace(GAUSSIAN, foresight=True)
    world = (
        TSSM(VECTORS, ACTIONS, TSSMConfig(**vars(config), heads=2, context=4))
        if name == "tssm"
        else DYNAMICS[name](VECTORS, ACTIONS, config)
    )
    world.eval().loss(sequences(), ModeNoise())
    assert world.foresight is not None
    assert world.foresight.weights(0.1)["position"].tolist() == [1.0, 1.0, 1.0]
    loss = world.train().loss(sequences(), ModeNoise()).total
    assert (world.foresight.weights(0.1)["position"] < 1).all()
    loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in world.parameters())
    world.loss(sequences(length=1), ModeNoise())  # of a single step nothing is learnt
    assert world.foresight.batches == 1


def test_what_counts_nothing_cannot_be_weighed() -> None:
    with pytest.raises(ValueError, match="vector_scale up, which must be above 0"):
        replace(GAUSSIAN, foresight=True, vector_scale=0.0)


# -- what it is for -------------------------------------------------------------------------------------------


def turning(seed: int) -> SequenceBatch:
    """Two numbers of something that turns, and sixteen that nothing foretells."""
    generator = torch.Generator().manual_seed(seed)
    angle = 6.3 * torch.rand(16, generator=generator) + 0.3 * torch.arange(24.0)[:, None]
    seen = torch.cat(
        [torch.stack([angle.sin(), angle.cos()], -1), 3 * torch.randn(24, 16, 16, generator=generator)], -1
    )
    is_first = torch.zeros(24, 16, dtype=torch.bool)
    is_first[0] = True
    return SequenceBatch(
        {"it": seen}, torch.zeros(24, 16, 1), torch.zeros(24, 16), is_first, torch.zeros_like(is_first)
    )


def lost(foresight: bool) -> tuple[float, float]:
    """The share of the turning numbers' variance that a dream of six steps misses, and the divergence."""
    config = replace(GAUSSIAN, deter=32, hidden=32, stoch=6, vector_scale=5.0, free_nats=1.0, foresight=foresight)
    world, noise = fitted(18, config, turning, updates=300)
    batch = turning(1000)
    with torch.no_grad():
        loss = world.loss(batch, noise)
        state = index_state(loss.states, 8)
        for time in range(9, 15):
            state = world.transition(state, batch.action[time], noise)
        error = (world.decode(world.features(state))["it"] - batch.observation["it"][14])[:, :2].square().mean()
    return (error / 0.5).item(), loss.metrics["kl"].item()


def test_a_world_with_foresight_dreams_of_what_can_be_foretold() -> None:
    (with_it, news), (without, more_news) = lost(True), lost(False)
    assert with_it < 0.5 * without
    assert news < 0.5 * more_news


def test_an_agent_and_its_file_keep_it(tmp_path: Path) -> None:
    small = {"deter": 8, "stoch": 4, "units": 8, "batch_size": 2, "batch_length": 8, "imagine_starts": 4}
    options = {"foresight": True, "vector_scale": 50.0, "reward_scale": 20.0}
    agent = Dreamer("Pendulum-v1", learning_starts=40, seed=0, **options, **small).learn(60)  # type: ignore[arg-type]
    config = agent.world.config
    assert (config.vector_scale, config.reward_scale, config.continue_scale) == (50.0, 20.0, 5.0)
    loaded = Dreamer.load(agent.save(tmp_path / "agent"))
    assert agent.world.foresight.batches > 0
    for name, value in agent.world.foresight.state_dict().items():
        assert torch.equal(loaded.world.foresight.state_dict()[name], value)
