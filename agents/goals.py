"""Goals as Director has them: a few choices that stand for a state of the world, and what it is to come near one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wmgym.nets.distributions import Categoricals
from wmgym.nets.mlp import MLP
from wmgym.random import Noise
from wmgym.worlds.base import State


class GoalAutoencoder(nn.Module):
    """States of a world as `codes` choices among `classes`, and back.

    Args:
        size: D, width of the state (`deter` of an RSSM).
        codes: how many choices.
        classes: among how many.
        layers: hidden layers of encoder and decoder.
        units: width of each.

    Example:
        >>> from wmgym.random import TorchNoise
        >>> goals = GoalAutoencoder(size=16, codes=4, classes=4, layers=1, units=8)
        >>> goals.decode(goals.encode(torch.zeros(3, 16)).sample(TorchNoise())).shape
        torch.Size([3, 16])
    """

    def __init__(self, size: int, codes: int = 8, classes: int = 8, layers: int = 4, units: int = 512) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self.encoder = MLP(size, codes * classes, layers, units)
        self.decoder = MLP(codes * classes, size, layers, units)

    def encode(self, state: Tensor) -> Categoricals:
        """The distribution of the code of states `(..., D)`."""
        return Categoricals.from_stats(self.encoder(state), self.classes, 0.0)

    def decode(self, code: Tensor) -> Tensor:
        """The state `(..., D)` that codes `(..., codes * classes)` stand for."""
        return self.decoder(code)

    def losses(self, state: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Squared error `(...)` of a draw's way there and back, and the code's divergence from uniform, in nats."""
        code = self.encode(state)
        error = (self.decode(code.sample(noise)) - state).square().sum(-1)
        return error, code.kl(code.standard())

    @torch.no_grad()
    def novelty(self, state: Tensor, noise: Noise) -> Tensor:
        """Mean squared error `(...)` of the way there and back: large where no goal has been yet."""
        return (self.decode(self.encode(state).sample(noise)) - state).square().mean(-1)


class Codes(NamedTuple):
    """A manager's distribution over codes: independent choices."""

    choices: Categoricals

    def sample(self, noise: Noise) -> Tensor:
        """One-hot vectors side by side, `(..., codes * classes)`."""
        return self.choices.sample(noise)

    def mode(self) -> Tensor:
        """The likeliest of each choice."""
        log_probs = self.choices.log_probs
        return nn.functional.one_hot(log_probs.argmax(-1), log_probs.shape[-1]).to(log_probs.dtype).flatten(-2)

    def log_prob(self, code: Tensor) -> Tensor:
        """Log probability `(...)` of one-hot vectors side by side."""
        log_probs = self.choices.log_probs
        return (log_probs * code.unflatten(-1, log_probs.shape[-2:])).sum((-2, -1))

    def entropy(self) -> Tensor:
        """Entropy `(...)` as a share of the largest there is."""
        codes, classes = self.choices.log_probs.shape[-2:]
        return self.choices.entropy() / (codes * math.log(classes))


class Manager(nn.Module):
    """Chooses goals: features to a distribution over codes.

    Args:
        features: width of the features.
        codes: how many choices.
        classes: among how many.
        layers: hidden layers.
        units: width of each.
    """

    def __init__(self, features: int, codes: int, classes: int, layers: int, units: int) -> None:
        super().__init__()
        self.classes = classes
        self.net = MLP(features, codes * classes, layers, units)

    def forward(self, features: Tensor) -> Codes:
        """The distribution at features `(..., F)`."""
        return Codes(Categoricals.from_stats(self.net(features), self.classes, 0.0))


class Pressure(nn.Module):
    """A weight that grows or shrinks by a tenth at a time until a quantity is within a tenth of its target.

    Args:
        target: of the quantity.
        start: first weight.
        most: largest; the smallest is 1e-5.
        downward: whether the weight presses the quantity down (a divergence) or up (an entropy).

    Source: Hafner et al. 2022 (Director), its code's AutoAdapt.

    Example:
        >>> pressure = Pressure(target=10.0, start=0.1, most=1.0)
        >>> round(pressure(torch.tensor(20.0)).item(), 3)
        0.11
    """

    weight: Tensor

    def __init__(self, target: float, start: float, most: float, downward: bool = True) -> None:
        super().__init__()
        self.target, self.most, self.downward = target, most, downward
        self.register_buffer("weight", torch.tensor(start))

    def forward(self, value: Tensor) -> Tensor:
        """Take a new value of the quantity in, and give the weight."""
        above, below = value.detach() > 1.1 * self.target, value.detach() < 0.9 * self.target
        grow, shrink = (above, below) if self.downward else (below, above)
        factor = 1 + 0.1 * grow.float()
        self.weight.mul_(factor / (1 + 0.1 * shrink.float())).clamp_(1e-5, self.most)
        return self.weight.clone()


def max_cosine(goal: Tensor, state: Tensor) -> Tensor:
    """How near states `(..., D)` are to goals: `g . s / max(|g|, |s|)^2`, 1 at the goal and nowhere else.

    Source: Hafner et al. 2022 (Director), equation 7.
    """
    longest = torch.maximum(goal.norm(dim=-1), state.norm(dim=-1)).clamp(min=1e-6)
    return (goal * state).sum(-1) / longest.square()


class GoalDirected:
    """A worker as an actor in a dream, of whom a manager wants something else every K steps.

    Args:
        worker: actor of `[features, goal]`.
        manager: features to `Codes`.
        goals: decodes them.
        every: K.
        noise: source of the draws.

    Attributes:
        codes: chosen so far, one `(N, codes * classes)` for every K steps.
        wanted: the goals `(N, D)` that they stand for.
    """

    def __init__(self, worker: nn.Module, manager: nn.Module, goals: GoalAutoencoder, every: int, noise: Noise) -> None:
        self.worker, self.manager, self.goals = worker, manager, goals
        self.every, self.noise, self.steps = every, noise, 0
        self.codes: list[Tensor] = []
        self.wanted: list[Tensor] = []

    def __call__(self, features: Tensor) -> State:
        """The worker's distribution at features `(N, F)` of the next step, or `(H, N, F)` of all that were."""
        if features.dim() == 3:
            goal = torch.stack(self.wanted).repeat_interleave(self.every, 0)
            return self.worker(torch.cat([features, goal], -1))
        if self.steps % self.every == 0:
            with torch.no_grad():
                self.codes.append(self.manager(features).sample(self.noise))
                self.wanted.append(self.goals.decode(self.codes[-1]))
        self.steps += 1
        return self.worker(torch.cat([features, self.wanted[-1]], -1))
