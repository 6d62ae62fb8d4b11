"""A latent that is made of probabilities: SimNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SimNorm(nn.Module):
    """Groups of `group` neighbouring numbers become probabilities, each group through a softmax.

    So latents are bounded and sparse, and a dynamics that is applied to its own output again and again stays where it
    was learnt.

    Args:
        group: V, numbers in a group; the last dimension must be a multiple of it.

    Source: Hansen et al. 2024 (TD-MPC2), equation 5.

    Example:
        >>> SimNorm(2)(torch.zeros(3, 4))[0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(self, group: int = 8) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., N)` to the same shape."""
        return torch.softmax(x.unflatten(-1, (-1, self.group)), -1).flatten(-2)
