"""The RSSM as a filter and as a simulator, one step at a time and in sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.random import ModeNoise, TorchNoise
from wmgym.worlds.base import index_state, map_state
from wmgym.worlds.rssm import RSSM, RSSMConfig, RSSMState

from .small import ACTIONS, BATCH, BLOCK, GAUSSIAN, KINDS, LENGTH, PICTURES, Script, build, draws, part, sequences

every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def close(a: RSSMState, b: RSSMState) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))


def some_state(world: RSSM, size: int = BATCH) -> RSSMState:
    """A state that observing three steps leads to."""
    states = world.loss(sequences(size=size), TorchNoise(torch.Generator().manual_seed(3))).states
    return map_state(lambda x: x[2].detach(), states)


def slow_draw(world: RSSM, stats: Tensor, draw: Tensor, temperature: float = 1.0) -> Tensor:
    """A latent from its network's outputs, by the papers' equations."""
    c = world.config
    if c.latent == "gaussian":
        return stats[:, : c.stoch] + temperature * (torch.log1p(stats[:, c.stoch :].exp()) + c.min_std) * draw
    logits = stats.reshape(len(stats), c.stoch, c.classes)
    probs = (1 - c.unimix) * torch.softmax(logits, -1) + c.unimix / c.classes
    chosen = (probs.log() / temperature + draw).argmax(-1)
    return torch.nn.functional.one_hot(chosen, c.classes).flatten(-2).float()


# -- filtering ------------------------------------------------------------------------------------------------


@every_kind
def test_filtering_a_batch_equals_observing_step_by_step(config: RSSMConfig) -> None:
    world, batch = build(config), sequences()
    noise = draws(world)
    together = world.loss(batch, Script(noise)).states
    state, stepwise = world.initial(BATCH), Script(noise)
    for t in range(LENGTH):
        observation = {key: value[t] for key, value in batch.observation.items()}
        state = world.observe(state, batch.action[t], observation, batch.is_first[t], stepwise)
        assert close(state, map_state(lambda x, t=t: x[t], together))


@every_kind
def test_an_observation_step_follows_the_equations(config: RSSMConfig) -> None:
    world, batch, state = build(config), sequences(), some_state(build(config))
    observation = {key: value[1] for key, value in batch.observation.items()}
    (draw,) = draws(world, 1)
    reached = world.observe(state, batch.action[1], observation, batch.is_first[1], Script([draw]))
    deter = world.core(state.deter, state.stoch, world.core.project(batch.action[1]))
    q = world.posterior
    first = torch.cat([deter, world.encoder(observation)], -1) @ q.first.weight.T + q.first.bias
    assert close(reached, RSSMState(deter, slow_draw(world, q.rest(q.act(q.norm(first))), draw)))


@every_kind
def test_an_episode_that_begins_within_a_sequence_equals_a_fresh_one(config: RSSMConfig) -> None:
    world, batch = build(config), sequences()
    noise = draws(world)
    after = map_state(lambda x: x[3:, 1:2], world.loss(batch, Script(noise)).states)
    fresh = world.loss(part(batch, slice(3, None), slice(1, 2)), Script([draw[1:2] for draw in noise[3:]])).states
    assert close(after, fresh)


@every_kind
def test_no_gradient_crosses_the_beginning_of_an_episode(config: RSSMConfig) -> None:
    world, batch = build(config), sequences()
    position = batch.observation["position"].requires_grad_()
    world.features(world.loss(batch, Script(draws(world))).states)[4, 1].sum().backward()
    assert position.grad[:3].abs().max() == 0
    assert (position.grad[3:5, 1].abs().sum(-1) > 0).all()


@every_kind
def test_is_first_forgets_state_and_action_of_its_row_alone(config: RSSMConfig) -> None:
    world, batch = build(config), sequences()
    observation = {key: value[1] for key, value in batch.observation.items()}
    state, action, (draw,) = some_state(world), batch.action[1], draws(world, 1)
    begun = torch.tensor([False, True, False])
    reset = world.observe(state, action, observation, begun, Script([draw]))
    kept = world.observe(state, action, observation, torch.zeros(BATCH, dtype=torch.bool), Script([draw]))
    fresh = world.observe(world.initial(BATCH), 0 * action, observation, begun, Script([draw]))
    assert close(index_state(reset, begun), index_state(fresh, begun))
    assert close(index_state(reset, ~begun), index_state(kept, ~begun))
    assert not close(index_state(reset, begun), index_state(kept, begun))


def test_a_sequence_cut_in_the_middle_of_an_episode_keeps_its_action() -> None:
    world, batch = build(GAUSSIAN), sequences()
    batch.is_first[:] = False
    other = replace(batch, action=batch.action.clone().index_fill_(0, torch.tensor([0]), 0.0))
    first, second = (world.loss(x, Script(draws(world))).states for x in (batch, other))
    assert not torch.allclose(first.deter[0], second.deter[0])


# -- imagining ------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_a_transition_draws_from_the_prior(config: RSSMConfig, temperature: float) -> None:
    world, action = build(config), sequences().action[1]
    state, (draw,) = some_state(world), draws(world, 1)
    reached = world.transition(state, action, Script([draw]), temperature)
    deter = world.core(state.deter, state.stoch, world.core.project(action))
    assert close(reached, RSSMState(deter, slow_draw(world, world.prior(deter), draw, temperature)))


@every_kind
def test_imagining_brings_what_the_heads_read_from_the_state_reached(config: RSSMConfig) -> None:
    world, action = build(config), sequences().action[1]
    reached, reward, continues = world.imagine(some_state(world), action, ModeNoise())
    features = torch.cat([reached.deter, reached.stoch], -1)
    assert torch.equal(features, world.features(reached))
    out = world.reward_head(features)
    if config.reward.likelihood == "twohot":
        expected = (torch.softmax(out.double(), -1) * world.two_hot.bins.double()).sum(-1)
        # float32 sums of bins as large as e^20 agree to their own rounding.
        assert torch.allclose(reward.double(), expected, rtol=1e-4, atol=20)
    else:
        assert torch.allclose(reward, out[:, 0])
    odds = world.continue_head(features)[:, 0].exp()
    assert torch.allclose(continues, (odds / (1 + odds) / config.continue_target).clamp(max=1), atol=1e-6)


def test_continuation_is_measured_against_its_target() -> None:
    world = build(GAUSSIAN, continue_target=0.9)
    final = world.continue_head[-1]
    torch.nn.init.zeros_(final.weight)
    for probability, expected in ((0.9, 1.0), (0.45, 0.5), (0.99, 1.0)):
        torch.nn.init.constant_(final.bias, torch.logit(torch.tensor(probability)).item())
        continues = world.imagine(world.initial(2), torch.zeros(2, 2), ModeNoise()).continues
        assert continues.tolist() == pytest.approx([expected] * 2, abs=1e-6)


def test_a_world_without_continue_head_never_ends() -> None:
    world = build(GAUSSIAN, continues=None)
    assert torch.equal(world.imagine(some_state(world), torch.zeros(BATCH, 2), TorchNoise()).continues, torch.ones(3))
    assert "continue_loss" not in world.loss(sequences(), TorchNoise()).parts


@every_kind
def test_heads_and_decoder_take_any_leading_dimensions(config: RSSMConfig) -> None:
    world, batch = build(config), sequences()
    states = world.loss(batch, Script(draws(world))).states
    reward, continues = world.outcome(states, batch.action, states)
    assert reward.shape == continues.shape == (LENGTH, BATCH)
    decoded = world.decode(world.features(states))
    assert {key: x.shape for key, x in decoded.items()} == {key: x.shape for key, x in batch.observation.items()}
    one = world.decode(world.features(map_state(lambda x: x[2, 1], states)))
    for key, value in decoded.items():
        assert torch.allclose(one[key], value[2, 1], atol=1e-5)


def test_the_initial_state_is_zero() -> None:
    state = build(BLOCK).initial(5)
    assert state.deter.shape == (5, 8)
    assert state.stoch.shape == (5, 12)
    assert not any(leaf.any() for leaf in state)


def test_discrete_actions_are_as_wide_as_their_choices() -> None:
    world = RSSM(spaces.Box(-1, 1, (3,)), spaces.Discrete(5), GAUSSIAN)
    assert world.imagine(world.initial(2), torch.eye(5)[:2], ModeNoise()).reward.shape == (2,)


# -- what the encoder sees ------------------------------------------------------------------------------------


def test_a_world_may_see_only_the_state_and_still_draw_pictures() -> None:
    world, batch = build(GAUSSIAN, PICTURES, observed_keys=("state",)), sequences(PICTURES)
    noise = draws(world)
    before = world.loss(batch, Script(noise)).states
    dark = replace(batch, observation={**batch.observation, "camera": 0 * batch.observation["camera"]})
    assert close(before, world.loss(dark, Script(noise)).states)
    alone = {"state": batch.observation["state"][0]}  # acting needs no picture at all
    seen = world.observe(world.initial(BATCH), batch.action[0], alone, batch.is_first[0], Script(noise[:1]))
    assert close(seen, index_state(before, 0))
    picture = world.decode(world.features(seen))["camera"]
    assert picture.shape == (BATCH, 16, 16, 3)
    assert picture.dtype == torch.uint8


@pytest.mark.parametrize("keys", [(), ("camera", "sonar")])
def test_keys_that_cannot_be_observed_are_named(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"observed_keys=.*must name some of .*state"):
        RSSM(PICTURES, ACTIONS, replace(GAUSSIAN, observed_keys=keys))


# -- an ensemble ----------------------------------------------------------------------------------------------


def test_disagreement_is_the_deviation_of_the_heads() -> None:
    world = build(GAUSSIAN, ensemble=3)
    state, action = some_state(world), sequences().action[1]
    inputs = torch.cat([state.deter, state.stoch, action], -1)
    said = torch.stack([head(inputs) for head in world.ensemble])
    deviation = ((said - said.mean(0)).square().sum(0) / 2).sqrt().mean(-1)
    assert torch.allclose(world.disagreement(state, action), deviation, atol=1e-6)
    assert (deviation > 0).all()


@every_kind
def test_heads_that_are_alike_do_not_disagree(config: RSSMConfig) -> None:
    world = build(config, ensemble=4)
    for head in world.ensemble:
        head.load_state_dict(world.ensemble[0].state_dict())
    assert world.disagreement(some_state(world), torch.zeros(BATCH, 2)).abs().max() < 1e-6


def test_without_an_ensemble_disagreement_says_how_to_get_one() -> None:
    world = build(GAUSSIAN)
    with pytest.raises(ValueError, match="ensemble=5"):
        world.disagreement(some_state(world), torch.zeros(BATCH, 2))


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="ensemble=1"):
        RSSMConfig(ensemble=1)
    with pytest.raises(ValueError, match="rep_scale"):
        RSSMConfig(dyn_scale=0.5)
