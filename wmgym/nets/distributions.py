"""Squashing, two-hot regression, latent distributions and their divergences, as pure functions of tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.random import Noise


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)` (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`: `sign(x) (exp(|x|) - 1)`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """Regression as classification over exponentially spaced bins (DreamerV3, eq. 10).

    Args:
        bins: number of bins (odd, so that zero is one of them).
        limit: the bins are `symexp(linspace(-limit, limit, bins))`.

    Example:
        >>> head = TwoHot()
        >>> logits = torch.log(head.encode(torch.tensor([3.5])) + 1e-8)
        >>> round(head.mean(logits).item(), 3)
        3.5
    """

    bins: Tensor

    def __init__(self, bins: int = 255, limit: float = 20.0) -> None:
        super().__init__()
        if bins % 2 == 0:
            raise ValueError(f"TwoHot needs an odd number of bins, so that zero is one of them; got {bins}.")
        half = symexp(torch.linspace(-limit, 0, bins // 2 + 1, dtype=torch.float64))
        self.register_buffer("bins", torch.cat([half, -half[:-1].flip(0)]).float(), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Weights `(..., bins)` on the two bins around `x` `(...)`, so that their mean is `x`."""
        around, weights = self._around(x)
        return (F.one_hot(around, len(self.bins)) * weights[..., None]).sum(-2)

    def _around(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two bins around `x` `(...)` and the weight of each, both `(..., 2)`."""
        above = torch.searchsorted(self.bins, x.contiguous().clamp(self.bins[0], self.bins[-1]))
        above = above.clamp(1, len(self.bins) - 1)
        around = torch.stack([above - 1, above], -1)
        low, high = self.bins[around].unbind(-1)
        weight = ((x - low) / (high - low)).clamp(0, 1)
        return around, torch.stack([1 - weight, weight], -1)

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value `(...)` of `logits` `(..., bins)`; bins of equal size cancel exactly at zero."""
        weighted = torch.softmax(logits, -1) * self.bins
        half = len(self.bins) // 2
        # Summed in mirrored pairs: the outer bins are e^20, and float32 would lose the small ones among them.
        pairs = weighted[..., :half] + weighted[..., half + 1 :].flip(-1)
        return pairs.sum(-1) + weighted[..., half]

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy `(...)` of the two-hot `target` `(...)` under `logits` `(..., bins)`."""
        around, weights = self._around(target)  # all other bins weigh nothing
        return -(weights * torch.log_softmax(logits, -1).gather(-1, around)).sum(-1)


class SymlogTwoHot(TwoHot):
    """Two-hot regression of `symlog(x)` over evenly spaced bins, whose mean is taken before the symlog is undone.

    Args:
        bins: number of bins (odd).
        limit: they are `linspace(-limit, limit, bins)`.

    Source: Hansen et al. 2024 (TD-MPC2), and its code.

    Example:
        >>> head = SymlogTwoHot()
        >>> logits = torch.log(head.encode(torch.tensor([3.5])) + 1e-8)
        >>> round(head.mean(logits).item(), 3)
        3.5
    """

    def __init__(self, bins: int = 101, limit: float = 10.0) -> None:
        super().__init__(bins, limit)
        self.bins = torch.linspace(-limit, limit, bins)

    def encode(self, x: Tensor) -> Tensor:
        """See `TwoHot.encode`; the mean of the weighted bins is `symlog(x)`."""
        return super().encode(symlog(x))

    def mean(self, logits: Tensor) -> Tensor:
        """The value `(...)` whose symlog is the bins' mean under `logits` `(..., bins)`."""
        return symexp(super().mean(logits))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `TwoHot.loss`."""
        return super().loss(logits, symlog(target))


class Gaussian(NamedTuple):
    """A diagonal Gaussian latent: `mean`, `std` `(..., S)`."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_stats(cls, stats: Tensor, min_std: float) -> Gaussian:
        """From network outputs `(..., 2 S)`: mean and `softplus + min_std` (PlaNet)."""
        mean, raw = stats.chunk(2, -1)
        return cls(mean, F.softplus(raw) + min_std)

    def sample(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """A reparameterised draw `(..., S)`; the deviation is scaled by `temperature`."""
        return self.mean + self.std * (noise.normal(*self.mean.shape) * temperature)

    def detach(self) -> Gaussian:
        """The distribution cut off from the graph."""
        return Gaussian(self.mean.detach(), self.std.detach())

    def standard(self) -> Gaussian:
        """The standard normal distribution of the same shape."""
        return Gaussian(torch.zeros_like(self.mean), torch.ones_like(self.std))

    def kl(self, other: Gaussian) -> Tensor:
        """`KL(self || other)` `(...)`, summed over dimensions, in nats."""
        ratio = (self.std / other.std).square()
        distance = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy `(...)` in nats."""
        return (self.std.log() + 1.4189385332046727).sum(-1)  # 0.5 ln(2 pi e)


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Zeros in the shape `(..., C)` and type of `like`, and a one at each `index` `(...)`.

    Unlike PyTorch's it does not look whether the numbers are in range, for which a device would have to wait.

    Example:
        >>> one_hot(torch.tensor([2, 0]), torch.rand(2, 3))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    return torch.zeros_like(like).scatter_(-1, index.unsqueeze(-1), 1.0)


class Categoricals(NamedTuple):
    """A vector of one-hot latents: `log_probs` `(..., S, C)`."""

    log_probs: Tensor

    @classmethod
    def from_stats(cls, stats: Tensor, classes: int, unimix: float) -> Categoricals:
        """From logits `(..., S * C)`, mixed with a share `unimix` of the uniform distribution (DreamerV3)."""
        logits = stats.unflatten(-1, (-1, classes))
        if unimix == 0.0:
            return cls(torch.log_softmax(logits, -1))
        probs = (1 - unimix) * torch.softmax(logits, -1) + unimix / classes
        return cls(torch.log(probs))

    def sample(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """A straight-through draw `(..., S * C)`: one-hot forward, the probabilities' gradient backward."""
        perturbed = self.log_probs.detach() + temperature * noise.gumbel(*self.log_probs.shape)
        chosen = one_hot(perturbed.argmax(-1), self.log_probs)
        probs = self.log_probs.exp()
        return (chosen + (probs - probs.detach())).flatten(-2)  # in this order the draw is one-hot to the last bit

    def detach(self) -> Categoricals:
        """The distribution cut off from the graph."""
        return Categoricals(self.log_probs.detach())

    def standard(self) -> Categoricals:
        """The uniform distribution of the same shape."""
        return Categoricals(torch.full_like(self.log_probs, -math.log(self.log_probs.shape[-1])))

    def kl(self, other: Categoricals) -> Tensor:
        """`KL(self || other)` `(...)`, summed over latents, in nats."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum((-2, -1))

    def entropy(self) -> Tensor:
        """Entropy `(...)` in nats, summed over latents."""
        return -(self.log_probs.exp() * self.log_probs).sum((-2, -1))


class Point(NamedTuple):
    """A latent without chance: its `mean` `(..., S)` and nothing else."""

    mean: Tensor

    def sample(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """The mean; nothing is drawn."""
        return self.mean

    def detach(self) -> Point:
        """The point cut off from the graph."""
        return Point(self.mean.detach())

    def standard(self) -> Point:
        """Zero, of the same shape."""
        return Point(torch.zeros_like(self.mean))

    def kl(self, other: Point) -> Tensor:
        """Half the squared distance `(...)`: the divergence of two Gaussians of deviation 1."""
        return 0.5 * (self.mean - other.mean).square().sum(-1)

    def entropy(self) -> Tensor:
        """Zero `(...)`."""
        return torch.zeros(self.mean.shape[:-1], device=self.mean.device)


Latent = Gaussian | Categoricals | Point


def free_nats(kl: Tensor, free: float, per_step: bool) -> Tensor:
    """Give no gradient to divergence below `free` nats.

    Args:
        kl: `(T, B)` nats.
        free: nats that cost nothing.
        per_step: clip each step (DreamerV3) or the batch mean (DreamerV1, V2). In the latter case the result's
            mean is `max(mean(kl), free)`.
    """
    if per_step:
        return kl.clamp(min=free)
    return torch.where(kl.mean() > free, kl, torch.full_like(kl, free))
