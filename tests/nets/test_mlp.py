"""Layers and first weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wmgym.nets.blocks import BlockLinear
from wmgym.nets.mlp import MLP, activation, init_v3_, linear, normalisation


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def test_v3_weights_have_the_deviation_of_one_over_the_root_of_the_fan_in() -> None:
    weight = torch.empty(400, 250)
    init_v3_(weight, fan_in=250)
    # 1.1368 makes up for what truncation at two deviations takes: a truncated normal has 0.8796 of its deviation.
    assert weight.std().item() == pytest.approx(1 / math.sqrt(250), rel=0.01)
    assert abs(weight.mean().item()) < 5 / math.sqrt(250 * weight.numel())
    assert weight.abs().max().item() <= 2 * 1.1368 / math.sqrt(250)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_v3_layers_start_without_bias_and_with_scaled_weights(scale: float) -> None:
    layer = linear(300, 300, "v3", scale)
    assert layer.bias.abs().max() == 0
    assert layer.weight.std().item() == pytest.approx(scale / math.sqrt(300), rel=0.02)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_glorot_layers_start_without_bias_and_even_between_both_widths(scale: float) -> None:
    layer = linear(300, 100, "glorot", scale)
    assert layer.bias.abs().max() == 0
    assert layer.weight.abs().max().item() == pytest.approx(scale * math.sqrt(6 / 400), rel=0.01)
    assert layer.weight.std().item() == pytest.approx(scale * math.sqrt(2 / 400), rel=0.02)


def test_small_layers_start_without_bias_and_with_a_deviation_of_a_fiftieth() -> None:
    torch.manual_seed(0)
    layer = linear(300, 300, "small")
    assert layer.bias.abs().max() == 0
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("init", ["torch", "glorot", "v3", "small"])
def test_a_head_of_scale_zero_says_zero_and_learns(init: str) -> None:
    head = MLP(4, 2, layers=1, units=8, init=init, out_scale=0.0)
    out = head(torch.randn(5, 4))
    assert torch.equal(out, torch.zeros(5, 2))
    (out - 1).square().sum().backward()
    assert head[-1].weight.grad.abs().max() > 0


def test_scale_multiplies_torchs_first_weights() -> None:
    torch.manual_seed(1)
    plain = linear(5, 3)
    torch.manual_seed(1)
    scaled = linear(5, 3, scale=0.5)
    assert torch.equal(scaled.weight, 0.5 * plain.weight)
    assert torch.equal(scaled.bias, torch.zeros(3))
    assert plain.bias.abs().max() > 0


def test_normalisations_follow_their_equations() -> None:
    x = 3 * torch.randn(4, 6) + 1
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    assert torch.allclose(normalisation("layer", 6)(x), centred / (variance + 1e-3).sqrt(), atol=1e-5)
    squares = x.square().mean(-1, keepdim=True)
    assert torch.allclose(normalisation("rms", 6)(x), x / (squares + 1e-4).sqrt(), atol=1e-5)
    assert torch.equal(normalisation("none", 6)(x), x)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("act", ["relu", "elu", "silu", "mish", "tanh"])
def test_an_mlp_is_its_layers_one_after_the_other(act: str, norm: str) -> None:
    net = MLP(3, 2, layers=2, units=8, act=act, norm=norm)
    linears = [module for module in net if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(3, 8), (8, 8), (8, 2)]
    x = torch.randn(2, 5, 3)
    hidden = x
    for layer in linears[:-1]:  # fresh normalisations: their gains are 1 before training
        hidden = activation(act)(normalisation(norm, 8)(hidden @ layer.weight.T + layer.bias))
    assert torch.allclose(net(x), hidden @ linears[-1].weight.T + linears[-1].bias, atol=1e-5)


@pytest.mark.parametrize("act", ["relu", "elu"])
def test_activations_that_overwrite_their_input_have_the_same_gradient(act: str) -> None:
    x = torch.randn(100, requires_grad=True)
    (fast,) = torch.autograd.grad(activation(act)(1 * x).sum(), x)  # type: ignore[arg-type]
    (plain,) = torch.autograd.grad(getattr(torch.nn.functional, act)(x).sum(), x)
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-5)


def test_an_mlp_without_output_ends_after_its_last_activation() -> None:
    net = MLP(3, None, layers=1, units=8, act="relu")
    out = net(torch.randn(20, 3))
    assert out.shape == (20, net.out_size) == (20, 8)
    assert (out >= 0).all()


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    net = MLP(3, 2, layers=0, units=8)
    a, b = torch.randn(3), torch.randn(3)
    assert torch.allclose(net(a + b) + net(torch.zeros(3)), net(a) + net(b), atol=1e-6)
    assert (MLP(3, None, layers=0, units=8).out_size) == 3


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"'swish'.*relu, elu, silu, mish, tanh"):
        MLP(3, 2, layers=1, units=8, act="swish")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'batch'.*none, layer or rms"):
        MLP(3, 2, layers=1, units=8, norm="batch")  # type: ignore[arg-type]


def test_a_block_layer_equals_a_dense_layer_with_zeros_off_its_diagonal() -> None:
    layer = BlockLinear(12, 8, blocks=4)
    dense = torch.block_diag(*layer.weight.detach())  # (12, 8)
    x = torch.randn(2, 3, 12)
    assert torch.allclose(layer(x), x @ dense + layer.bias, atol=1e-6)


def test_v3_block_layers_count_the_whole_input_as_fan_in() -> None:
    layer = BlockLinear(800, 800, blocks=8, init="v3")
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(800), rel=0.02)
    assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(("sizes", "named"), [((10, 8), "in_size"), ((8, 10), "out_size")])
def test_block_layers_refuse_widths_that_do_not_divide(sizes: tuple[int, int], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} to be a multiple of its 4 blocks, not 10"):
        BlockLinear(*sizes, blocks=4)
