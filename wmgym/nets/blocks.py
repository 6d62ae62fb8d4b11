"""A linear layer whose matrix is block-diagonal, as DreamerV3 uses for its large recurrent state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wmgym.nets.mlp import Init, init_v3_


class BlockLinear(nn.Module):
    """`blocks` independent linear layers side by side: input and output are cut into equal parts.

    Equal to a dense layer whose matrix is zero outside its diagonal blocks, for `1 / blocks` of its parameters.

    Args:
        in_size: width of the input, a multiple of `blocks`.
        out_size: width of the output, a multiple of `blocks`.
        blocks: number of parts.
        init: "torch" or "v3" (`init_v3_` with the full `in_size` as fan-in, as DreamerV3 does, and no bias).

    Raises:
        ValueError: if a width is not a multiple of `blocks`.

    Example:
        >>> BlockLinear(16, 24, blocks=8)(torch.zeros(3, 16)).shape
        torch.Size([3, 24])
    """

    def __init__(self, in_size: int, out_size: int, blocks: int = 8, init: Init = "torch") -> None:
        super().__init__()
        for name, size in (("in_size", in_size), ("out_size", out_size)):
            if size % blocks:
                raise ValueError(f"BlockLinear needs {name} to be a multiple of its {blocks} blocks, not {size}.")
        self.in_size, self.out_size, self.blocks = in_size, out_size, blocks
        self.weight = nn.Parameter(torch.empty(blocks, in_size // blocks, out_size // blocks))
        self.bias = nn.Parameter(torch.zeros(out_size))
        if init == "v3":
            init_v3_(self.weight, in_size)
        else:
            bound = math.sqrt(blocks / in_size)
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_size) to (..., out_size)."""
        parts = x.reshape(-1, self.blocks, self.in_size // self.blocks).transpose(0, 1)
        out = torch.baddbmm(self.bias.view(self.blocks, 1, -1), parts, self.weight)
        return out.transpose(0, 1).reshape(*x.shape[:-1], self.out_size)

    def extra_repr(self) -> str:
        """The sizes, for printing."""
        return f"in_size={self.in_size}, out_size={self.out_size}, blocks={self.blocks}"
