"""TD-MPC2: its search, its values and its actor, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents import TDMPC2
from agents.critics import CriticEnsemble
from agents.planners import MPPI
from wmgym.random import Noise, TorchNoise

SMALL: dict[str, Any] = {
    "latent": 16, "units": 16, "encoder_units": 16, "depth": 4, "batch_size": 8, "candidates": 24, "elites": 6,
    "iterations": 2, "actor_plans": 4, "learning_starts": 40, "pretrain": 4, "train_freq": 4, "seed": 0,
    "device": "cpu",
}  # fmt: skip


def small(env: Any = "test/Reach-v0", **changes: Any) -> TDMPC2:
    return TDMPC2(env, **{**SMALL, **changes})


def noise(seed: int = 0) -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(seed))


class TwoWays:
    """One environment whose plans are worth how far they go, to whichever side."""

    num_envs, device = 1, torch.device("cpu")
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def returns(self, plans: Tensor, noise: Noise) -> Tensor:
        return 100 * plans[0].squeeze(-1).abs()


# -- the critics ----------------------------------------------------------------------------------------------


def test_an_ensemble_is_its_members_one_by_one() -> None:
    torch.manual_seed(0)
    critics = CriticEnsemble(features=5, actions=2, members=4, units=8)
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    features, action = torch.randn(3, 7, 5), torch.randn(3, 7, 2)
    values = critics(features, action)
    assert values.shape == (4, 3, 7)
    for index in range(4):
        x = torch.cat([features, action], -1)
        for weight, bias, scale, shift in zip(critics.weights, critics.biases, critics.scales, critics.shifts):
            x = x @ weight[index] + bias[index]
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
            x = torch.nn.functional.mish(x * scale[index] + shift[index])
        logits = x @ critics.weights[-1][index] + critics.biases[-1][index]
        torch.testing.assert_close(values[index], critics.two_hot.mean(logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(critics(features, action, torch.tensor([2, 0])), values[[2, 0]])


def test_the_loss_is_the_mean_over_members() -> None:
    critics = CriticEnsemble(features=5, actions=2, members=3, units=8)
    features, action, target = torch.randn(6, 5), torch.randn(6, 2), torch.randn(6)
    logits = critics.outputs(features, action)
    slow = torch.stack([critics.two_hot.loss(logits[index], target) for index in range(3)]).mean(0)
    torch.testing.assert_close(critics.loss(features, action, target), slow)


# -- the search -----------------------------------------------------------------------------------------------


def test_between_two_ways_it_takes_one() -> None:
    search = MPPI(horizon=1, candidates=64, iterations=1, elites=16, momentum=0.0, first_std=2.0)
    picked = []
    for seed in range(40):
        _, plans, returns = search.search(TwoWays(), noise(seed))
        picked.append(search.pick(plans, returns, noise(seed)).item())
    assert min(map(abs, picked)) > 0.9
    assert {np.sign(action) for action in picked} == {-1.0, 1.0}


def test_the_actors_plans_are_among_those_tried() -> None:
    class OnlyThree(TwoWays):
        def returns(self, plans: Tensor, noise: Noise) -> Tensor:
            assert plans.shape == (2, 1, 20, 1)
            return -1000 * (plans - 0.3).abs().sum((0, 3))

    search = MPPI(horizon=2, candidates=20, iterations=1, elites=2, momentum=0.0)
    proposals = torch.full((2, 1, 3, 1), 0.3)
    _, plans, returns = search.search(OnlyThree(), noise(), proposals=proposals)
    assert search.pick(plans, returns, noise()).item() == pytest.approx(0.3)


def test_an_environments_plan_depends_on_its_own_state_alone() -> None:
    agent = small().learn(60)
    seen = np.array([[0.3, 0.1], [-0.4, 0.9], [0.8, -0.2]], np.float32)
    together, _ = agent.predict(seen, deterministic=True)
    apart = [agent.predict(row, deterministic=True)[0] for row in seen]
    np.testing.assert_allclose(together, np.stack(apart), atol=1e-4)


def test_what_collects_strays_from_the_plan_and_what_is_judged_does_not() -> None:
    agent = small().learn(60)
    seen = np.array([0.3, 0.1], np.float32)
    judged = [agent.predict(seen, deterministic=True)[0].item() for _ in range(5)]
    assert len(set(judged)) == 1
    assert len({agent.predict(seen)[0].item() for _ in range(5)}) > 1


# -- learning -------------------------------------------------------------------------------------------------


def test_targets_are_the_least_of_two_slow_critics() -> None:
    agent = small(gamma=0.9).learn(60)
    batch = agent.replay_buffer.sample(8, 4)
    batch.is_terminal[2, 3] = True
    agent.noise = noise(5)
    found = agent._targets(batch)
    again, policy, world = noise(5), agent.policy, agent.world
    reached = world.encode(batch.observation).latent[1:]
    action = policy.actor(reached).sample(again)
    one, two = again.uniform(5).topk(2).indices
    values = policy.slow_critics(reached, action)
    torch.testing.assert_close(
        found, batch.reward[1:] + 0.9 * (~batch.is_terminal[1:]).float() * torch.minimum(values[one], values[two])
    )
    assert found[1, 3] == batch.reward[2, 3]


def test_values_are_scaled_by_those_of_states_that_were_seen() -> None:
    agent = small().learn(41)
    values = torch.stack([torch.linspace(0, 10, 101), torch.linspace(0, 30, 101)])  # of two critics
    foretold = torch.full((2, 3, 101), 1e6)
    agent.policy.return_range.rate = 1.0
    _, metrics = agent._objective(torch.cat([values[:, None], foretold], 1), agent.policy.actor(torch.zeros(101, 16)))
    assert metrics["return_scale"] == pytest.approx(18)  # P95 - P5 of their mean


def test_an_update_moves_everything_but_the_slow_critics_little() -> None:
    agent = small().learn(60)
    parts = {
        "encoder": agent.world.encoder, "dynamics": agent.world.dynamics, "decoder": agent.world.decoder,
        "actor": agent.policy.actor, "critics": agent.policy.critics, "slow": agent.policy.slow_critics,
    }  # fmt: skip
    before = {name: [p.detach().clone() for p in module.parameters()] for name, module in parts.items()}
    agent.update()
    for name, module in parts.items():
        moved = [not torch.equal(p, old) for p, old in zip(module.parameters(), before[name], strict=True)]
        assert any(moved), name
    now, old = [*agent.policy.critics.parameters()], before["slow"]
    for slow, fast, was in zip(agent.policy.slow_critics.parameters(), now, old, strict=True):
        torch.testing.assert_close(slow, 0.99 * was + 0.01 * fast)


def test_the_defaults_are_the_papers() -> None:
    agent = TDMPC2("Pendulum-v1", seed=0)
    assert agent.policy.planner == MPPI(3, 512, 6, 64, 0.5, 0.0, 0.05, 2.0, 2.0)
    assert (agent.batch_size, agent.batch_length, agent.updates_per_decision) == (256, 4, 1.0)
    assert (agent.pretrain, agent.gamma, agent.rho, agent.slow_rate, agent.clip) == (2500, 0.99, 0.5, 0.01, 20.0)
    assert agent._base_rates == {"encoder": pytest.approx(0.9e-4), "model": 3e-4, "actor": 3e-4}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"actor_plans": 24}, "actor_plans=24 leaves nothing to search"),
        ({"critics": 1}, "critics must be a whole number, 2 or more"),
        ({"elites": 30}, "elites must be 1 to candidates=24"),
        ({"gamma": 1.5}, "gamma must be a number"),
        ({"latent": 20}, "latent=20 must be a multiple of group=8"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**wrong)


def test_a_ratio_that_train_freq_would_overrule_is_refused() -> None:
    with pytest.raises(TypeError, match="TDMPC2 with a train_freq has no use for train_ratio=2"):
        small(train_ratio=2.0)
    assert small(train_ratio=8.0, train_freq=None, batch_size=2, batch_length=4).updates_per_decision == 1.0


def test_it_lives_in_its_own_dream(tmp_path: Path) -> None:
    path = small().learn(80).save(tmp_path / "agent")
    dreamt = small("Dream-v0", env_kwargs={"model": str(path), "horizon": 10}).learn(60)
    assert dreamt._n_updates > 0
    assert dreamt.predict(np.zeros(2, np.float32), deterministic=True)[0].shape == (1,)
    assert gym.make("Dream-v0", model=str(path)).observation_space == dreamt.observation_space


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_it_clearly_beats_chance(discrete: bool, assert_beats_chance: Callable[..., None]) -> None:
    agent = small(
        env_kwargs={"discrete": discrete}, learning_starts=200, pretrain=100, train_freq=2, batch_size=32,
        units=32, latent=32, learning_rate=1e-3,
    ).learn(1200)  # fmt: skip
    assert_beats_chance(agent, discrete=discrete)
