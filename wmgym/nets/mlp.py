"""Fully connected networks and the small layers that every other network is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "elu", "silu", "mish", "tanh"]
Norm = Literal["none", "layer", "rms"]
Init = Literal["torch", "glorot", "v3", "small"]

# In place where the gradient can be told from the output: no second tensor is written, and ELU's backward pass needs
# no exponential. What comes before an activation here (products, convolutions, norms) does not need its own output.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}


def activation(name: Activation) -> nn.Module:
    """The activation by name; it may overwrite its input.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"Unknown activation {name!r}: choose one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]()


def normalisation(name: Norm, size: int) -> nn.Module:
    """Layer normalisation (eps 1e-3), RMS normalisation (eps 1e-4, DreamerV3), or nothing."""
    if name == "layer":
        return nn.LayerNorm(size, eps=1e-3)
    if name == "rms":
        return nn.RMSNorm(size, eps=1e-4)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"Unknown normalisation {name!r}: choose none, layer or rms.")


def init_v3_(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """DreamerV3's initialisation in place: truncated normal of deviation `1.1368 scale / sqrt(fan_in)`."""
    with torch.no_grad():
        if scale == 0.0:
            weight.zero_()
            return
        std = 1.1368 * scale / math.sqrt(fan_in)
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(in_size: int, out_size: int, init: Init = "torch", scale: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer with the initialisation by name; `scale` multiplies its first weights.

    The names: "torch" is PyTorch's own, "glorot" Glorot and Bengio's uniform one with zero biases (TensorFlow's, and so
    that of PlaNet, DreamerV1 and V2), "v3" DreamerV3's, "small" a normal one of deviation 0.02, cut off at 2, with zero
    biases (TD-MPC2's). `init="torch"` with `scale` other than 1 also starts the bias
    at zero, so that a head of scale 0 says 0.
    """
    layer = nn.Linear(in_size, out_size, bias=bias)
    with torch.no_grad():
        if init == "v3":
            init_v3_(layer.weight, in_size, scale)
        else:
            if init == "glorot":
                nn.init.xavier_uniform_(layer.weight)
            elif init == "small":
                nn.init.trunc_normal_(layer.weight, std=0.02)
            if scale != 1.0:
                layer.weight.mul_(scale)
        if bias and (init != "torch" or scale != 1.0):
            layer.bias.zero_()
    return layer


class MLP(nn.Sequential):
    """Hidden layers (Linear, norm, activation) and, where `out_size` is given, a linear output.

    Args:
        in_size: width of the input.
        out_size: width of the output; None ends after the last hidden layer.
        layers: number of hidden layers.
        units: width of each.
        act: activation by name.
        norm: normalisation before each activation.
        init: "torch", "glorot", "v3" or "small", see `linear`.
        out_scale: factor on the output layer's first weights.

    Example:
        >>> MLP(4, 2, layers=2, units=8)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_size: int,
        out_size: int | None,
        layers: int,
        units: int,
        act: Activation = "silu",
        norm: Norm = "layer",
        init: Init = "torch",
        out_scale: float = 1.0,
    ) -> None:
        modules: list[nn.Module] = []
        size = in_size
        for _ in range(layers):
            modules += [linear(size, units, init), normalisation(norm, units), activation(act)]
            size = units
        if out_size is not None:
            modules.append(linear(size, out_size, init, out_scale))
            size = out_size
        super().__init__(*(m for m in modules if not isinstance(m, nn.Identity)))
        self.out_size = size
