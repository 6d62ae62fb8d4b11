"""World Models' C: one linear layer, small enough to be evolved."""

from __future__ import annotations

from typing import NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.random import Noise
from wmgym.spaces import action_size


class Sure(NamedTuple):
    """An action `(..., A)` that leaves nothing to chance, as a distribution (`agents.imagination`)."""

    action: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """The action."""
        return self.action

    def mode(self) -> Tensor:
        """The action."""
        return self.action


class Controller(nn.Module):
    """One linear layer: `a = tanh(W f + b)`.

    For discrete actions the largest of the outputs wins, or (`ordered`) one output in [-1, 1] is cut into as many
    equal parts as there are choices.

    Source: Ha & Schmidhuber 2018, section 2.4 and appendix A.4; its code takes `ordered` and no bias for Take Cover.

    Args:
        feature_size: F, width of the features.
        action_space: `Box` or `Discrete`.
        ordered: whether discrete choices lie on a line.
        bias: whether there is b.

    Attributes:
        size: N, how many parameters there are.
        weights: `(N,)` those of the controller that acts.

    Example:
        >>> controller = Controller(6, spaces.Discrete(3), ordered=True, bias=False)
        >>> controller.size, controller(torch.zeros(2, 6)).action.tolist()
        (6, [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    """

    weights: Tensor

    def __init__(self, feature_size: int, action_space: spaces.Space, ordered: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.choices = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 0
        self.ordered, self.bias = ordered and self.choices > 0, bias
        self.outputs = 1 if self.ordered else action_size(action_space)
        self.rows = feature_size + bias
        self.size = self.rows * self.outputs
        # A buffer: no gradient ever reaches it.
        self.register_buffer("weights", torch.zeros(self.size))

    def forward(self, features: Tensor) -> Sure:
        """The action at features `(..., F)`, as worlds read it: in [-1, 1], or one-hot."""
        flat = features.flatten(0, -2)
        action = self.act(flat, self.weights.expand(len(flat), -1))
        return Sure(action.unflatten(0, features.shape[:-1]))

    def act(self, features: Tensor, weights: Tensor) -> Tensor:
        """Actions `(B, A)` at features `(B, F)` by as many controllers `(B, N)`."""
        layers = weights.unflatten(1, (self.rows, self.outputs))  # (B, F + bias, outputs)
        inputs = layers[:, : features.shape[1]]
        outputs = torch.bmm(features.unsqueeze(1), inputs).squeeze(1)
        if self.bias:
            outputs = outputs + layers[:, -1]
        if not self.choices:
            return torch.tanh(outputs)
        return nn.functional.one_hot(self._choice(outputs), self.choices).float()

    def _choice(self, outputs: Tensor) -> Tensor:
        if not self.ordered:
            return outputs.argmax(-1)
        share = (torch.tanh(outputs.squeeze(-1)) + 1) / 2
        return (share * self.choices).long().clamp(max=self.choices - 1)
