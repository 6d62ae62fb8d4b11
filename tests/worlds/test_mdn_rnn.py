"""World Models' world: M's recurrence and objective against slow versions, and its dreams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from torch import nn
from torch.distributions import Normal, kl_divergence

from wmgym import save_world
from wmgym.dream import StartStates, as_model
from wmgym.nets.coders import CoderConfig
from wmgym.nets.lstm import LSTM
from wmgym.random import ModeNoise, TorchNoise
from wmgym.worlds.base import SequenceBatch, index_state
from wmgym.worlds.mdn_rnn import MDNRNN, MDNRNNConfig, MDNRNNState

LENGTH, BATCH = 7, 3
SPACE = spaces.Box(-100, 100, (3,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
SMALL = MDNRNNConfig(latent=4, hidden=6, components=2, coder=CoderConfig(units=8, layers=1, symlog=False))


def build(**changes: Any) -> MDNRNN:
    torch.manual_seed(0)
    return MDNRNN(SPACE, ACTIONS, replace(SMALL, **changes))


def sequences() -> SequenceBatch:
    """Random sequences; in row 1 an episode ends at step 2 and the next begins at step 3."""
    generator = torch.Generator().manual_seed(1)
    is_first, is_terminal = torch.zeros(2, LENGTH, BATCH, dtype=torch.bool)
    is_first[0, 0] = is_first[3, 1] = is_terminal[2, 1] = True
    return SequenceBatch(
        {"observation": torch.randn(LENGTH, BATCH, 3, generator=generator)},
        torch.rand(LENGTH, BATCH, 2, generator=generator) * 2 - 1,
        torch.randn(LENGTH, BATCH, generator=generator),
        is_first,
        is_terminal,
    )


def test_the_lstm_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = LSTM(5, 6), nn.LSTMCell(5, 6)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.inputs.weight)
        theirs.weight_hh.copy_(ours.recurrent.weight)
        theirs.bias_ih.copy_(ours.inputs.bias)
        theirs.bias_hh.zero_()
    x, hidden, cell = torch.randn(3, 5), torch.randn(3, 6), torch.randn(3, 6)
    torch.testing.assert_close(ours(ours.project(x), hidden, cell), theirs(x, (hidden, cell)))


def test_m_has_as_many_parameters_as_the_papers() -> None:
    def parameters_of_m(config: MDNRNNConfig, actions: int) -> int:
        world = MDNRNN(SPACE, spaces.Box(-1, 1, (actions,)), config)
        return sum(p.numel() for name, p in world.named_parameters() if not name.startswith("vae."))

    racing = MDNRNNConfig(latent=32, hidden=256, predict_reward=False, predict_end=False)
    assert parameters_of_m(racing, 3) == 422_368
    doom = MDNRNNConfig(latent=64, hidden=512, predict_reward=False)
    # The paper's Take Cover also reads a flag "restart", which a wiped memory makes needless: 4 x 512 weights.
    assert parameters_of_m(doom, 1) == 1_678_785 - 4 * 512


@pytest.mark.parametrize("layers", [0, 2])
def test_observing_step_by_step_gives_the_states_that_the_loss_filters(layers: int) -> None:
    world, batch = build(layers=layers), sequences()
    latent = world.vae.encode(batch.observation).mean
    _, states = world.memory_loss(latent, batch)
    state = world.initial(BATCH)
    for t in range(LENGTH):
        observation = {"observation": batch.observation["observation"][t]}
        # A sequence begins without a past, as an episode does.
        is_first = batch.is_first[t] if t else torch.ones(BATCH, dtype=torch.bool)
        state = world.observe(state, batch.action[t], observation, is_first, ModeNoise())
        for ours, theirs in zip(state, index_state(states, t)):
            torch.testing.assert_close(ours, theirs)


def test_the_memory_is_wiped_where_an_episode_begins() -> None:
    world, batch = build(), sequences()
    latent = torch.randn(LENGTH, BATCH, 4)
    _, states = world.memory_loss(latent, batch)
    assert not states.hidden[3, 1].any()
    assert states.hidden[3, 0].any()
    changed = latent.clone()
    changed[:3] += 1.0  # another past
    _, others = world.memory_loss(changed, batch)
    torch.testing.assert_close(others.hidden[3:, 1], states.hidden[3:, 1])
    assert not torch.allclose(others.hidden[3:, 0], states.hidden[3:, 0])


def outlook_of(world: MDNRNN, states: MDNRNNState, action: torch.Tensor, t: int, b: int) -> torch.Tensor:
    """What M expects of step `t` in row `b`, `(1, ...)`: the paper's M expects it by `h` alone."""
    hidden = states.hidden[t, b][None]
    if world.outlook is None:
        return hidden
    return world.outlook(torch.cat([hidden, states.latent[t - 1, b][None], action[t, b][None]], -1))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("mixture", ["factored", "joint"])
def test_ms_loss_equals_a_slow_version(mixture: Any, layers: int) -> None:
    world, batch = build(mixture=mixture, layers=layers, units=5, end_weight=10.0, reward_scale=2.0), sequences()
    latent = torch.randn(LENGTH, BATCH, 4)
    parts, states = world.memory_loss(latent, batch)
    nll, error, ends, count = 0.0, 0.0, 0.0, 0
    for t in range(1, LENGTH):  # the first step has no past to predict it from
        for b in range(BATCH):
            if batch.is_first[t, b]:
                continue
            outlook = outlook_of(world, states, batch.action, t, b)
            nll -= world.predicted(outlook).log_prob(latent[t, b][None]).item() / 4
            error += (world.reward_head(outlook).item() - batch.reward[t, b].item()) ** 2  # type: ignore[misc]
            probability = torch.sigmoid(world.end_head(outlook)).item()  # type: ignore[misc]
            ends -= 10 * math.log(probability) if batch.is_terminal[t, b] else math.log(1 - probability)
            count += 1
    assert count == LENGTH * BATCH - BATCH - 1
    assert parts["latent_loss"].item() == pytest.approx(nll / count, rel=1e-4)
    assert parts["reward_loss"].item() == pytest.approx(2 * error / count, rel=1e-4)
    assert parts["end_loss"].item() == pytest.approx(ends / count, rel=1e-4)


def test_ends_that_weigh_more_are_predicted_as_rare_as_they_are() -> None:
    world = build(end_weight=10.0)
    assert world.end_head is not None
    often = 0.1
    with torch.no_grad():
        world.end_head.weight.zero_()
        # Where the weighted loss of a tenth of ends is least: odds of 10 * 0.1 to 0.9.
        world.end_head.bias.fill_(math.log(10 * often / (1 - often)))
    logit = world.end_head.bias.detach().clone().requires_grad_(True)
    target = torch.tensor([1.0] + [0.0] * 9)
    F.binary_cross_entropy_with_logits(logit.expand(10), target, pos_weight=torch.tensor(10.0)).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(0.0, abs=1e-6)
    state = world.initial(2)
    torch.testing.assert_close(world.outcome(state, torch.zeros(2, 2), state).continues, torch.full((2,), 0.9))


def test_ms_gradient_stops_at_vs_latents() -> None:
    world, batch = build(), sequences()
    parts = world.loss(batch, TorchNoise(torch.Generator().manual_seed(0)))
    assert parts.total.item() == pytest.approx(sum(part.item() for part in parts.parts.values()), rel=1e-5)
    parts.total.backward()
    learnt = [p.grad.clone() for p in world.vae.parameters() if p.grad is not None]
    world.zero_grad()
    _, terms = world.vae.loss(batch.observation, TorchNoise(torch.Generator().manual_seed(0)))
    torch.stack([term.mean() for term in terms.values()]).sum().backward()
    alone = [p.grad for p in world.vae.parameters() if p.grad is not None]
    for gradient, own in zip(learnt, alone, strict=True):
        torch.testing.assert_close(gradient, own)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("mixture", ["factored", "joint"])
def test_the_bound_of_both_together_equals_a_slow_version(mixture: Any, layers: int) -> None:
    world, batch = build(mixture=mixture, layers=layers, end_to_end=True, observation_scale=8.0), sequences()
    loss = world.loss(batch, TorchNoise(torch.Generator().manual_seed(0)))
    code = world.vae.encode(batch.observation)
    latent = code.sample(TorchNoise(torch.Generator().manual_seed(0)))
    posterior = Normal(code.mean, torch.exp(0.5 * code.log_variance))
    remembered, states = world.memory_loss(latent, batch)
    errors = world.vae.decoder.loss(latent, batch.observation)["observation"]
    kl = 0.0
    for t in range(LENGTH):
        for b in range(BATCH):
            if t == 0 or batch.is_first[t, b]:
                kl += kl_divergence(posterior, Normal(0.0, 1.0))[t, b].sum().item()
            else:
                outlook = outlook_of(world, states, batch.action, t, b)
                expected = world.predicted(outlook).log_prob(latent[t, b][None]).item()
                kl += posterior.log_prob(latent)[t, b].sum().item() - expected
    assert loss.parts["kl_loss"].item() == pytest.approx(kl / (LENGTH * BATCH) / 4, rel=1e-4)
    assert loss.parts["observation_loss"].item() == pytest.approx(8 * errors.mean().item() / 4, rel=1e-4)
    assert {name: loss.parts[name] for name in ("reward_loss", "end_loss")} == {
        name: part for name, part in remembered.items() if name != "latent_loss"
    }
    assert loss.total.item() == pytest.approx(sum(part.item() for part in loss.parts.values()), rel=1e-5)


def test_codes_are_such_as_m_can_foretell_when_both_learn_together() -> None:
    """Half of what is seen is told by the action, half is chance: only the first half is worth telling apart."""
    shares = {}
    for together in (False, True):
        world = build(end_to_end=together, observation_scale=4.0, predict_reward=False, predict_end=False)
        shares[together] = foretold_share(world)
    assert shares[True] > shares[False] + 0.1, shares


def foretold_share(world: MDNRNN) -> float:
    """How much of the codes' information M foretells after learning what `told_and_chance` shows."""
    torch.manual_seed(0)
    noise = TorchNoise(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(world.parameters(), 1e-2)
    for _ in range(400):
        loss = world.loss(told_and_chance(), noise)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    batch = told_and_chance()
    code = world.vae.encode(batch.observation)
    latent = code.sample(noise)
    _, states = world.memory_loss(latent, batch)
    surprise = (code.log_prob(latent) - world.predicted(states.hidden).log_prob(latent))[1:].mean()
    return 1 - (surprise / code.kl()[1:].mean()).item()


def told_and_chance() -> SequenceBatch:
    """Observations whose first number is the last action's, and whose third is drawn anew at every step."""
    action = torch.rand(5, 32, 2) * 2 - 1
    seen = torch.stack([2 * action[..., 0], torch.zeros(5, 32), torch.rand(5, 32) * 4 - 2], -1)
    never = torch.zeros(5, 32, dtype=torch.bool)
    return SequenceBatch({"observation": seen}, action, torch.zeros(5, 32), never, never)


@pytest.mark.parametrize("layers", [0, 2])
def test_an_imagined_step_is_a_transition_and_its_outcome(layers: int) -> None:
    world, batch = build(layers=layers), sequences()
    _, states = world.memory_loss(torch.randn(LENGTH, BATCH, 4), batch)
    state, action = index_state(states, LENGTH - 1), torch.rand(BATCH, 2)
    imagined = world.imagine(state, action, ModeNoise(), temperature=0.5)
    reached = world.transition(state, action, ModeNoise(), temperature=0.5)
    torch.testing.assert_close(imagined, (reached, *world.outcome(state, action, reached)))


def test_a_deeper_m_foretells_where_things_move() -> None:
    """What is seen turns about the origin as far as the action says: a linear head on `h` does not tell that."""
    losses = {layers: loss_on_what_turns(build(latent=2, hidden=16, layers=layers, units=32)) for layers in (0, 2)}
    assert losses[2] < losses[0] - 0.5, losses


def loss_on_what_turns(world: MDNRNN) -> float:
    """Nats for each latent number after 300 updates of M."""
    generator = torch.Generator().manual_seed(0)
    never = torch.zeros(8, 64, dtype=torch.bool)

    def turning() -> tuple[torch.Tensor, SequenceBatch]:
        action = torch.rand(8, 64, 2, generator=generator) * 2 - 1
        angle = torch.rand(64, generator=generator) * 2 * math.pi + (math.pi * action[..., 0]).cumsum(0)
        latent = torch.stack([angle.sin(), angle.cos()], -1)
        latent = latent + 0.05 * torch.randn(latent.shape, generator=generator)
        return latent, SequenceBatch({}, action, torch.zeros(8, 64), never, never)

    return fit_memory(world, turning, rate=5e-3)[0]


def fit_memory(
    world: MDNRNN, drawn: Callable[[], tuple[torch.Tensor, SequenceBatch]], rate: float
) -> tuple[float, MDNRNNState]:
    """300 updates of M on known latents; the last one's `latent_loss` and states."""
    memory = [p for name, p in world.named_parameters() if not name.startswith("vae.")]
    optimizer = torch.optim.Adam(memory, rate)
    for _ in range(300):
        parts, states = world.memory_loss(*drawn())
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()
    return parts["latent_loss"].item(), states


@pytest.mark.parametrize("cell", [False, True])
def test_features_are_what_c_reads(cell: bool) -> None:
    world = build(cell_in_features=cell)
    state = world.observe(
        world.initial(2),
        torch.zeros(2, 2),
        {"observation": torch.randn(2, 3)},
        torch.zeros(2, dtype=torch.bool),
        ModeNoise(),
    )
    parts = [state.latent, state.hidden, *([state.cell] if cell else [])]
    torch.testing.assert_close(world.features(state), torch.cat(parts, -1))
    assert world.features(state).shape == (2, world.feature_size)
    torch.testing.assert_close(
        world.decode(world.features(state))["observation"], world.vae.decoder(state.latent)["observation"]
    )


def test_it_opens_as_a_dream_with_a_temperature(tmp_path: Path) -> None:
    world = build()
    starts = StartStates(world.initial(3), torch.ones(3, dtype=torch.bool))
    path = save_world(tmp_path / "world", world, starts)
    check_env(gym.make("Dream-v0", model=str(path)).unwrapped, skip_render_check=True)

    def spread(temperature: float) -> float:
        dreams = gym.make_vec(
            "Dream-v0", 400, model=str(path), observation="latent", temperature=temperature, termination="never"
        )
        dreams.reset(seed=0)
        for _ in range(3):
            features = dreams.step(np.zeros((400, 2), np.float32))[0]
        return float(np.asarray(features)[:, :4].std(0).mean())

    assert spread(0.0) == pytest.approx(0.0, abs=1e-5)
    assert 0 < spread(0.3) < spread(1.0) < spread(2.0)


def test_a_world_that_predicts_no_end_never_ends() -> None:
    world = build(predict_end=False, predict_reward=False)
    state = world.initial(2)
    outcome = world.outcome(state, torch.zeros(2, 2), state)
    assert outcome.continues.tolist() == [1.0, 1.0]
    assert outcome.reward.tolist() == [0.0, 0.0]
    model = as_model(world, StartStates(world.initial(1), torch.ones(1, dtype=torch.bool)))
    dream = gym.make("Dream-v0", model=model, horizon=30)
    dream.reset(seed=0)
    ends = [dream.step(np.zeros(2, np.float32))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]


def test_it_learns_that_the_future_is_one_of_two() -> None:
    """What is seen jumps to -1 or +1 by chance; one Gaussian would expect 0, where it never is."""
    torch.manual_seed(0)
    world = MDNRNN(SPACE, ACTIONS, replace(SMALL, latent=1, hidden=16, components=5))
    blank = torch.zeros(5, 64, dtype=torch.bool)

    def jumping() -> tuple[torch.Tensor, SequenceBatch]:
        latent = torch.randint(0, 2, (5, 64, 1)) * 2.0 - 1 + 0.1 * torch.randn(5, 64, 1)
        return latent, SequenceBatch({}, torch.zeros(5, 64, 2), torch.zeros(5, 64), blank, blank)

    loss, states = fit_memory(world, jumping, rate=2e-2)
    draws = world.predicted(states.hidden[-1]).sample(TorchNoise()).detach().abs()
    assert (draws > 0.5).float().mean() > 0.95
    assert loss < 0.3  # the best single Gaussian has 1.42, the best two 0.69 - 0.88 = -0.19
