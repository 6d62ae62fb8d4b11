"""Actors and critics: what reads a world's features."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.nets.distributions import TwoHot, one_hot
from wmgym.nets.mlp import MLP, Activation, Init, Norm
from wmgym.random import Noise
from wmgym.spaces import action_size

ActorKind = Literal["tanh_normal", "truncated_normal", "bounded_normal", "squashed_normal"]

_HALF_LOG_2PI_E = 0.5 * math.log(2 * math.pi * math.e)
_EDGE = 1 - 1e-6  # tanh reaches 1 in float32; its inverse must stay finite


class TanhNormal(NamedTuple):
    """DreamerV1's actor: a Normal squashed by tanh."""

    mean: Tensor  # (..., A), before the squashing
    std: Tensor  # (..., A)

    @classmethod
    def from_stats(cls, stats: Tensor, init_std: float, min_std: float) -> TanhNormal:
        """Mean `5 tanh(m / 5)`, deviation `softplus(s + softplus^-1(init_std)) + min_std`."""
        mean, raw = stats.chunk(2, -1)
        offset = math.log(math.expm1(init_std))
        return cls(5 * torch.tanh(mean / 5), F.softplus(raw + offset) + min_std)

    @classmethod
    def from_log_stats(cls, stats: Tensor, low: float = -10.0, high: float = 2.0) -> TanhNormal:
        """TD-MPC2's: mean `m`, logarithm of the deviation `low + (high - low) (tanh(s) + 1) / 2`."""
        mean, raw = stats.chunk(2, -1)
        return cls(mean, (low + 0.5 * (high - low) * (torch.tanh(raw) + 1)).exp())

    def sample(self, noise: Noise) -> Tensor:
        """A reparameterised draw in (-1, 1)."""
        return torch.tanh(self.mean + self.std * noise.normal(*self.mean.shape))

    def mode(self) -> Tensor:
        """The squashed mean (the paper searches 100 samples for the mode; the mean needs none)."""
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density, summed over dimensions."""
        raw = torch.atanh(action.clamp(-_EDGE, _EDGE))
        normal = -0.5 * ((raw - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # ln(1 - tanh^2)
        return (normal - slope).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy of the Normal before squashing, whose own has no closed form."""
        return (self.std.log() + _HALF_LOG_2PI_E).sum(-1)


class BoundedNormal(NamedTuple):
    """DreamerV3's actor: a Normal whose mean lies in [-1, 1]; draws are clipped by the environment."""

    mean: Tensor  # (..., A)
    std: Tensor  # (..., A)

    @classmethod
    def from_stats(cls, stats: Tensor, min_std: float, max_std: float) -> BoundedNormal:
        """Mean `tanh(m)`, deviation `(max - min) sigmoid(s + 2) + min`."""
        mean, raw = stats.chunk(2, -1)
        return cls(torch.tanh(mean), (max_std - min_std) * torch.sigmoid(raw + 2) + min_std)

    def sample(self, noise: Noise) -> Tensor:
        """A reparameterised draw."""
        return self.mean + self.std * noise.normal(*self.mean.shape)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density, summed over dimensions."""
        normal = -0.5 * ((action - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return normal.sum(-1)

    def entropy(self) -> Tensor:
        """Entropy, summed over dimensions."""
        return (self.std.log() + _HALF_LOG_2PI_E).sum(-1)


class TruncatedNormal(NamedTuple):
    """DreamerV2's actor: a Normal truncated to [-1, 1]."""

    mean: Tensor  # (..., A)
    std: Tensor  # (..., A)

    @classmethod
    def from_stats(cls, stats: Tensor, min_std: float) -> TruncatedNormal:
        """Mean `tanh(m)`, deviation `2 sigmoid(s / 2) + min_std`."""
        mean, raw = stats.chunk(2, -1)
        return cls(torch.tanh(mean), 2 * torch.sigmoid(raw / 2) + min_std)

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised bounds and the mass between them."""
        low, high = (-1 - self.mean) / self.std, (1 - self.mean) / self.std
        mass = (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp(min=1e-6)
        return low, high, mass

    def sample(self, noise: Noise) -> Tensor:
        """A reparameterised draw by the inverse distribution function, in [-1, 1]."""
        low, _, mass = self._bounds()
        share = (torch.special.ndtr(low) + noise.uniform(*self.mean.shape) * mass).clamp(1e-6, 1 - 1e-6)
        return (self.mean + self.std * torch.special.ndtri(share)).clamp(-_EDGE, _EDGE)

    def mode(self) -> Tensor:
        """The mean, which lies inside the bounds."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density, summed over dimensions."""
        normal = -0.5 * ((action - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return (normal - self._bounds()[2].log()).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy, summed over dimensions."""
        low, high, mass = self._bounds()
        density = [torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi) for x in (low, high)]
        shape = (low * density[0] - high * density[1]) / (2 * mass)
        return (_HALF_LOG_2PI_E + self.std.log() + mass.log() + shape).sum(-1)


class OneHot(NamedTuple):
    """A discrete action as a one-hot vector."""

    log_probs: Tensor  # (..., A)

    @classmethod
    def from_stats(cls, logits: Tensor, unimix: float) -> OneHot:
        """From logits, mixed with a share `unimix` of the uniform distribution."""
        if unimix == 0.0:
            return cls(torch.log_softmax(logits, -1))
        return cls(torch.log((1 - unimix) * torch.softmax(logits, -1) + unimix / logits.shape[-1]))

    def sample(self, noise: Noise) -> Tensor:
        """A straight-through draw."""
        chosen = (self.log_probs.detach() + noise.gumbel(*self.log_probs.shape)).argmax(-1)
        probs = self.log_probs.exp()
        return one_hot(chosen, probs.detach()) + (probs - probs.detach())

    def mode(self) -> Tensor:
        """The most probable choice."""
        return one_hot(self.log_probs.argmax(-1), self.log_probs.detach())

    def log_prob(self, action: Tensor) -> Tensor:
        """Log probability of a one-hot `action`."""
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class Actor(nn.Module):
    """A policy over a world's features.

    Args:
        features: width of the features.
        action_space: `Box` or `Discrete` (the latter is always `OneHot`).
        layers: hidden layers.
        units: width of each.
        kind: the distribution of a continuous action.
        act: activation.
        norm: normalisation.
        init: initialisation.
        out_scale: factor on the output layer's first weights.
        init_std: deviation of a `tanh_normal` at the start.
        min_std: smallest deviation.
        unimix: share of the uniform distribution in a discrete action.
    """

    def __init__(
        self,
        features: int,
        action_space: spaces.Space,
        layers: int,
        units: int,
        kind: ActorKind = "tanh_normal",
        act: Activation = "silu",
        norm: Norm = "layer",
        init: Init = "torch",
        out_scale: float = 1.0,
        init_std: float = 1.0,
        min_std: float = 0.1,
        unimix: float = 0.0,
    ) -> None:
        super().__init__()
        self.discrete = isinstance(action_space, spaces.Discrete)
        self.kind, self.init_std, self.min_std, self.unimix = kind, init_std, min_std, unimix
        out = action_size(action_space) * (1 if self.discrete else 2)
        self.net = MLP(features, out, layers, units, act, norm, init, out_scale)

    def forward(self, features: Tensor) -> TanhNormal | TruncatedNormal | BoundedNormal | OneHot:
        """The distribution of the action at features `(..., F)`."""
        stats = self.net(features)
        if self.discrete:
            return OneHot.from_stats(stats, self.unimix)
        if self.kind == "tanh_normal":
            return TanhNormal.from_stats(stats, self.init_std, self.min_std)
        if self.kind == "truncated_normal":
            return TruncatedNormal.from_stats(stats, self.min_std)
        if self.kind == "squashed_normal":
            return TanhNormal.from_log_stats(stats)
        return BoundedNormal.from_stats(stats, self.min_std, 1.0)


class Critic(nn.Module):
    """A value function over a world's features, by squared error or by two-hot classification.

    Args:
        features: width of the features.
        layers: hidden layers.
        units: width of each.
        two_hot: whether values are classified over 255 bins (DreamerV3) or regressed.
        act: activation.
        norm: normalisation.
        init: initialisation.
        out_scale: factor on the output layer's first weights.
    """

    def __init__(
        self,
        features: int,
        layers: int,
        units: int,
        two_hot: bool = False,
        act: Activation = "silu",
        norm: Norm = "layer",
        init: Init = "torch",
        out_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.two_hot = TwoHot() if two_hot else None
        out = len(self.two_hot.bins) if self.two_hot else 1
        self.net = MLP(features, out, layers, units, act, norm, init, out_scale)

    def forward(self, features: Tensor) -> Tensor:
        """Values `(...)` of features `(..., F)`."""
        out = self.net(features)
        return self.two_hot.mean(out) if self.two_hot else out.squeeze(-1)

    def loss(self, features: Tensor, *targets: Tensor) -> Tensor:
        """Loss `(...)` of the values at `features` against each of `targets` `(...)`, summed over the targets.

        Half the squared error (a unit Normal's), or the cross-entropy of the two-hot target.
        """
        out = self.net(features)
        if self.two_hot:
            return torch.stack([self.two_hot.loss(out, target) for target in targets]).sum(0)
        return torch.stack([0.5 * (out.squeeze(-1) - target).square() for target in targets]).sum(0)
