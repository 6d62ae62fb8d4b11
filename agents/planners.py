"""Planners: search for the actions that a model likes best, from scratch at every decision.

    belief <- over action sequences of H steps, one for each of N environments
    repeat: plans <- J draws from the belief
            returns <- what the model says each of them brings         one forward pass a step, all N * J at once
            belief <- fitted to the best of them
    act:    the first action of the belief

What differs is the fit: CEM takes the mean and deviation of the best K, MPPI weighs them by their returns, random
shooting keeps the best one. A belief over continuous actions is a diagonal Gaussian (cut off at [-1, 1]), over discrete
ones a distribution for each step; every planner has both. Where plans are tried is `agents.plannable`'s concern.

All environments share the random numbers of a search, so that the plan for one depends on its own state alone.

Sources: Rubinstein 1997 (CEM), Chua et al. 2018 (PETS) and Hafner et al. 2019 (PlaNet, algorithm 2) for its use here;
Williams et al. 2015 (MPPI), as Hansen et al. 2022 (TD-MPC) have it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from wmgym.random import Noise
from wmgym.spaces import action_size


class Plannable(Protocol):
    """Somewhere that plans can be tried: `num_envs` environments, each in a state of its own."""

    num_envs: int
    device: torch.device

    @property
    def action_space(self) -> spaces.Box | spaces.Discrete:
        """Of one environment."""

    def returns(self, plans: Tensor, noise: Noise) -> Tensor:
        """What plans `(H, N, J, A)`, actions as a world reads them, are expected to bring, `(N, J)`."""


# -- beliefs over plans ---------------------------------------------------------------------------------------


class GaussianBelief(NamedTuple):
    """Independent Gaussians over continuous actions in [-1, 1]."""

    mean: Tensor  # (H, N, A)
    std: Tensor  # (H, N, A)

    @classmethod
    def around(cls, mean: Tensor, std: float = 1.0) -> GaussianBelief:
        """A wide belief around `mean` `(H, N, A)`."""
        return cls(mean, torch.full_like(mean, std))

    def sample(self, count: int, noise: Noise) -> Tensor:
        """Plans `(H, N, count, A)`."""
        horizon, _, size = self.mean.shape
        draws = noise.normal(horizon, 1, count, size)
        return torch.addcmul(self.mean.unsqueeze(2), self.std.unsqueeze(2), draws).clamp_(-1, 1)

    def fit(self, plans: Tensor, weights: Tensor) -> GaussianBelief:
        """The weighted mean and deviation of plans `(H, N, K, A)` with weights `(N, K)` that sum to 1."""
        share = weights[None, :, :, None]
        mean = (share * plans).sum(2)
        return GaussianBelief(mean, ((share * (plans - mean.unsqueeze(2)).square()).sum(2) + 1e-6).sqrt())

    def action(self) -> Tensor:
        """The first action, `(N, A)`."""
        return self.mean[0]

    def blur(self, action: Tensor, noise: Noise) -> Tensor:
        """`action` `(N, A)` with noise as wide as the first action is unsure, in each environment by itself."""
        return torch.addcmul(action, self.std[0], noise.normal(*action.shape)).clamp_(-1, 1)


class CategoricalBelief(NamedTuple):
    """Independent distributions over discrete actions, one a step."""

    mean: Tensor  # (H, N, A) probabilities

    @classmethod
    def around(cls, mean: Tensor, std: float = 1.0) -> CategoricalBelief:
        """Half of `mean` `(H, N, A)` (zeros: nothing), the rest uniform."""
        total = mean.sum(-1, keepdim=True)
        known = torch.where(total > 0, mean / total.clamp(min=1e-6), 1 / mean.shape[-1])
        return cls(0.5 * known + 0.5 / mean.shape[-1])

    def sample(self, count: int, noise: Noise) -> Tensor:
        """One-hot plans `(H, N, count, A)`."""
        horizon, _, size = self.mean.shape
        draws = self.mean.log().unsqueeze(2) + noise.gumbel(horizon, 1, count, size)
        return F.one_hot(draws.argmax(-1), size).to(self.mean.dtype)

    def fit(self, plans: Tensor, weights: Tensor) -> CategoricalBelief:
        """The weighted frequencies in plans `(H, N, K, A)` with weights `(N, K)` that sum to 1; none is ever zero."""
        frequency = (weights[None, :, :, None] * plans).sum(2)
        return CategoricalBelief(0.99 * frequency + 0.01 / self.mean.shape[-1])

    def action(self) -> Tensor:
        """The likeliest first action, one-hot `(N, A)`."""
        return F.one_hot(self.mean[0].argmax(-1), self.mean.shape[-1]).to(self.mean.dtype)

    def blur(self, action: Tensor, noise: Noise) -> Tensor:
        """`action` as it is: what is drawn from a distribution over choices needs no noise."""
        return action


Belief = GaussianBelief | CategoricalBelief


# -- planners -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planner(ABC):
    """A search for good plans, the same for all of them but for the fit.

    Args:
        horizon: H, steps of a plan.
        candidates: J, plans tried in an iteration.
        iterations: of drawing and fitting.
    """

    horizon: int = 12
    candidates: int = 1000
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ("horizon", "candidates", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}.")

    def plan(
        self, model: Plannable, noise: Noise, start: Tensor | None = None, proposals: Tensor | None = None
    ) -> Belief:
        """The belief that `search` ends with; its `action()` `(N, A)` is the decision. The arguments are the same."""
        return self.search(model, noise, start, proposals)[0]

    @torch.no_grad()
    def search(
        self, model: Plannable, noise: Noise, start: Tensor | None = None, proposals: Tensor | None = None
    ) -> tuple[Belief, Tensor, Tensor]:
        """Search from the present states of `model`.

        Args:
            model: where plans are tried.
            noise: source of the draws.
            start: a plan `(H, N, A)` to search around, such as `shifted(...)` of the last one (warm start); None
                begins from zero, PlaNet's way.
            proposals: plans `(H, N, K, A)` of another kind, such as a policy's, that are tried in every iteration; they
                are among the `candidates`.

        Returns:
            The belief after the last fit, and what it was fitted to: plans `(H, N, J, A)` and their returns `(N, J)`.
        """
        if start is None:
            size = action_size(model.action_space)
            start = torch.zeros(self.horizon, model.num_envs, size, device=model.device)
        discrete = isinstance(model.action_space, spaces.Discrete)
        belief: Belief = CategoricalBelief.around(start) if discrete else self.first_belief(start)
        drawn = self.candidates - (0 if proposals is None else proposals.shape[2])
        for _ in range(self.iterations):
            plans = belief.sample(drawn, noise)
            plans = plans if proposals is None else torch.cat([plans, proposals], 2)
            # A world that has diverged says NaN, which would be sorted to the top.
            returns = model.returns(plans, noise).nan_to_num(nan=-torch.inf)
            belief = self.fit(belief, plans, returns)
        return belief, plans, returns

    def first_belief(self, start: Tensor) -> GaussianBelief:
        """What continuous plans are first drawn from, around `start` `(H, N, A)`."""
        return GaussianBelief.around(start)

    @abstractmethod
    def fit(self, belief: Belief, plans: Tensor, returns: Tensor) -> Belief:
        """The next belief from plans `(H, N, J, A)` and their returns `(N, J)`."""


def best(plans: Tensor, returns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` plans with the highest returns: `(H, N, count, A)` and `(N, count)`, best first."""
    top, index = returns.topk(count, dim=-1)
    index = index[None, :, :, None].expand(plans.shape[0], -1, -1, plans.shape[-1])
    return plans.gather(2, index), top


def shifted(plan: Tensor) -> Tensor:
    """The rest of a plan `(H, N, A)` after its first step, zero at the end."""
    return torch.cat([plan[1:], torch.zeros_like(plan[:1])])


@dataclass(frozen=True)
class RandomShooting(Planner):
    """The best of `candidates` random plans. There is one iteration: what one plan says is nothing to draw around.

    Example:
        >>> RandomShooting(candidates=64)
        RandomShooting(horizon=12, candidates=64, iterations=1)
    """

    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations != 1:
            raise ValueError(f"Random shooting has 1 iteration, not {self.iterations}: use more candidates, or CEM.")

    def fit(self, belief: Belief, plans: Tensor, returns: Tensor) -> Belief:
        """The best plan alone."""
        chosen, top = best(plans, returns, 1)
        return belief.fit(chosen, torch.ones_like(top))


@dataclass(frozen=True)
class CEM(Planner):
    """The cross-entropy method: the belief is fitted to the best plans, which count alike (PlaNet's settings).

    Args:
        elites: K, how many plans are the best.

    Example:
        >>> import numpy as np
        >>> from agents.plannable import plannable
        >>> from wmgym.random import TorchNoise
        >>> from wmgym.worlds.rssm import RSSM
        >>> world = RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
        >>> model = plannable(world, world.initial(4))
        >>> CEM(candidates=64, elites=8, iterations=3).plan(model, TorchNoise()).action().shape
        torch.Size([4, 2])
    """

    elites: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.elites <= self.candidates:
            raise ValueError(f"elites must be 1 to candidates={self.candidates}, not {self.elites}.")

    def fit(self, belief: Belief, plans: Tensor, returns: Tensor) -> Belief:
        """The best plans' mean and deviation, or frequencies."""
        chosen, top = best(plans, returns, self.elites)
        return belief.fit(chosen, torch.full_like(top, 1 / self.elites))


@dataclass(frozen=True)
class MPPI(CEM):
    """Model predictive path integral control: the best plans count by the exponential of their returns.

    Args:
        temperature: factor on the returns in the exponent; 0 is CEM.
        momentum: share of the old mean in the new one.
        min_std: smallest deviation of continuous actions.
        max_std: largest.
        first_std: of the first draws.

    Example:
        >>> MPPI(candidates=512, elites=64, iterations=6).temperature
        0.5
    """

    temperature: float = 0.5
    momentum: float = 0.1
    min_std: float = 0.05
    max_std: float = 2.0
    first_std: float = 1.0

    def first_belief(self, start: Tensor) -> GaussianBelief:
        """See `Planner.first_belief`."""
        return GaussianBelief.around(start, self.first_std)

    def fit(self, belief: Belief, plans: Tensor, returns: Tensor) -> Belief:
        """The best plans' weighted mean and deviation, or frequencies."""
        chosen, top = best(plans, returns, self.elites)
        fitted = belief.fit(chosen, torch.softmax(self.temperature * top, -1))
        fitted = fitted._replace(mean=torch.lerp(fitted.mean, belief.mean, self.momentum))
        if isinstance(fitted, GaussianBelief):
            fitted = fitted._replace(std=fitted.std.clamp(self.min_std, self.max_std))
        return fitted

    def pick(self, plans: Tensor, returns: Tensor, noise: Noise) -> Tensor:
        """The first action `(N, A)` of one of the best plans, drawn by the weights that they have.

        Between two ways that are as good the mean of both may be none; TD-MPC2 therefore acts so, and tests so.

        Args:
            plans: `(H, N, J, A)`.
            returns: `(N, J)`.
            noise: source of the draw, the same for all environments.
        """
        chosen, top = best(plans, returns, self.elites)
        drawn = (self.temperature * top + noise.gumbel(self.elites)).argmax(-1)  # (N,)
        return chosen[0].gather(1, drawn[:, None, None].expand(-1, 1, chosen.shape[-1])).squeeze(1)


PLANNERS: dict[str, type[Planner]] = {"cem": CEM, "mppi": MPPI, "random": RandomShooting}
"""By the names that agents use."""
