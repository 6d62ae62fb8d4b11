"""A long short-term memory, run step by step so that a world can forget between two steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """Hochreiter & Schmidhuber's memory in two parts: `project` for all steps at once, `forward` for each.

        i, f, g, o = W_x x + W_h h + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    Args:
        in_size: width of the input.
        size: width of `h` and of `c`.

    Example:
        >>> lstm = LSTM(3, 8)
        >>> hidden, cell = lstm(lstm.project(torch.zeros(5, 3)), torch.zeros(5, 8), torch.zeros(5, 8))
        >>> hidden.shape
        torch.Size([5, 8])
    """

    def __init__(self, in_size: int, size: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(in_size, 4 * size)
        self.recurrent = nn.Linear(size, 4 * size, bias=False)
        with torch.no_grad():
            self.inputs.bias[size : 2 * size] += 1.0  # gates that begin open remember

    def project(self, inputs: Tensor) -> Tensor:
        """The input's share of the gates, `(..., in_size)` to `(..., 4 size)`."""
        return self.inputs(inputs)

    def forward(self, projected: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the next `h` and `c`, `(B, size)`."""
        into, forget, candidate, out = (projected + self.recurrent(hidden)).chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(candidate)
        return torch.sigmoid(out) * torch.tanh(cell), cell
