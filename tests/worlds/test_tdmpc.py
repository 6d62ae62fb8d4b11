"""TD-MPC2's world: its objective against a slow loop, what its latent learns from, and its dreams."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from tests.worlds.small import ACTIONS, BATCH, LENGTH, PICTURES, VECTORS, part, sequences
from wmgym import save_world
from wmgym.dream import StartStates
from wmgym.nets.coders import CoderConfig
from wmgym.random import ModeNoise, TorchNoise
from wmgym.worlds.tdmpc import TOLD, TOLDConfig, TOLDState

_CODER = CoderConfig(units=8, layers=1, symlog=False, image="patches", depth=2)
SMALL = TOLDConfig(latent=8, group=4, units=8, bins=11, encoder=_CODER, decoder=_CODER)


def build(space: spaces.Dict = VECTORS, **changes: Any) -> TOLD:
    """A world with its first weights shaken, so that no head says nothing."""
    torch.manual_seed(0)
    world = TOLD(space, ACTIONS, replace(SMALL, **changes))
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return world


def test_latents_are_probabilities() -> None:
    world, batch = build(), sequences()
    seen = world.encode(batch.observation)
    foretold = world.transition(TOLDState(seen.latent[0]), batch.action[0], ModeNoise())
    for latent in (seen.latent, foretold.latent):
        assert (latent > 0).all()
        torch.testing.assert_close(latent.unflatten(-1, (2, 4)).sum(-1), torch.ones(*latent.shape[:-1], 2))


def test_the_objective_is_equation_3() -> None:
    world, batch = build(rho=0.7), sequences()
    found = world.loss(batch, TorchNoise()).parts
    slow = dict.fromkeys(("consistency_loss", "reward_loss", "end_loss"), 0.0)
    seen = world.encode(batch.observation).latent
    for row in range(BATCH):
        latent = seen[0, row]
        for t in range(1, LENGTH):
            if batch.is_first[t, row]:
                latent = seen[t, row]
                continue
            share = 0.7 ** (t - 1) / (LENGTH - 1) / BATCH
            joined = torch.cat([latent, batch.action[t, row]])
            logits = world.reward_head(joined)
            latent = world.dynamics(joined)
            slow["consistency_loss"] += share * 20 * ((latent - seen[t, row]) ** 2).mean().item()
            two_hot = world.two_hot.encode(batch.reward[t, row])
            slow["reward_loss"] += share * 0.1 * -(two_hot * logits.log_softmax(-1)).sum().item()
            odds, ended = world.end_head(latent).squeeze(), batch.is_terminal[t, row].float()
            slow["end_loss"] += share * F.binary_cross_entropy_with_logits(odds, ended).item()
    for name, value in slow.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


def test_nothing_is_foretold_across_episodes() -> None:
    world, batch = build(), sequences()
    states = world.loss(batch, TorchNoise()).states
    torch.testing.assert_close(states.latent[3, 1], world.encode(batch.observation).latent[3, 1])
    # What led to an episode's first step says nothing.
    before = world.loss(batch, TorchNoise()).total
    batch.action[3, 1], batch.reward[3, 1] = 0.5, 7.0
    assert world.loss(batch, TorchNoise()).total == before


def test_the_latent_does_not_learn_from_what_is_drawn() -> None:
    gradients = []
    for scale in (1.0, 10.0):
        world, batch = build(), sequences()
        with torch.no_grad():
            for parameter in world.decoder.parameters():
                parameter.mul_(scale)
        world.loss(batch, TorchNoise()).total.backward()
        gradients.append([parameter.grad.clone() for parameter in world.encoder.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_the_reward_is_of_the_step_and_the_end_of_where_it_leads() -> None:
    world, noise = build(), ModeNoise()
    state = TOLDState(torch.softmax(torch.randn(5, 2, 4), -1).flatten(1))
    action = torch.rand(5, 2)
    imagined = world.imagine(state, action, noise)
    joined = torch.cat([state.latent, action], -1)
    torch.testing.assert_close(imagined.reward, world.two_hot.mean(world.reward_head(joined)))
    odds = world.end_head(imagined.state.latent).squeeze(-1)
    torch.testing.assert_close(imagined.continues, torch.sigmoid(-odds))
    assert (build(ends=False).imagine(state, action, noise).continues == 1).all()


def test_there_is_no_chance_in_it() -> None:
    world = build()
    state = world.encode(part(sequences(), slice(0, 1)).observation)
    state = TOLDState(state.latent[0])
    one, two = (
        world.transition(state, torch.ones(BATCH, 2), TorchNoise(torch.Generator().manual_seed(seed)), temperature)
        for seed, temperature in ((0, 1.0), (1, 0.3))
    )
    assert torch.equal(one.latent, two.latent)


@pytest.mark.parametrize("space", [VECTORS, PICTURES], ids=["vectors", "pictures too"])
def test_it_opens_as_an_environment(space: spaces.Dict, tmp_path: Any) -> None:
    world = build(space)
    states = world.encode(sequences(space).observation)
    states = TOLDState(states.latent.flatten(0, 1))
    first = torch.zeros(len(states.latent), dtype=torch.bool)
    first[:3] = True
    path = save_world(tmp_path / "world", world, StartStates(states, first))
    env = gym.make("Dream-v0", model=str(path), horizon=5)
    check_env(env.unwrapped)
    seen, _ = env.reset(seed=0)
    assert set(seen) == set(space.spaces)
    assert math.isfinite(env.step(env.action_space.sample())[1])


def test_a_latent_that_does_not_fall_into_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="latent=9 must be a multiple of group=4"):
        replace(SMALL, latent=9)


def test_it_learns_what_an_action_leads_to() -> None:
    """On a line with a known law, it foretells places five steps ahead far better than one who holds the last."""
    torch.manual_seed(0)
    space, generator = spaces.Box(-3, 3, (1,), np.float32), torch.Generator().manual_seed(0)
    world = TOLD(space, spaces.Box(-1, 1, (1,), np.float32), replace(SMALL, latent=32, units=32))
    optimizer, noise = torch.optim.Adam(world.parameters(), 3e-3), TorchNoise(generator)

    def walks(size: int) -> Any:
        action = 2 * torch.rand(6, size, 1, generator=generator) - 1
        action[0] = 0
        place = 2 * torch.rand(1, size, 1, generator=generator) - 1 + 0.3 * action.cumsum(0)
        batch = part(sequences(length=6, size=size), slice(None))
        batch.is_first[:] = batch.is_terminal[:] = False
        batch.is_first[0] = True
        batch.observation.clear()
        batch.observation["observation"] = place
        batch.action, batch.reward = action, -place.squeeze(-1).abs()
        return batch

    for _ in range(600):
        optimizer.zero_grad()
        world.loss(walks(64), noise).total.backward()
        optimizer.step()
    batch = walks(256)
    with torch.no_grad():
        foretold = world.loss(batch, noise).states
        drawn = world.decode(world.features(foretold))["observation"]
    place = batch.observation["observation"]
    error, held = (drawn[5] - place[5]).square().mean(), (place[0] - place[5]).square().mean()
    assert error < 0.2 * held
