"""Recurrent cores against slow versions that follow the papers' equations one line at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wmgym.nets.blocks import BlockLinear
from wmgym.nets.cells import BlockCore, DenseCore, LayerNormGRUCell

DETER, STOCH, ACTION, HIDDEN, BLOCKS, BATCH = 12, 6, 2, 5, 4, 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module with gains and biases away from their first values, which would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def slow_gru(gates: list[float], h: list[float]) -> list[float]:
    """`gates` = reset, candidate, update, each as wide as `h`."""
    size, new = len(h), []
    for i in range(size):
        r = 1 / (1 + math.exp(-gates[i]))
        c = math.tanh(r * gates[size + i])
        u = 1 / (1 + math.exp(-(gates[2 * size + i] - 1)))
        new.append(u * c + (1 - u) * h[i])
    return new


@pytest.mark.parametrize("norm", [True, False])
def test_layer_norm_gru_equals_a_slow_version(norm: bool) -> None:
    cell = shaken(LayerNormGRUCell(HIDDEN, DETER, norm))
    x, h = torch.randn(BATCH, HIDDEN), torch.randn(BATCH, DETER)
    out = cell(x, h)
    for b in range(BATCH):
        gates = cell.gates.weight @ torch.cat([x[b], h[b]])
        if norm:
            gates = (gates - gates.mean()) / (gates.var(correction=0) + 1e-3).sqrt() * cell.norm.weight + cell.norm.bias
        else:
            gates = gates + cell.gates.bias
        assert out[b].tolist() == pytest.approx(slow_gru(gates.tolist(), h[b].tolist()), abs=1e-5)


def test_a_new_gru_keeps_most_of_its_state() -> None:
    cell = LayerNormGRUCell(HIDDEN, DETER, norm=False)
    torch.nn.init.zeros_(cell.gates.weight)
    torch.nn.init.zeros_(cell.gates.bias)
    h = torch.randn(BATCH, DETER)
    assert torch.allclose(cell(torch.zeros(BATCH, HIDDEN), h), h * (1 - torch.sigmoid(torch.tensor(-1.0))))


def dense_core(layer_norm: bool) -> DenseCore:
    core = shaken(DenseCore(STOCH, ACTION, DETER, HIDDEN, layer_norm, "elu", "layer"))
    assert isinstance(core, DenseCore)
    return core


@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_dense_core_split_in_two_equals_the_whole_input_layer(layer_norm: bool) -> None:
    core = dense_core(layer_norm)
    h, s, a = torch.randn(BATCH, DETER), torch.randn(BATCH, STOCH), torch.randn(BATCH, ACTION)
    whole = core.cell(core.act(core.norm(core.inputs(torch.cat([s, a], -1)))), h)
    assert torch.allclose(core(h, s, core.project(a)), whole, atol=1e-6)


def test_the_dense_core_projects_all_steps_at_once() -> None:
    core, actions = dense_core(True), torch.randn(7, BATCH, ACTION)
    stepwise = torch.stack([core.project(action) for action in actions])
    assert torch.allclose(core.project(actions), stepwise, atol=1e-6)


def block_core() -> BlockCore:
    core = shaken(BlockCore(STOCH, ACTION, DETER, HIDDEN, BLOCKS, "silu", "rms", "v3"))
    assert isinstance(core, BlockCore)
    return core


def slow_rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * gain


def slow_projection(x: Tensor, layers: torch.nn.Sequential) -> Tensor:
    x = slow_rms(x @ layers[0].weight.T + layers[0].bias, layers[1].weight)
    return x * torch.sigmoid(x)


def dense_matrices(core: BlockCore) -> tuple[Tensor, Tensor]:
    """The core's two block layers as full matrices: `[h, shared]` to deter, and deter to (reset, candidate, update)."""
    width = DETER // BLOCKS
    hidden = torch.zeros(DETER + 3 * HIDDEN, DETER)
    gates = torch.zeros(DETER, 3 * DETER)
    for k in range(BLOCKS):
        mine = slice(k * width, (k + 1) * width)
        hidden[mine, mine] = core.hidden.weight[k, :width]  # a block reads its own part of h ...
        hidden[DETER:, mine] = core.hidden.weight[k, width:]  # ... and all of the projections
        for gate in range(3):
            into = slice(gate * DETER + k * width, gate * DETER + (k + 1) * width)
            gates[mine, into] = core.gates.weight[k, :, gate * width : (gate + 1) * width]
    return hidden, gates


@torch.no_grad()
def test_block_gru_equals_its_dense_equivalent() -> None:
    core = block_core()
    h, s, a = torch.randn(BATCH, DETER), torch.randn(BATCH, STOCH), torch.rand(BATCH, ACTION) * 2 - 1
    into_hidden, into_gates = dense_matrices(core)
    gate_bias = core.gates.bias.reshape(BLOCKS, 3, DETER // BLOCKS).transpose(0, 1).reshape(-1)

    shared = [slow_projection(x, net) for x, net in ((h, core.from_deter), (s, core.from_stoch), (a, core.from_action))]
    hidden = torch.cat([h, *shared], -1) @ into_hidden + core.hidden.bias
    hidden = slow_rms(hidden, core.hidden_norm.weight)
    gates = (hidden * torch.sigmoid(hidden)) @ into_gates + gate_bias
    expected = [slow_gru(g, x) for g, x in zip(gates.tolist(), h.tolist(), strict=True)]

    assert torch.allclose(core(h, s, core.project(a)), torch.tensor(expected), atol=1e-5)


def test_the_block_core_scales_large_actions_back_and_leaves_others() -> None:
    core = block_core()
    assert torch.equal(core.project(torch.tensor([[3.0, -0.5]])), core.project(torch.tensor([[1.0, -0.5]])))
    assert not torch.equal(core.project(torch.tensor([[0.9, -0.5]])), core.project(torch.tensor([[1.0, -0.5]])))


def test_the_block_core_refuses_a_state_that_its_blocks_do_not_divide() -> None:
    with pytest.raises(ValueError, match="deter=13 is not a multiple of blocks=4"):
        BlockCore(STOCH, ACTION, 13, HIDDEN, BLOCKS, "silu", "rms", "v3")


def test_v3_initialisation_reaches_every_matrix_of_the_block_core() -> None:
    core = BlockCore(160, 100, 160, 80, 4, "silu", "rms", "v3")
    matrices = [m for m in core.modules() if isinstance(m, torch.nn.Linear | BlockLinear)]
    assert len(matrices) == 5
    for layer in matrices:
        fan_in = layer.in_size if isinstance(layer, BlockLinear) else layer.in_features
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.05)
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("layer_norm", [False, True])
def test_glorot_initialisation_reaches_every_matrix_of_the_dense_core(layer_norm: bool) -> None:
    core = DenseCore(60, 4, 100, 80, layer_norm, "elu", "none", "glorot")
    assert core.inputs.weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 80)), rel=0.05)
    assert core.inputs.bias.abs().max() == 0
    if layer_norm:
        assert core.cell.gates.weight.std().item() == pytest.approx(math.sqrt(2 / (180 + 300)), rel=0.02)
        return
    recurrent = core.cell.weight_hh
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(100), atol=1e-4, rtol=0)  # orthogonal
    assert core.cell.bias_ih.abs().max() == core.cell.bias_hh.abs().max() == 0
