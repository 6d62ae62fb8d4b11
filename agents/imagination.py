"""Learning in imagination: rollouts in a world, lambda-returns, and what normalises them.

Indices, as in the papers: a rollout of horizon H from states s_0 has features f_0 .. f_H and actions a_0 .. a_{H-1};
`rewards[t]` and `continues[t]` belong to the step from f_t to f_{t+1}.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from wmgym.random import Noise
from wmgym.worlds.base import State, World, map_state, stack_states


class ActionDistribution(Protocol):
    """What an actor returns for features `(..., F)`."""

    def sample(self, noise: Noise) -> Tensor:
        """A draw `(..., A)`; reparameterised (or straight-through) where the kind of action allows."""

    def mode(self) -> Tensor:
        """The action to take when acting deterministically, `(..., A)`."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density `(...)` of `action` `(..., A)`."""

    def entropy(self) -> Tensor:
        """Entropy `(...)` in nats, or the stand-in that the actor's paper uses."""


class Rollout(NamedTuple):
    """A batch of imagined trajectories, time first."""

    features: Tensor  # (H + 1, N, F)
    actions: Tensor  # (H, N, A)
    rewards: Tensor  # (H, N)
    continues: Tensor  # (H, N)
    policy: Any  # ActionDistribution of every step, (H, N, ...)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within the block, gradients flow through the modules but not into their parameters."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Within the block, float32 matrix products may round their inputs to bfloat16 ("bfloat16") or not ("float32")."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if name == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def imagine_rollout(
    world: World, actor: nn.Module, start: State, horizon: int, noise: Noise, through_dynamics: bool = True
) -> Rollout:
    """Roll `actor` out in `world` for `horizon` steps from `start` `(N, ...)`.

    The actor reads features without gradient, as in DreamerV1: an action's gradient flows through the dynamics to
    later rewards and values, not through later actions' inputs. What does not feed back runs for all steps at once.

    Args:
        world: its parameters should be `frozen`.
        actor: features to an `ActionDistribution` (a NamedTuple of tensors).
        start: states without gradient.
        horizon: H.
        noise: source of the draws.
        through_dynamics: keep the graph from actions to later rewards; without it (REINFORCE) only `policy` has one.
    """
    states, policies, actions = [start], [], []
    with torch.set_grad_enabled(through_dynamics and torch.is_grad_enabled()):
        for _ in range(horizon):
            policies.append(actor(world.features(states[-1]).detach()))
            actions.append(policies[-1].sample(noise))
            states.append(world.transition(states[-1], actions[-1], noise))
        path, taken = stack_states(states), torch.stack(actions)
        features = world.features(path)
        outcome = world.outcome(map_state(lambda x: x[:-1], path), taken, map_state(lambda x: x[1:], path))
    policy = stack_states(policies) if through_dynamics else actor(features[:-1].detach())
    return Rollout(features, taken, *outcome, policy)


def lambda_returns(rewards: Tensor, discounts: Tensor, values: Tensor, lam: float | Tensor) -> Tensor:
    """The lambda-return of every step (DreamerV1 eq. 6, as a recursion backwards in time).

        R_t = r_t + d_t ((1 - lam) v_{t+1} + lam R_{t+1}),    R_H = v_H

    Args:
        rewards: `(H, ...)`, of the step from t to t + 1.
        discounts: `(H, ...)`, discount times probability of continuing, of the same step.
        values: `(H + 1, ...)`, at the states themselves.
        lam: 0 looks one step ahead, 1 to the end of the rollout; one number, or one a step, `(H, ...)`.

    Returns:
        `(H, ...)`.

    Example:
        >>> ones = torch.ones(2, 1)
        >>> lambda_returns(ones, 0.5 * ones, torch.tensor([[0.0], [0.0], [4.0]]), lam=1.0).squeeze(-1)
        tensor([2.5000, 3.0000])
    """
    inputs = rewards + discounts * (1 - lam) * values[1:]
    weights = discounts * lam
    last = values[-1]
    returns = []
    for gained, weight in zip(reversed(inputs.unbind()), reversed(weights.unbind()), strict=True):
        last = gained + weight * last
        returns.append(last)
    return torch.stack(returns[::-1])


def reach_weights(discounts: Tensor) -> Tensor:
    """How much the step at t counts, `(H, ...)`: the product of the discounts before it (1 at t = 0), no gradient."""
    first = torch.ones_like(discounts[:1])
    return torch.cumprod(torch.cat([first, discounts[:-1]]), 0).detach()


def policy_objective(rollout: Rollout, returns: Tensor, baseline: Tensor, reinforce: float) -> Tensor:
    """What an actor maximises at every step, `(H, N)` (DreamerV2 eq. 6, without weights and entropy).

    Args:
        rollout: with gradient through the dynamics unless `reinforce` is 1.
        returns: `(H, N)`, scaled.
        baseline: `(H, N)` values of the states acted from, in the same scale.
        reinforce: share of the REINFORCE estimate; the rest is the return itself, by backpropagation.
    """
    objective = torch.zeros_like(returns)
    if reinforce > 0:
        advantage = (returns - baseline).detach()
        objective = objective + reinforce * rollout.policy.log_prob(rollout.actions.detach()) * advantage
    if reinforce < 1:
        objective = objective + (1 - reinforce) * returns
    return objective


class ReturnRange(nn.Module):
    """DreamerV3's scale of returns: a running P95 - P5, at least `minimum`.

    Args:
        rate: share of the newest percentiles in the running ones.
        minimum: smallest scale; returns smaller than that are not blown up.

    Example:
        >>> scale = ReturnRange(rate=1.0)
        >>> round(scale.update(torch.arange(101.0)).item(), 3)
        90.0
    """

    shares: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, rate: float = 0.01, minimum: float = 1.0) -> None:
        super().__init__()
        self.rate, self.minimum = rate, minimum
        self.register_buffer("shares", torch.tensor([0.05, 0.95]), persistent=False)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def update(self, returns: Tensor) -> Tensor:
        """Take new returns in and give the scale, a scalar without gradient."""
        low, high = torch.quantile(returns.detach().flatten(), self.shares)
        self.low.lerp_(low, self.rate)
        self.high.lerp_(high, self.rate)
        return (self.high - self.low).clamp(min=self.minimum)
