"""Values of actions: an ensemble of critics as one batched network."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.distributions import SymlogTwoHot
from wmgym.nets.mlp import Activation, activation

_LAYERS = 2


class CriticEnsemble(nn.Module):
    """`members` critics of features and action, two-hot over the symlog of returns (TD-MPC2) or by squared error.

    Each is two hidden layers (Linear, LayerNorm, activation) and a linear output that begins at zero.

    Args:
        features: width of the features.
        actions: width of an action.
        members: E, how many.
        units: width of the hidden layers.
        bins: of the two-hot regression; 0: squared error.
        limit: they reach from `-limit` to `limit` after symlog.
        act: activation.

    Example:
        >>> critics = CriticEnsemble(features=8, actions=2, members=5, units=16)
        >>> critics(torch.zeros(3, 8), torch.zeros(3, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        actions: int,
        members: int,
        units: int,
        bins: int = 101,
        limit: float = 10.0,
        act: Activation = "mish",
    ) -> None:
        super().__init__()
        self.members, self.act = members, activation(act)
        self.two_hot = SymlogTwoHot(bins, limit) if bins else None
        sizes = [features + actions, *[units] * _LAYERS, bins or 1]
        weights = [torch.empty(members, *shape) for shape in pairwise(sizes)]
        for weight in weights[:-1]:
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(weights[-1])
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(members, 1, size) for size in sizes[1:])
        self.scales = nn.ParameterList(torch.ones(members, 1, units) for _ in range(_LAYERS))
        self.shifts = nn.ParameterList(torch.zeros(members, 1, units) for _ in range(_LAYERS))

    def forward(self, features: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Values `(E, ...)` of actions `(..., A)` at features `(..., F)`.

        Args:
            features: `(..., F)`.
            action: `(..., A)`.
            members: numbers of those that are asked; None: all.
        """
        out = self.outputs(features, action, members)
        return self.two_hot.mean(out) if self.two_hot else out.squeeze(-1)

    def loss(self, features: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy `(...)` of the two-hot `target` `(...)`, or squared error, the mean over all members."""
        out = self.outputs(features, action)
        if self.two_hot:
            return self.two_hot.loss(out, target.expand(out.shape[:-1])).mean(0)
        return (out.squeeze(-1) - target).square().mean(0)

    def outputs(self, features: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """What the members say, logits `(E, ..., bins)` or values `(E, ..., 1)`."""

        def own(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter[members]

        x = torch.cat([features, action], -1)
        lead = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1])
        for weight, bias, scale, shift in zip(self.weights, self.biases, self.scales, self.shifts):
            x = torch.matmul(x, own(weight)) + own(bias)
            x = self.act(torch.addcmul(own(shift), F.layer_norm(x, x.shape[-1:], eps=1e-3), own(scale)))
        out = torch.baddbmm(own(self.biases[-1]), x, own(self.weights[-1]))
        return out.unflatten(1, lead) if lead else out.squeeze(1)
