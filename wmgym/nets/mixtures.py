"""Mixtures of Gaussians as a network's output: what an MDN predicts.

Sources: Bishop 1994, "Mixture Density Networks"; Ha & Schmidhuber 2018, "World Models", appendix A.2 (and its code).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wmgym.random import Noise

_LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)


class GaussianMixtures(NamedTuple):
    """`G` mixtures side by side, each of `K` diagonal Gaussians over its share of `D` numbers.

        log p(x) = sum_g log sum_k softmax(logits_g)_k prod_{d in g} N(x_d; mean_dk, std_dk)

    With `G = D` every number has a mixture of its own, all independent ("factored", World Models' code); with `G = 1`
    one choice of component decides all numbers together ("joint").

    Attributes:
        logits: `(..., G, K)`.
        mean: `(..., D, K)`.
        log_std: `(..., D, K)`.

    Example:
        >>> mixtures = GaussianMixtures(torch.zeros(7, 2, 3), torch.zeros(7, 2, 3), torch.zeros(7, 2, 3))
        >>> mixtures.log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    logits: Tensor
    mean: Tensor
    log_std: Tensor

    @classmethod
    def from_stats(cls, stats: Tensor, size: int, components: int, groups: int) -> GaussianMixtures:
        """From network outputs `(..., stat_count(size, components, groups))`."""
        parts = stats.split([groups * components, size * components, size * components], -1)
        logits, mean, log_std = (part.unflatten(-1, (-1, components)) for part in parts)
        return cls(logits, mean, log_std)

    @staticmethod
    def stat_count(size: int, components: int, groups: int) -> int:
        """How many outputs `groups` mixtures of `components` over `size` numbers take."""
        return (groups + 2 * size) * components

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density `(...)` of `x` `(..., D)`."""
        groups = self.logits.shape[-2]
        error = (x.unsqueeze(-1) - self.mean) * torch.exp(-self.log_std)
        each = -0.5 * error.square() - self.log_std - _LOG_SQRT_2_PI  # (..., D, K)
        if groups != each.shape[-2]:
            each = each.unflatten(-2, (groups, -1)).sum(-2)  # (..., G, K)
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + each, -1).sum(-1)

    def sample(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """A draw `(B, D)` of mixtures `(B, ...)`.

        Args:
            noise: source of the draws.
            temperature: World Models' tau: the logits are divided by it and the Gaussians' deviation is multiplied
                by its root. At 0 it is the mean of the likeliest component.
        """
        # Gumbel's argmax over logits / tau is that of logits + tau * gumbel, which is defined at 0 too.
        chosen = (self.logits + temperature * noise.gumbel(*self.logits.shape)).argmax(-1, keepdim=True)  # (B, G, 1)
        chosen = chosen.repeat_interleave(self.mean.shape[-2] // chosen.shape[-2], -2)  # (B, D, 1)
        mean, log_std = (part.gather(-1, chosen).squeeze(-1) for part in (self.mean, self.log_std))
        return mean + math.sqrt(temperature) * torch.exp(log_std) * noise.normal(*mean.shape)
