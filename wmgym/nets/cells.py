"""The recurrent part of a world: from the last state and an action to the next deterministic state.

A core has two parts, so that everything which does not depend on the previous step runs outside the time loop:
`project(action)` for all steps at once, then `forward(deter, stoch, projected)` step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.blocks import BlockLinear
from wmgym.nets.mlp import Activation, Init, Norm, activation, linear, normalisation


class LayerNormGRUCell(nn.Module):
    """The GRU of DreamerV2: one matrix for all gates, normalised, reset gate on the candidate, update bias -1.

    Args:
        in_size: width of the input.
        deter: width of the state.
        norm: whether the gates are layer-normalised; without it this is DreamerV2's `gru` with `norm=False`.
        init: first weights by name, as for `linear`.
    """

    def __init__(self, in_size: int, deter: int, norm: bool = True, init: Init = "torch") -> None:
        super().__init__()
        self.gates = linear(in_size + deter, 3 * deter, init, bias=not norm)
        self.norm = nn.LayerNorm(3 * deter, eps=1e-3) if norm else nn.Identity()

    def forward(self, inputs: Tensor, deter: Tensor) -> Tensor:
        """`(B, in_size)` and `(B, deter)` to the next `(B, deter)`."""
        gates = self.norm(self.gates(torch.cat([inputs, deter], -1)))
        return gated_update(gates, deter)


def gated_update(gates: Tensor, deter: Tensor) -> Tensor:
    """`h' = u c + (1 - u) h` with `r = sigmoid, c = tanh(r x), u = sigmoid(x - 1)` from gates `(B, 3 deter)`."""
    reset, candidate, update = gates.chunk(3, -1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    return torch.lerp(deter, candidate, torch.sigmoid(update - 1))


def _gru(in_size: int, deter: int, init: Init) -> nn.GRUCell:
    """PyTorch's GRU; "glorot" has TensorFlow's beginning: orthogonal from state to state, zero biases."""
    cell = nn.GRUCell(in_size, deter)
    if init == "glorot":
        nn.init.xavier_uniform_(cell.weight_ih)
        nn.init.orthogonal_(cell.weight_hh)
        nn.init.zeros_(cell.bias_ih)
        nn.init.zeros_(cell.bias_hh)
    return cell


class MemorylessCore(nn.Module):
    """`x = act(norm(W [s, a]))`: a step of those relatives of the RSSM that remember nothing beside their state.

    Args:
        source: width of what it reads beside the action.
        action: width of the action.
        out_size: width of the output.
        act: activation.
        norm: normalisation.
        init: first weights by name, as for `linear`.
    """

    def __init__(
        self, source: int, action: int, out_size: int, act: Activation, norm: Norm, init: Init = "torch"
    ) -> None:
        super().__init__()
        self.source = source
        self.inputs = linear(source + action, out_size, init)
        self.norm = normalisation(norm, out_size)
        self.act = activation(act)

    def project(self, action: Tensor) -> Tensor:
        """The action's share, `(..., A)` to `(..., out_size)`."""
        return F.linear(action, self.inputs.weight[:, self.source :], self.inputs.bias)

    def forward(self, source: Tensor, projected: Tensor) -> Tensor:
        """One step, `(B, out_size)`."""
        return self.act(self.norm(projected + F.linear(source, self.inputs.weight[:, : self.source])))


class DenseCore(MemorylessCore):
    """`h' = GRU(act(norm(W [s, a])), h)`: PlaNet, DreamerV1 and V2.

    Args:
        stoch: width of the flattened stochastic state.
        action: width of the action.
        deter: width of the deterministic state.
        hidden: width of the input layer.
        layer_norm: whether the GRU's gates are normalised (DreamerV2) or plain (PlaNet, DreamerV1).
        act: activation of the input layer.
        norm: normalisation of the input layer.
        init: first weights by name, as for `linear`.
    """

    def __init__(
        self,
        stoch: int,
        action: int,
        deter: int,
        hidden: int,
        layer_norm: bool,
        act: Activation,
        norm: Norm,
        init: Init = "torch",
    ) -> None:
        super().__init__(stoch, action, hidden, act, norm, init)
        self.cell: nn.Module
        self.cell = LayerNormGRUCell(hidden, deter, init=init) if layer_norm else _gru(hidden, deter, init)

    def forward(self, deter: Tensor, stoch: Tensor, projected: Tensor) -> Tensor:  # type: ignore[override]
        """One step, `(B, deter)`."""
        return self.cell(super().forward(stoch, projected), deter)


class BlockCore(nn.Module):
    """DreamerV3's recurrence: three projections, then a GRU whose large matrices are block-diagonal.

    Args:
        stoch: width of the flattened stochastic state.
        action: width of the action.
        deter: width of the deterministic state; a multiple of `blocks`.
        hidden: width of each projection.
        blocks: number of blocks.
        act: activation.
        norm: normalisation.
        init: initialisation of the weights.
    """

    def __init__(
        self,
        stoch: int,
        action: int,
        deter: int,
        hidden: int,
        blocks: int,
        act: Activation,
        norm: Norm,
        init: Init,
    ) -> None:
        super().__init__()
        if deter % blocks:
            raise ValueError(f"deter={deter} is not a multiple of blocks={blocks}.")
        self.blocks = blocks
        self.from_deter, self.from_stoch, self.from_action = (
            nn.Sequential(linear(size, hidden, init), normalisation(norm, hidden), activation(act))
            for size in (deter, stoch, action)
        )
        self.hidden = BlockLinear(deter + 3 * hidden * blocks, deter, blocks, init)
        self.hidden_norm = normalisation(norm, deter)
        self.act = activation(act)
        self.gates = BlockLinear(deter, 3 * deter, blocks, init)

    def project(self, action: Tensor) -> Tensor:
        """The action's projection, `(..., A)` to `(..., hidden)`; actions beyond 1 are scaled back."""
        return self.from_action(action / action.abs().clamp(min=1.0).detach())

    def forward(self, deter: Tensor, stoch: Tensor, projected: Tensor) -> Tensor:
        """One step, `(B, deter)`."""
        shared = torch.cat([self.from_deter(deter), self.from_stoch(stoch), projected], -1)  # (B, 3 hidden)
        blocks = deter.unflatten(-1, (self.blocks, -1))  # (B, blocks, deter / blocks)
        shared = shared.unsqueeze(-2).expand(*blocks.shape[:-1], -1)
        hidden = self.hidden(torch.cat([blocks, shared], -1).flatten(-2))
        gates = self.gates(self.act(self.hidden_norm(hidden)))
        # Gates come block by block, (blocks, 3, deter / blocks): regroup to (3, deter).
        gates = gates.unflatten(-1, (self.blocks, 3, -1)).transpose(-3, -2).flatten(-3)
        return gated_update(gates, deter)
