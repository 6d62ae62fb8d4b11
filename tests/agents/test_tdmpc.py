"""TD-MPC: what it anneals, what it compares its latent with, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents import TDMPC
from agents.planners import MPPI
from agents.tdmpc import NoisyAction
from wmgym import checkpoint
from wmgym.random import TorchNoise
from wmgym.spaces import SpaceError

SMALL: dict[str, Any] = {
    "latent": 16, "units": 16, "encoder_units": 16, "depth": 4, "batch_size": 8, "candidates": 24, "elites": 6,
    "iterations": 2, "actor_plans": 4, "learning_starts": 40, "pretrain": 4, "train_freq": 4, "annealing": 40,
    "seed": 0, "device": "cpu",
}  # fmt: skip


def small(env: Any = "test/Reach-v0", **changes: Any) -> TDMPC:
    return TDMPC(env, **{**SMALL, **changes})


def test_plans_grow_while_their_belief_narrows() -> None:
    agent, seen = small(annealing=80), []
    agent.learn(100, callback=lambda *_: seen.append((int(agent.policy.reach), agent.policy.breadth.item())) or True)
    reach, std = zip(*seen, strict=True)
    assert reach[:20] == (1,) * 20
    assert sorted(reach) == list(reach)
    assert reach[-1] == 5
    assert std[0] == 0.5
    assert std[40] == pytest.approx(0.275)
    assert std[-1] == pytest.approx(0.05)
    planner = agent.policy.present_planner()
    assert (planner.horizon, planner.min_std) == (5, pytest.approx(0.05))
    assert agent.policy.actor.std == 0.05  # the actor's own noise is always the last


def test_learning_on_does_not_make_the_search_small_again() -> None:
    """`learn` counts its decisions from zero unless it is told otherwise."""
    agent = small(annealing=50).learn(80)
    agent.learn(1)
    assert (int(agent.policy.reach), agent.policy.breadth.item()) == (5, pytest.approx(0.05))


def test_what_is_loaded_searches_as_far_as_what_was_saved(tmp_path: Any) -> None:
    agent = small(annealing=100).learn(80)
    again = TDMPC.load(agent.save(tmp_path / "agent"), device="cpu")
    assert int(again.policy.reach) == int(agent.policy.reach) == 4
    seen = np.array([0.3, 0.1], np.float32)
    np.testing.assert_array_equal(
        again.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0]
    )


def test_files_that_have_the_breadth_as_the_actors_noise_are_read(tmp_path: Any) -> None:
    path = small(annealing=100).learn(80).save(tmp_path / "agent.zip")
    manifest, tensors = checkpoint.load(path)
    tensors["agent/actor.std"] = tensors.pop("agent/breadth")
    checkpoint.save(path, manifest, tensors)
    assert TDMPC.load(path, device="cpu").policy.breadth == tensors["agent/actor.std"]


def test_the_defaults_are_the_papers() -> None:
    agent = TDMPC("Pendulum-v1", seed=0)
    assert agent.policy.planner == MPPI(5, 537, 6, 64, 0.5, 0.1, 0.05, 2.0, 2.0)
    assert (agent.batch_size, agent.batch_length, agent.updates_per_decision, agent.clip) == (512, 6, 1.0, 10.0)
    world = agent.world.config
    assert (world.latent, world.group, world.units, world.act, world.norm) == (50, 0, 512, "elu", "none")
    assert (world.reward, world.slow_targets, world.consistency_scale, world.reward_scale) == ("mse", True, 2.0, 0.5)
    assert set(agent._base_rates.values()) == {1e-3}


def test_the_latent_is_compared_with_a_slow_encoders() -> None:
    agent = small().learn(60)
    world, batch = agent.world, agent.replay_buffer.sample(8, 6)
    encoder, project = world.slow_encoder
    slow = project(encoder(batch.observation))
    assert not torch.allclose(slow, world.encode(batch.observation).latent)
    foretold = world.loss(batch, agent.noise).states.latent
    expected = (world.weights(batch) * 2.0 * (foretold - slow).square().mean(-1)[1:]).sum()
    torch.testing.assert_close(world.loss(batch, agent.noise).parts["consistency_loss"], expected.detach())
    before = [p.clone() for p in world.slow_encoder.parameters()]
    world.follow(0.5)
    fast = [*world.encoder.parameters(), *world.project.parameters()]
    for now, was, target in zip(world.slow_encoder.parameters(), before, fast, strict=True):
        torch.testing.assert_close(now, (was + target) / 2)


def test_noise_is_cut_off_and_lets_the_gradient_through() -> None:
    mean = torch.full((1000, 1), 0.9, requires_grad=True)
    draw = NoisyAction(mean, torch.tensor(0.5)).sample(TorchNoise(torch.Generator().manual_seed(0)))
    assert draw.max() <= 1
    assert draw.std() > 0.2
    draw.sum().backward()
    assert mean.grad is not None
    assert (mean.grad == 1).all()


def test_discrete_actions_are_refused_by_name() -> None:
    with pytest.raises(SpaceError, match="TDMPC needs continuous actions"):
        small("CartPole-v1")


def test_it_clearly_beats_chance(assert_beats_chance: Callable[..., None]) -> None:
    agent = small(
        learning_starts=200, pretrain=100, train_freq=2, batch_size=32, units=32, annealing=600, horizon=3
    ).learn(1200)
    assert_beats_chance(agent)
