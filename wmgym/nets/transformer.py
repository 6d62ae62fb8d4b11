"""A causal transformer that reads a sequence at once or step by step, to the same result.

Each token sees itself and the `context` tokens before it, as far as they belong to its episode. What a step must know
of those is their keys and values in every layer, which a `Context` carries: one step costs as much as one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.mlp import Activation, activation


class Context(NamedTuple):
    """What is known of the last L tokens, oldest first; leaves are flat, `(..., N)`."""

    keys: Tensor  # (..., L * layers * D)
    values: Tensor  # (..., L * layers * D)
    known: Tensor  # (..., L) 1 where there is such a token in this episode, else 0


class Block(nn.Module):
    """Attention, then two linear layers, each on the normalised input and added to it.

    Args:
        width: D, of a token.
        heads: of the attention; they share D out among them.
        act: activation between the linear layers.
    """

    def __init__(self, width: int, heads: int, act: Activation) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rest = nn.Sequential(nn.Linear(width, 2 * width), activation(act), nn.Linear(2 * width, width))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values `(..., D)` of tokens `(..., D)`."""
        return self.inputs(self.norm(x)).chunk(3, -1)

    def attend(self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """The block's output for tokens `x` `(B, T, D)`, with keys and values `(B, K, D)`, bias `(B, heads, T, K)`."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, keys, values)
        )
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        x = x + self.outputs(seen.transpose(1, 2).flatten(2))
        return x + self.rest(self.after(x))


class Transformer(nn.Module):
    """Blocks one after the other; where a token stands is told by how far it is from the one that looks.

    Args:
        width: D, of a token; a multiple of `heads`.
        layers: number of blocks.
        heads: of each.
        context: L, how many earlier tokens one sees.
        act: activation.

    Raises:
        ValueError: if `heads` do not share `width` out evenly.

    Example:
        >>> net = Transformer(width=8, layers=2, heads=2, context=4)
        >>> tokens, is_first = torch.randn(6, 3, 8), torch.zeros(6, 3, dtype=torch.bool)
        >>> together, _ = net(tokens, is_first)
        >>> context = net.empty(3)
        >>> for token in tokens:
        ...     output, context = net.step(token, context)
        >>> bool(torch.allclose(output, together[-1], atol=1e-5)), output.shape
        (True, torch.Size([3, 16]))
    """

    def __init__(self, width: int, layers: int, heads: int, context: int, act: Activation = "silu") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"A width of {width} cannot be shared out among {heads} heads: make it a multiple.")
        self.width, self.context = width, context
        self.blocks = nn.ModuleList(Block(width, heads, act) for _ in range(layers))
        self.distances = nn.Parameter(torch.zeros(layers, heads, context + 1))

    def empty(self, *lead: int) -> Context:
        """The context of a first token, with leading dimensions `lead`."""
        device, size = self.distances.device, self.context * len(self.blocks) * self.width
        return Context(*(torch.zeros(*lead, n, device=device) for n in (size, size, self.context)))

    def forward(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Context]:
        """All steps of sequences at once.

        Args:
            tokens: `(T, B, D)`.
            is_first: `(T, B)` bool, True where an episode begins.

        Returns:
            The outputs of all layers side by side, `(T, B, layers * D)`, and what is known after each step.
        """
        x, far, hidden = tokens.transpose(0, 1), *self._bands(is_first)  # (B, T, D), (T, T), (B, 1, T, T)
        outputs, keys, values = [], [], []
        for block, distances in self._layers():
            query, key, value = block.project(x)
            bias = distances[:, far].masked_fill(hidden, -torch.inf)  # (B, heads, T, T)
            x = block.attend(x, query, key, value, bias)
            outputs.append(x)
            keys.append(key)
            values.append(value)
        contexts = self._windows(torch.cat(keys, -1).transpose(0, 1), torch.cat(values, -1).transpose(0, 1), is_first)
        return torch.cat(outputs, -1).transpose(0, 1), contexts

    def step(self, token: Tensor, context: Context) -> tuple[Tensor, Context]:
        """One step: outputs `(B, layers * D)` of tokens `(B, D)`, and what is known after it."""
        past = [leaf.unflatten(-1, (self.context, len(self.blocks), -1)) for leaf in context[:2]]
        known = F.pad(context.known, (0, 1), value=1.0)  # (B, L + 1), the token itself last
        hidden = (known == 0)[:, None, None]  # (B, 1, 1, L + 1)
        x, outputs, new_keys, new_values = token[:, None], [], [], []
        for number, (block, distances) in enumerate(self._layers()):
            query, key, value = block.project(x)
            keys, values = (
                torch.cat([leaf[:, :, number], own], 1) for leaf, own in zip(past, (key, value), strict=True)
            )
            bias = distances.flip(-1)[None, :, None].masked_fill(hidden, -torch.inf)  # the oldest is furthest
            x = block.attend(x, query, keys, values, bias)
            outputs.append(x[:, 0])
            new_keys.append(key[:, 0])
            new_values.append(value[:, 0])
        one = self.width * len(self.blocks)
        keys, values = (
            torch.cat([leaf[:, one:], *new], -1) for leaf, new in zip(context[:2], (new_keys, new_values), strict=True)
        )
        return torch.cat(outputs, -1), Context(keys, values, known[:, 1:])

    def _layers(self) -> Iterator[tuple[Block, Tensor]]:
        """Each block, and what its heads add for each distance `(heads, L + 1)`."""
        for block, distances in zip(self.blocks, self.distances, strict=True):
            assert isinstance(block, Block)
            yield block, distances

    def _bands(self, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """How far apart any two steps are `(T, T)`, at most L; and which are hidden from which, `(B, 1, T, T)`."""
        length = len(is_first)
        steps = torch.arange(length, device=is_first.device)
        far = steps[:, None] - steps
        episode = is_first.cumsum(0).transpose(0, 1)  # (B, T)
        other = episode[:, :, None] != episode[:, None]
        hidden = other | (far < 0) | (far > self.context)
        return far.clamp(0, self.context), hidden[:, None]

    def _windows(self, keys: Tensor, values: Tensor, is_first: Tensor) -> Context:
        """What is known after each step, from keys and values `(T, B, layers * D)` of all."""

        def last(x: Tensor) -> Tensor:
            """The L newest entries at each step, oldest first, `(T, B, L, ...)`."""
            padded = torch.cat([x.new_zeros(self.context - 1, *x.shape[1:]), x])
            return padded.unfold(0, self.context, 1).movedim(-1, 2)

        episode = is_first.cumsum(0) + 1  # what is before the sequence has 0
        known = (last(episode) == episode[..., None]).to(keys.dtype)
        keys, values = ((last(x) * known[..., None]).flatten(2) for x in (keys, values))
        return Context(keys, values, known)
