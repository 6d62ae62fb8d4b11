"""Imagined rollouts in a small linear world, and the equations of the actor-critic against slow versions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agents.actors import OneHot, TanhNormal
from agents.imagination import (
    ReturnRange,
    Rollout,
    frozen,
    imagine_rollout,
    lambda_returns,
    matmul_precision,
    policy_objective,
    reach_weights,
)
from wmgym.random import Noise, TorchNoise
from wmgym.worlds.base import Observation, Outcome, SequenceBatch, World, WorldLoss

H, N, SIZE = 4, 3, 2


class Point(NamedTuple):
    x: Tensor  # (B, SIZE)


class LinearWorld(World):
    """`x' = A x + B a + noise`; reward and continuation read previous state, action and state reached. float64."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (SIZE,))
        self.action_space = spaces.Box(-1, 1, (1,))
        self.feature_size = SIZE
        self.drift = nn.Parameter(torch.tensor([[0.9, 0.2], [-0.3, 0.8]], dtype=torch.float64))
        self.push = nn.Parameter(torch.tensor([[0.5], [1.0]], dtype=torch.float64))

    def initial(self, batch_size: int) -> Point:
        return Point(torch.zeros(batch_size, SIZE, dtype=torch.float64))

    def observe(self, state: Point, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise) -> Point:
        return Point(observation["observation"])

    def transition(self, state: Point, action: Tensor, noise: Noise, temperature: float = 1.0) -> Point:
        return Point(state.x @ self.drift.T + action @ self.push.T + 0.1 * temperature * noise.normal(*state.x.shape))

    def outcome(self, previous: Point, action: Tensor, state: Point) -> Outcome:
        reward = state.x[..., 0] + 10 * previous.x[..., 1] + 100 * action[..., 0]
        return Outcome(reward, torch.sigmoid(1 + state.x[..., 1]))

    def features(self, state: Point) -> Tensor:
        return state.x

    def decode(self, features: Tensor) -> Observation:
        return {"observation": features}

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        return WorldLoss(batch.reward.sum(), {}, self.initial(1))


class LinearActor(nn.Module):
    """A tanh-normal whose statistics are linear in the features (`feedback`) or constant."""

    def __init__(self, feedback: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64), requires_grad=feedback)
        self.bias = nn.Parameter(torch.tensor([0.2, -0.5], dtype=torch.float64))
        self.feedback = feedback

    def forward(self, features: Tensor) -> TanhNormal:
        stats = self.bias + (features @ self.gain.T if self.feedback else torch.zeros_like(features))
        return TanhNormal(*stats[..., :1].split(1, -1), torch.exp(stats[..., 1:]))


def noise() -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(7))


def start() -> Point:
    return Point(torch.tensor([[0.1, -0.2], [1.0, 0.5], [-0.7, 0.3]], dtype=torch.float64))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


# -- rollouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_dynamics", [True, False])
def test_a_rollout_is_the_world_imagined_step_by_step(through_dynamics: bool) -> None:
    world, actor = LinearWorld(), LinearActor()
    rollout = imagine_rollout(world, actor, start(), H, noise(), through_dynamics)
    state, same = start(), noise()
    assert torch.equal(rollout.features[0], world.features(state))
    for t in range(H):
        policy = actor(world.features(state))
        action = policy.sample(same)
        previous, (state, reward, continues) = state, world.imagine(state, action, same)
        assert torch.allclose(rollout.actions[t], action)
        assert torch.allclose(rollout.features[t + 1], state.x)
        assert torch.allclose(rollout.rewards[t], state.x[:, 0] + 10 * previous.x[:, 1] + 100 * action[:, 0])
        assert torch.allclose(rollout.rewards[t], reward)
        assert torch.allclose(rollout.continues[t], continues)
        assert torch.allclose(rollout.policy.mean[t], policy.mean)
        assert torch.allclose(rollout.policy.std[t], policy.std)
    assert rollout.features.shape == (H + 1, N, SIZE)
    assert rollout.rewards.shape == rollout.continues.shape == (H, N)
    assert rollout.actions.shape == (H, N, 1)


def test_reinforce_keeps_no_graph_but_the_policys() -> None:
    world, actor = LinearWorld(), LinearActor()
    rollout = imagine_rollout(world, actor, start(), H, noise(), through_dynamics=False)
    assert not any(x.requires_grad for x in (rollout.features, rollout.actions, rollout.rewards, rollout.continues))
    rollout.policy.log_prob(rollout.actions).sum().backward()
    assert actor.gain.grad.abs().max() > 0
    assert all(p.grad is None for p in world.parameters())


@pytest.mark.parametrize("through_dynamics", [True, False])
def test_no_graph_is_built_where_gradients_are_off(through_dynamics: bool) -> None:
    with torch.no_grad():
        rollout = imagine_rollout(LinearWorld(), LinearActor(), start(), H, noise(), through_dynamics)
    assert not any(x.requires_grad for x in (*rollout[:4], *rollout.policy))


def test_a_frozen_world_passes_gradients_on_and_keeps_none() -> None:
    world, actor = LinearWorld(), LinearActor()
    world.push.requires_grad_(False)
    with frozen(world):
        rollout = imagine_rollout(world, actor, start(), H, noise())
        rollout.rewards.sum().backward()
    assert all(p.grad is None for p in world.parameters())
    assert actor.bias.grad.abs().max() > 0
    assert world.drift.requires_grad
    assert not world.push.requires_grad  # was off before


def test_a_frozen_world_thaws_after_an_error() -> None:
    world = LinearWorld()

    def fail() -> None:
        assert not any(p.requires_grad for p in world.parameters())
        raise RuntimeError("dream")

    with pytest.raises(RuntimeError, match="dream"), frozen(world, LinearActor()):
        fail()
    assert all(p.requires_grad for p in world.parameters())


def dream_value(rollout: Rollout) -> Tensor:
    """A scalar that depends on every reward, continuation and feature of a rollout."""
    values = torch.sin(rollout.features).sum(-1)
    return lambda_returns(rollout.rewards, 0.9 * rollout.continues, values, 0.8).sum()


def slow_value(world: LinearWorld, actor: LinearActor, seen: Tensor | None) -> float:
    """`dream_value` of a rollout step by step; the actor reads `seen` instead of where it is, if given."""
    state, same, steps, path = start(), noise(), [], [start()]
    for t in range(H):
        action = actor(world.features(state) if seen is None else seen[t]).sample(same)
        state, *outcome = world.imagine(state, action, same)
        steps.append(outcome)
        path.append(state)
    rewards, continues = (torch.stack(x) for x in zip(*steps, strict=True))
    features = torch.stack([world.features(s) for s in path])
    return dream_value(Rollout(features, torch.empty(0), rewards, continues, None)).item()


def numerical_gradient(parameter: Tensor, world: LinearWorld, actor: LinearActor, seen: Tensor | None) -> Tensor:
    gradient, step = torch.zeros_like(parameter), 1e-6
    with torch.no_grad():
        for i in np.ndindex(*parameter.shape):
            before = parameter[i].item()
            parameter[i] = before + step
            above = slow_value(world, actor, seen)
            parameter[i] = before - step
            gradient[i] = (above - slow_value(world, actor, seen)) / (2 * step)
            parameter[i] = before
    return gradient


def test_dynamics_gradient_is_the_derivative_of_the_return() -> None:
    world, actor = LinearWorld(), LinearActor(feedback=False)
    with frozen(world):
        dream_value(imagine_rollout(world, actor, start(), H, noise())).backward()
    assert torch.allclose(actor.bias.grad, numerical_gradient(actor.bias, world, actor, None), rtol=1e-5)


def test_dynamics_gradient_takes_what_the_actor_sees_as_given() -> None:
    world, actor = LinearWorld(), LinearActor()
    with frozen(world):
        rollout = imagine_rollout(world, actor, start(), H, noise())
        dream_value(rollout).backward()
    seen = rollout.features.detach()
    for parameter in (actor.gain, actor.bias):
        assert torch.allclose(parameter.grad, numerical_gradient(parameter, world, actor, seen), rtol=1e-5)


# -- lambda-returns -------------------------------------------------------------------------------------------


def slow_lambda_returns(rewards: Tensor, discounts: Tensor, values: Tensor, lam: float) -> Tensor:
    """DreamerV1 eqs. 5 and 6: a weighted sum of n-step returns, each a forward sum."""

    def n_step(t: int, n: int) -> Tensor:
        total, reach = torch.zeros_like(rewards[0]), torch.ones_like(rewards[0])
        for k in range(t, t + n):
            total, reach = total + reach * rewards[k], reach * discounts[k]
        return total + reach * values[t + n]

    horizon, returns = len(rewards), []
    for t in range(horizon):
        left = horizon - t
        mixed = sum(((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, left)), torch.zeros_like(rewards[0]))
        returns.append(mixed + lam ** (left - 1) * n_step(t, left))
    return torch.stack(returns)


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    horizon, seed = draw(st.integers(1, 8)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (10 * torch.randn(h, 3, generator=generator, dtype=torch.float64) for h in (horizon, horizon + 1))
    discounts = torch.rand(horizon, 3, generator=generator, dtype=torch.float64)
    discounts[discounts < 0.15] = 0.0  # some episodes end
    return rewards, discounts, values


@settings(max_examples=60, deadline=None)
@given(trajectories(), st.floats(0, 1))
def test_lambda_returns_equal_their_definition(path: tuple[Tensor, Tensor, Tensor], lam: float) -> None:
    assert torch.allclose(lambda_returns(*path, lam), slow_lambda_returns(*path, lam), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(trajectories())
def test_lambda_zero_looks_one_step_ahead(path: tuple[Tensor, Tensor, Tensor]) -> None:
    rewards, discounts, values = path
    assert torch.allclose(lambda_returns(*path, 0.0), rewards + discounts * values[1:])


@settings(max_examples=30, deadline=None)
@given(trajectories())
def test_lambda_one_sums_to_the_end_and_reads_only_the_last_value(path: tuple[Tensor, Tensor, Tensor]) -> None:
    rewards, discounts, values = path
    total = values[-1]
    for reward, discount in zip(rewards.flip(0), discounts.flip(0), strict=True):
        total = reward + discount * total
    returns = lambda_returns(*path, 1.0)
    assert torch.allclose(returns[0], total)
    others = torch.cat([torch.full_like(values[:-1], 1e9), values[-1:]])
    assert torch.equal(lambda_returns(rewards, discounts, others, 1.0), returns)


@settings(max_examples=30, deadline=None)
@given(trajectories(), st.floats(0, 1))
def test_consistent_values_are_their_own_lambda_returns(path: tuple[Tensor, Tensor, Tensor], lam: float) -> None:
    _, discounts, values = path
    rewards = values[:-1] - discounts * values[1:]  # v_t = r_t + d_t v_{t+1}
    assert torch.allclose(lambda_returns(rewards, discounts, values, lam), values[:-1], atol=1e-9)


def test_nothing_after_an_end_counts() -> None:
    rewards, values = torch.tensor([1.0, 2.0, 50.0]), torch.tensor([0.0, 7.0, 90.0, 70.0])
    returns = lambda_returns(rewards, torch.tensor([1.0, 0.0, 1.0]), values, 1.0)
    assert returns.tolist() == [3.0, 2.0, 120.0]


def test_reach_weights_are_products_of_the_discounts_before() -> None:
    discounts = torch.rand(5, 3, requires_grad=True)
    weights = reach_weights(discounts)
    for t in range(5):
        for n in range(3):
            assert weights[t, n].item() == pytest.approx(math.prod(discounts[:t, n].tolist()))
    assert not weights.requires_grad


# -- objective and scale --------------------------------------------------------------------------------------


def test_reinforce_over_all_actions_is_the_gradient_of_the_expected_return() -> None:
    logits = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([[5.0, -2.0, 1.0]], dtype=torch.float64)
    policy = OneHot(torch.log_softmax(logits, -1).expand(1, 3, 3))  # three rows, one for each choice
    rollout = Rollout(torch.zeros(2, 3, 1), torch.eye(3, dtype=torch.float64)[None], gain, gain, policy)
    probs = torch.softmax(logits, -1)
    for baseline in (torch.zeros_like(gain), torch.full_like(gain, 3.3)):
        objective = policy_objective(rollout, gain, baseline, reinforce=1.0)
        (gradient,) = torch.autograd.grad((probs.detach() * objective).sum(), logits, retain_graph=True)
        (expected,) = torch.autograd.grad((probs * gain).sum(), logits, retain_graph=True)
        assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("reinforce", [0.0, 0.3, 1.0])
def test_objective_mixes_reinforce_and_the_return(reinforce: float) -> None:
    mean = torch.randn(H, N, 1, requires_grad=True)
    policy = TanhNormal(mean, torch.ones(H, N, 1))
    actions = policy.sample(TorchNoise())
    returns, baseline = torch.randn(H, N, requires_grad=True), torch.randn(H, N, requires_grad=True)
    rollout = Rollout(torch.zeros(H + 1, N, 1), actions, returns, returns, policy)
    objective = policy_objective(rollout, returns, baseline, reinforce)
    log_prob = policy.log_prob(actions.detach())
    expected = reinforce * log_prob * (returns - baseline).detach() + (1 - reinforce) * returns
    assert torch.allclose(objective, expected, atol=1e-6)
    gradients = torch.autograd.grad(objective.sum(), (returns, baseline, mean), materialize_grads=True)
    assert torch.allclose(gradients[0], torch.full((H, N), 1 - reinforce))
    assert torch.equal(gradients[1], torch.zeros(H, N))
    (score,) = torch.autograd.grad((log_prob * (returns - baseline).detach()).sum(), mean)
    assert torch.allclose(gradients[2], reinforce * score, atol=1e-6)


def test_return_range_equals_a_slow_version() -> None:
    scale, low, high = ReturnRange(rate=0.1, minimum=1.0), 0.0, 0.0
    for step in range(20):
        returns = (3 + step) * torch.randn(15, 40)
        ordered = np.sort(returns.numpy().ravel())
        share = np.linspace(0, 1, ordered.size)
        low = 0.9 * low + 0.1 * float(np.interp(0.05, share, ordered))
        high = 0.9 * high + 0.1 * float(np.interp(0.95, share, ordered))
        assert scale.update(returns).item() == pytest.approx(max(1.0, high - low), rel=1e-4)


def test_return_range_blows_nothing_up_and_shrugs_at_outliers() -> None:
    scale = ReturnRange(rate=1.0, minimum=1.0)
    assert scale.update(1e-3 * torch.randn(1000)).item() == 1.0
    returns = torch.linspace(0, 10, 1001)
    returns[500] = 1e6
    assert scale.update(returns).item() == pytest.approx(9.0, abs=0.1)


def test_return_range_has_no_gradient_and_is_saved() -> None:
    scale = ReturnRange(rate=0.5)
    assert not scale.update(100 * torch.randn(50, requires_grad=True)).requires_grad
    other = ReturnRange(rate=0.5)
    other.load_state_dict(scale.state_dict())
    returns = torch.randn(50)
    assert torch.equal(other.update(returns), scale.update(returns))


def test_matmul_precision_is_put_back_even_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()

    def fail() -> None:
        assert torch.get_float32_matmul_precision() == "medium"
        raise RuntimeError("dream")

    with pytest.raises(RuntimeError, match="dream"), matmul_precision("bfloat16"):
        fail()
    assert torch.get_float32_matmul_precision() == before
