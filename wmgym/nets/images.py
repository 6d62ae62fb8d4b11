"""Convolutional networks for pictures: PlaNet's (also Dreamer V1 and V2) and DreamerV3's.

All of them read and give pictures as (N, H, W, C). Seen as (N, C, H, W) that is PyTorch's channels-last layout,
the fast one, so nothing is ever copied to change the layout.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wmgym.nets.blocks import BlockLinear
from wmgym.nets.mlp import Activation, Init, Norm, activation, init_v3_, linear, normalisation

ImageNet = Literal["dreamer", "v3"]
Shape = tuple[int, int, int]

_V3_MULTIPLES = (2, 3, 4, 4)
_V3_BLOCKS = 8


class ImageSizeError(ValueError):
    """Pictures of a size that the network cannot have; the message names the sizes that it can."""


class _ChannelNorm(nn.Module):
    """Normalisation over the channels of every pixel (N, C, H, W), then the activation."""

    def __init__(self, channels: int, norm: Norm, act: Activation) -> None:
        super().__init__()
        self.norm = normalisation(norm, channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.norm, nn.Identity):
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.act(x)


def _started(conv: nn.Conv2d | nn.ConvTranspose2d, init: Init) -> nn.Conv2d | nn.ConvTranspose2d:
    """The convolution in channels-last layout, with the first weights by name."""
    if init == "v3":
        init_v3_(conv.weight, conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1])
        nn.init.zeros_(conv.bias)
    return conv.to(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels-last layout as (N, H * W * C), without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1)


class DreamerImageEncoder(nn.Sequential):
    """Four convolutions of kernel 4, stride 2, no padding: 64x64 pictures to 2 * 2 * 8 `depth` numbers.

    Source: World Models (Ha & Schmidhuber 2018), PlaNet (Hafner et al. 2019), Dreamer V1 and V2.
    """

    def __init__(self, shape: Shape, depth: int, act: Activation, norm: Norm, init: Init) -> None:
        _check_dreamer(shape)
        layers: list[nn.Module] = []
        channels = shape[2]
        for multiple in (1, 2, 4, 8):
            layers += [
                _started(nn.Conv2d(channels, multiple * depth, 4, stride=2), init),
                _ChannelNorm(multiple * depth, norm, act),
            ]
            channels = multiple * depth
        super().__init__(*layers)
        self.out_size = 4 * channels

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps (N, 64, 64, C) in [-0.5, 0.5] to (N, out_size)."""
        return _flat(super().forward(pictures.permute(0, 3, 1, 2)))


class DreamerImageDecoder(nn.Module):
    """A linear layer to 1x1 and four transposed convolutions of stride 2 (kernels 5, 5, 6, 6) to 64x64.

    Source: as for `DreamerImageEncoder`.
    """

    offset = -0.5

    def __init__(self, in_size: int, shape: Shape, depth: int, act: Activation, norm: Norm, init: Init) -> None:
        super().__init__()
        _check_dreamer(shape)
        self.dense = linear(in_size, 32 * depth, init)
        layers: list[nn.Module] = []
        channels = 32 * depth
        for multiple, kernel in ((4, 5), (2, 5), (1, 6)):
            layers += [
                _started(nn.ConvTranspose2d(channels, multiple * depth, kernel, stride=2), init),
                _ChannelNorm(multiple * depth, norm, act),
            ]
            channels = multiple * depth
        layers.append(_started(nn.ConvTranspose2d(channels, shape[2], 6, stride=2), init))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_size) to mean pictures (N, 64, 64, C) in the range [-0.5, 0.5], not clamped."""
        return self.layers(self.dense(features)[:, :, None, None]).permute(0, 2, 3, 1)


class V3ImageEncoder(nn.Sequential):
    """Four convolutions of kernel 5, each followed by 2x2 max-pooling: (H, W) to (H / 16, W / 16, 4 `depth`).

    Source: DreamerV3 (Hafner et al. 2023, code of 2024), depths `depth * (2, 3, 4, 4)`.
    """

    def __init__(self, shape: Shape, depth: int, act: Activation, norm: Norm, init: Init) -> None:
        _check_v3(shape)
        layers: list[nn.Module] = []
        channels = shape[2]
        for multiple in _V3_MULTIPLES:
            layers += [
                _started(nn.Conv2d(channels, multiple * depth, 5, padding=2), init),
                nn.MaxPool2d(2),
                _ChannelNorm(multiple * depth, norm, act),
            ]
            channels = multiple * depth
        super().__init__(*layers)
        self.out_size = (shape[0] // 16) * (shape[1] // 16) * channels

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps (N, H, W, C) in [-0.5, 0.5] to (N, out_size)."""
        return _flat(super().forward(pictures.permute(0, 3, 1, 2)))


class V3ImageDecoder(nn.Module):
    """Block-linear from `deter` plus a small network from `stoch`, then upsampling and convolutions of kernel 5.

    Source: DreamerV3 (Hafner et al. 2023, code of 2024).
    """

    offset = 0.0

    def __init__(
        self, deter: int, stoch: int, shape: Shape, depth: int, units: int, act: Activation, norm: Norm, init: Init
    ) -> None:
        super().__init__()
        _check_v3(shape)
        self.deter_size = deter
        channels = _V3_MULTIPLES[-1] * depth
        self.height, self.width = shape[0] // 16, shape[1] // 16
        size = self.height * self.width * channels
        self.from_deter = BlockLinear(deter, size, _V3_BLOCKS, init)
        self.from_stoch = nn.Sequential(
            linear(stoch, 2 * units, init),
            normalisation(norm, 2 * units),
            activation(act),
            linear(2 * units, size, init),
        )
        self.join = _ChannelNorm(channels, norm, act)
        layers: list[nn.Module] = []
        for multiple in _V3_MULTIPLES[-2::-1]:
            layers += [nn.Upsample(scale_factor=2), _started(nn.Conv2d(channels, multiple * depth, 5, padding=2), init)]
            layers.append(_ChannelNorm(multiple * depth, norm, act))
            channels = multiple * depth
        layers += [nn.Upsample(scale_factor=2), _started(nn.Conv2d(channels, shape[2], 5, padding=2), init)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, deter + stoch) to mean pictures (N, H, W, C) in [0, 1]."""
        deter, stoch = features[:, : self.deter_size], features[:, self.deter_size :]
        blocks = self.from_deter(deter).unflatten(1, (_V3_BLOCKS, self.height, self.width, -1))
        x = blocks.permute(0, 2, 3, 1, 4).flatten(3) + self.from_stoch(stoch).unflatten(
            1, (self.height, self.width, -1)
        )
        return torch.sigmoid(self.layers(self.join(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


def centred(pictures: Tensor) -> Tensor:
    """uint8 pictures as float32 in [-0.5, 0.5]."""
    return pictures / 255.0 - 0.5


def _check_dreamer(shape: Shape) -> None:
    if shape[:2] != (64, 64):
        raise ImageSizeError(
            f'Pictures are {shape[0]}x{shape[1]}, but the "dreamer" image network is made for 64x64. Resize them '
            'with gymnasium.wrappers.ResizeObservation(env, (64, 64)), or choose image="v3" (multiples of 16).'
        )


def _check_v3(shape: Shape) -> None:
    if shape[0] % 16 or shape[1] % 16:
        raise ImageSizeError(
            f'Pictures are {shape[0]}x{shape[1]}, but the "v3" image network needs multiples of 16, such as 64x64 or '
            "96x96. Resize them with gymnasium.wrappers.ResizeObservation."
        )
