"""PlaNet's further objectives against slow loops written from the paper's equations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from wmgym.nets.images import coarse
from wmgym.random import ModeNoise, TorchNoise
from wmgym.worlds.base import SequenceBatch, detach_state
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.overshooting import multi_step_losses
from wmgym.worlds.rssm import RSSM, RSSMState

from .small import BATCH, GAUSSIAN, LENGTH, PICTURES, Script, build, sequences

PLANET = replace(GAUSSIAN, kl_balance=None, free_nats=0.05, free_per_step=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def all_draws(furthest: int) -> list[Tensor]:
    """What filtering draws, `(B, S)` a step, then each distance's predictions, `((T - d + 1) * B, S)`."""
    generator = torch.Generator().manual_seed(2)
    filtering = list(torch.randn(LENGTH, BATCH, 3, generator=generator))
    return filtering + [torch.randn((LENGTH - d) * BATCH, 3, generator=generator) for d in range(furthest)]


def normal(stats: Tensor) -> td.Distribution:
    mean, raw = stats.split(3, -1)
    return td.Independent(td.Normal(mean, torch.log1p(raw.exp()) + 0.1), 1)


class Slow:
    """The paper's predictive distributions, one number t, one sequence b and one distance d at a time."""

    def __init__(self, world: RSSM, batch: SequenceBatch, states: RSSMState, draws: list[Tensor]) -> None:
        self.world, self.batch, self.states, self.draws = world, batch, states, draws[LENGTH:]

    def reach(self, t: int, b: int, d: int) -> RSSMState | None:
        """A state drawn from `p(s_t | s_{t-d})`; None where an episode begins on the way, or nothing came before."""
        first = t - d + 1
        if first < 0 or self.batch.is_first[first + 1 : t + 1, b].any():
            return None
        begins = bool(self.batch.is_first[first, b])
        known = first > 0 and not begins
        state = RSSMState(*(x[first - 1, b : b + 1] for x in self.states)) if known else self.world.initial(1)
        for step, time in enumerate(range(first, t + 1)):
            action = self.batch.action[time, b : b + 1] * (0.0 if time == first and begins else 1.0)
            deter = self.world.core(state.deter, state.stoch, self.world.core.project(action))
            stats = self.world.prior(deter)
            draw = self.draws[step][(time - step) * BATCH + b]
            mean, raw = stats.split(3, -1)
            state = RSSMState(deter, mean + (torch.log1p(raw.exp()) + 0.1) * draw)
        return state

    def divergence(self, t: int, b: int, d: int) -> float:
        """`max(free, KL(q(s_t) || p(s_t | s_{t-1})))` with `s_{t-1} ~ p(. | s_{t-d})`; 0 where there is none."""
        state = self.reach(t, b, d)
        if state is None:
            return 0.0
        embedding = self.world.posterior.project(self.world.encoder(self.batch.observation))
        posterior = normal(self.world.posterior(self.states.deter, embedding)[t, b])
        return max(PLANET.free_nats, td.kl_divergence(posterior, normal(self.world.prior(state.deter)[0])).item())


def loss_of(config: RSSMConfig, furthest: int) -> tuple[RSSM, SequenceBatch, Any, list[Tensor]]:
    world, batch, draws = build(config), sequences(), all_draws(furthest)
    return world, batch, world.loss(batch, Script(draws)), draws


@torch.no_grad()
def test_latent_overshooting_at_distance_one_is_the_ordinary_bound() -> None:
    _, _, plain, _ = loss_of(PLANET, 0)
    _, _, once, _ = loss_of(replace(PLANET, latent_overshooting=1, overshooting_weights=(1.0,)), 0)
    assert torch.equal(plain.total, once.total)
    assert "latent_overshooting_loss" not in once.parts
    _, _, doubled, _ = loss_of(replace(PLANET, overshooting_weights=(2.0,)), 0)
    assert doubled.parts["kl_loss"].item() == pytest.approx(2 * plain.parts["kl_loss"].item())


@torch.no_grad()
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.25)])
def test_latent_overshooting_at_distance_three_equals_the_papers_equation(weights: Any) -> None:
    config = replace(PLANET, latent_overshooting=3, overshooting_weights=weights)
    world, batch, loss, draws = loss_of(config, 3)
    slow, beta = Slow(world, batch, loss.states, draws), weights or (1.0, 1.0, 1.0)
    by_distance = [
        sum(slow.divergence(t, b, d) for t in range(LENGTH) for b in range(BATCH)) / (LENGTH * BATCH) for d in (1, 2, 3)
    ]
    expected = [beta[d] * by_distance[d] / 3 for d in range(3)]
    assert loss.parts["kl_loss"].item() == pytest.approx(expected[0], rel=1e-4)
    assert loss.parts["latent_overshooting_loss"].item() == pytest.approx(expected[1] + expected[2], rel=1e-4)


def test_predictions_learn_from_the_posterior_and_not_the_reverse() -> None:
    world, batch = build(replace(PLANET, latent_overshooting=3)), sequences()
    states, posterior = world._filter(batch, TorchNoise(torch.Generator().manual_seed(0)))
    losses = multi_step_losses(world, batch, detach_state(states), posterior, ModeNoise())
    losses["latent_overshooting"].mean().backward()
    trained = {name.split(".")[0] for name, p in world.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"prior", "core"}


@torch.no_grad()
def test_observation_overshooting_decodes_every_prediction() -> None:
    config = replace(PLANET, observation_overshooting=2)
    world, batch, loss, draws = loss_of(config, 2)
    slow, total = Slow(world, batch, loss.states, draws), 0.0
    for t, b, d in np.ndindex(LENGTH, BATCH, 2):
        state = slow.reach(t, b, d + 1)
        if state is None:
            continue
        one = SequenceBatch(
            {key: value[t : t + 1, b : b + 1] for key, value in batch.observation.items()},
            *(x[t : t + 1, b : b + 1] for x in (batch.action, batch.reward, batch.is_first, batch.is_terminal)),
        )
        features = world.features(RSSMState(*(x[None] for x in state)))
        total += sum(part.item() for part in world.decoding_losses(features, one, ModeNoise()).values())
    expected = total / 2 / (LENGTH * BATCH)
    assert loss.parts["observation_overshooting_loss"].item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_global_prior_is_a_standard_normal_distribution() -> None:
    world, batch, loss, _ = loss_of(replace(PLANET, global_prior=0.1, free_nats=0.0), 0)
    embedding = world.posterior.project(world.encoder(batch.observation))
    posterior = normal(world.posterior(loss.states.deter, embedding))
    standard = td.Independent(td.Normal(torch.zeros(3), torch.ones(3)), 1)
    expected = 0.1 * td.kl_divergence(posterior, standard).mean().item()
    assert loss.parts["global_prior_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_distances_beyond_the_sequence_are_left_out() -> None:
    far, whole = (build(replace(PLANET, latent_overshooting=d)) for d in (LENGTH + 4, LENGTH))
    losses = [world.loss(sequences(), ModeNoise()).parts["latent_overshooting_loss"].item() for world in (far, whole)]
    assert losses[0] == pytest.approx(losses[1] * LENGTH / (LENGTH + 4), rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latent_overshooting": 0},
        {"overshooting_weights": (1.0, 2.0)},
        {"observation_overshooting": 2, "picture_share": 0.5},
        {"picture_bits": 9},
    ],
)
def test_settings_that_cannot_be_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RSSMConfig(**wrong)


# -- pictures of few bits ---------------------------------------------------------------------------------------


def test_coarse_pictures_keep_five_bits_and_draw_the_rest() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).repeat(400, 1)
    drawn = coarse(pictures, 8, TorchNoise(torch.Generator().manual_seed(0)))
    assert torch.equal(drawn // 8, pictures // 8)
    rest = (drawn % 8).float()
    assert rest.unique().tolist() == list(range(8))
    assert rest.mean().item() == pytest.approx(3.5, abs=0.05)


@torch.no_grad()
def test_a_world_of_five_bits_does_not_see_the_others() -> None:
    world, batch = build(replace(GAUSSIAN, picture_bits=5), PICTURES), sequences(PICTURES)
    low = replace(batch, observation={**batch.observation, "camera": batch.observation["camera"] // 8 * 8})
    one, two = (world.loss(b, ModeNoise()) for b in (batch, low))
    assert torch.equal(one.total, two.total)
    assert not torch.equal(one.total, build(GAUSSIAN, PICTURES).loss(batch, ModeNoise()).total)
