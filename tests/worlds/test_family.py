"""PlaNet's dynamics models: what each carries and reads, what they share, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from wmgym.dream import StartStates
from wmgym.random import ModeNoise, TorchNoise
from wmgym.worlds.base import detach_state, map_state
from wmgym.worlds.dmm import DMMDynamics, DMMObservation
from wmgym.worlds.family import DYNAMICS
from wmgym.worlds.rnn import RNN
from wmgym.worlds.rssm import RSSM
from wmgym.worlds.ssm import SSM
from wmgym.worlds.store import load_world, save_world

from .small import ACTIONS, BATCH, GAUSSIAN, LENGTH, VECTORS, Script, sequences

every_kind = pytest.mark.parametrize("name", DYNAMICS)
HOOKS = {"_build_core", "_feature_size", "_deter_features", "_stats_size", "_latent", "_advance", "_join"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str) -> Any:
    """A world with its first weights shaken."""
    torch.manual_seed(0)
    world = DYNAMICS[name](VECTORS, ACTIONS, GAUSSIAN)
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return world


def noise(seed: int = 3) -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(seed))


def some_state(world: RSSM, time: int = 2) -> Any:
    return map_state(lambda x: x[time].detach(), world.loss(sequences(), noise()).states)


@every_kind
def test_filtering_a_batch_equals_observing_step_by_step(name: str) -> None:
    world, batch = build(name), sequences()
    draws = list(torch.randn(LENGTH, BATCH, 3, generator=torch.Generator().manual_seed(2)))
    together, stepwise = world.loss(batch, Script(draws)).states, Script(draws)
    state = world.initial(BATCH)
    for t in range(LENGTH):
        observation = {key: value[t] for key, value in batch.observation.items()}
        state = world.observe(state, batch.action[t], observation, batch.is_first[t], stepwise)
        for one, all_at_once in zip(state, together, strict=True):
            torch.testing.assert_close(one, all_at_once[t], rtol=1e-4, atol=1e-5)


@every_kind
def test_every_parameter_learns(name: str) -> None:
    world = build(name)
    world.loss(sequences(), noise()).total.backward()
    assert [key for key, p in world.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_kind
def test_a_step_and_what_is_read_of_it_have_their_shapes(name: str) -> None:
    world = build(name)
    reached = world.imagine(world.initial(5), torch.zeros(5, 2), noise())
    assert reached.reward.shape == reached.continues.shape == (5,)
    assert world.features(reached.state).shape == (5, world.feature_size)
    assert world.decode(world.features(reached.state))["position"].shape == (5, 3)


@every_kind
def test_relatives_differ_from_the_rssm_in_their_hooks_alone(name: str) -> None:
    shared = {"loss", "observe", "transition", "outcome", "decode", "prior_of", "_filter", "_filter_step", "_kl_losses"}
    assert all(getattr(DYNAMICS[name], method) is getattr(RSSM, method) for method in shared)
    bases = [base for base in DYNAMICS[name].__mro__ if issubclass(base, RSSM) and base is not RSSM]
    own = {key for base in bases for key, value in vars(base).items() if callable(value)}
    assert own <= HOOKS | {"__init__", "initial", "features"}


def test_an_ssm_carries_its_draw_alone() -> None:
    world, state = build("ssm"), some_state(build("ssm"))
    action = sequences().action[3]
    forgetful = state._replace(deter=torch.randn_like(state.deter))
    one, two = (world.transition(s, action, noise()) for s in (state, forgetful))
    assert torch.equal(one.stoch, two.stoch)
    assert torch.equal(world.features(one), one.stoch)
    assert isinstance(world, SSM)


def test_an_rnn_leaves_nothing_to_chance() -> None:
    world, batch = build("rnn"), sequences()
    one, two = (world.loss(batch, noise(seed)) for seed in (0, 1))
    assert torch.equal(one.total, two.total)
    state = detach_state(map_state(lambda x: x[2], one.states))
    assert torch.equal(*(world.transition(state, batch.action[3], noise(seed)).stoch for seed in (0, 1)))
    assert isinstance(world, RNN)
    q = world.posterior(one.states.deter, world.posterior.project(world.encoder(batch.observation)))
    expected = 0.5 * (q - world.prior(one.states.deter)).square().sum(-1).mean()
    assert one.metrics["kl"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "leaf"), [("dmm_observation", "stoch"), ("dmm_dynamics", "memory")])
def test_a_deep_markov_model_draws_from_the_one_and_shows_the_other(name: str, leaf: str) -> None:
    world, state = build(name), some_state(build(name))
    action = sequences().action[3]
    other = {key: torch.randn_like(getattr(state, key)) for key in state._fields if key != leaf}
    one, two = (world.transition(s, action, noise()) for s in (state, state._replace(**other)))
    assert torch.equal(one.stoch, two.stoch)  # the next draw depends on that leaf alone
    moved = world.transition(state._replace(**{leaf: getattr(state, leaf) + 1}), action, noise())
    assert not torch.equal(one.stoch, moved.stoch)
    assert torch.equal(world.features(one), one.memory)
    assert isinstance(world, DMMDynamics | DMMObservation)


@every_kind
def test_a_world_in_a_file_is_dreamt(name: str, tmp_path: Path) -> None:
    world = build(name)
    starts = StartStates(some_state(world), torch.ones(BATCH, dtype=torch.bool))
    path = save_world(tmp_path / "world.zip", world, starts)
    again = load_world(path)
    assert type(again) is type(world)
    assert again.config == world.config
    state, action = some_state(world), sequences().action[3]
    assert torch.equal(
        world.imagine(state, action, ModeNoise()).reward, again.imagine(state, action, ModeNoise()).reward
    )
    dream = gym.make("Dream-v0", model=str(path))
    dream.reset(seed=0)
    assert dream.step(dream.action_space.sample())[0] in dream.observation_space
