"""Convolutional networks for pictures: PlaNet's (also Dreamer V1 and V2) and DreamerV3's.

All of them read and give pictures as (N, H, W, C). Seen as (N, C, H, W) that is PyTorch's channels-last layout,
the fast one, so nothing is ever copied to change the layout.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wmgym.nets.blocks import BlockLinear
from wmgym.nets.mlp import MLP, Activation, Init, Norm, activation, init_v3_, linear, normalisation
from wmgym.nets.precision import use_bfloat16
from wmgym.random import Noise

ImageNet = Literal["dreamer", "v3", "patches"]
Shape = tuple[int, int, int]

_V3_MULTIPLES = (2, 3, 4, 4)
_V3_BLOCKS = 8


class ImageSizeError(ValueError):
    """Pictures of a size that the network cannot have; the message names the sizes that it can."""


@dataclass(frozen=True)
class ImageStyle:
    """What all image networks share: see `wmgym.nets.coders.CoderConfig` for the meaning."""

    depth: int
    act: Activation
    norm: Norm
    init: Init
    bfloat16: bool
    squash: bool = False


class _Activation(nn.Module):
    """Normalisation over the channels of every pixel (N, C, H, W), then the activation."""

    def __init__(self, channels: int, norm: Norm, act: Activation) -> None:
        super().__init__()
        self.norm = normalisation(norm, channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.norm, nn.Identity):
            x = self._normalised(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.act(x)
        return out

    def _normalised(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.RMSNorm):  # the module itself would turn bfloat16 pictures into float32
            return functional.rms_norm(x, self.norm.normalized_shape, self.norm.weight.to(x.dtype), self.norm.eps)
        normalised: Tensor = self.norm(x)
        return normalised


def _conv(in_channels: int, out_channels: int, kernel: int, init: Init, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
    return _started(layer, init)


def _deconv(in_channels: int, out_channels: int, kernel: int, init: Init) -> nn.ConvTranspose2d:
    return _started(nn.ConvTranspose2d(in_channels, out_channels, kernel, stride=2), init)


def _interleaved(x: Tensor) -> Tensor:
    """(N, 2 * 2 * C, H, W), channels by parity of row and column, as pictures (N, C, 2 H, 2 W)."""
    count, _, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(count, height, width, 2, -1).transpose(2, 3)  # (N, H, 2, W, 2 C)
    return rows.reshape(count, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


class _LastDeconv(nn.ConvTranspose2d):
    """A transposed convolution of stride 2 and even kernel, for few channels: as a convolution of the small picture.

    Every output pixel of one of four kinds (even or odd row, even or odd column) reads the same kernel / 2 places a
    side, so that the four are the channels of one plain convolution. For a picture's three channels that takes less
    than half of the time that a processor needs for the transposed form.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in, H, W) to (N, out, 2 H + kernel - 2, 2 W + kernel - 2)."""
        weight = self.weight.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).flip(2, 4)  # (in, out, k / 2, 2, k / 2, 2)
        weight = weight.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)
        padding = self.kernel_size[0] // 2 - 1
        return _interleaved(functional.conv2d(x, weight, _bias(self).repeat(4), padding=padding))


Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def _started(layer: Layer, init: Init) -> Layer:
    """The convolution with the first weights by name, in channels-last layout."""
    if init == "v3":
        init_v3_(layer.weight, layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])
    elif init == "glorot":
        nn.init.xavier_uniform_(layer.weight)
    if init != "torch":
        _bias(layer).data.zero_()
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert layer.bias is not None  # for the type checker
    return layer.bias


def _precision(x: Tensor, bfloat16: bool) -> AbstractContextManager[Any]:
    """bfloat16 convolutions where asked for; otherwise whatever precision the caller has set."""
    return torch.autocast(x.device.type, torch.bfloat16) if bfloat16 else nullcontext()


def _read(pictures: Tensor, first: nn.Conv2d, bfloat16: bool) -> Tensor:
    """The first convolution, of uint8 pictures (N, H, W, C) brought to [-0.5, 0.5].

    The division by 255 is done on the weights instead of the pixels: it is cheaper, and `pixel - 127.5` is
    exact in bfloat16.
    """
    pixels = pictures.to(torch.bfloat16 if bfloat16 else torch.float32).sub_(127.5).permute(0, 3, 1, 2)
    return functional.conv2d(pixels, first.weight * (1 / 255), first.bias, first.stride, first.padding)


def _flat(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels-last layout as float32 (N, H * W * C)."""
    return x.permute(0, 2, 3, 1).flatten(1).float()


class DreamerImageEncoder(nn.Module):
    """Four convolutions of kernel 4, stride 2, no padding: 64x64 pictures to 2 * 2 * 8 `depth` numbers.

    Source: World Models (Ha & Schmidhuber 2018), PlaNet (Hafner et al. 2019), Dreamer V1 and V2.
    """

    def __init__(self, shape: Shape, style: ImageStyle) -> None:
        super().__init__()
        _check_dreamer(shape)
        channels = style.depth
        self.first = _conv(shape[2], channels, 4, style.init, stride=2)
        layers: list[nn.Module] = [_Activation(channels, style.norm, style.act)]
        for size in (2 * style.depth, 4 * style.depth, 8 * style.depth):
            layers += [_conv(channels, size, 4, style.init, stride=2), _Activation(size, style.norm, style.act)]
            channels = size
        self.rest = nn.Sequential(*layers)
        self.fast = style.bfloat16
        self.out_size = 4 * channels

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps uint8 (N, 64, 64, C) to float32 (N, out_size)."""
        fast = use_bfloat16(self.fast, pictures)
        with _precision(pictures, fast):
            return _flat(self.rest(_read(pictures, self.first, fast)))


class ImageDecoder(nn.Module):
    """What draws pictures: called with features (N, in_size), it gives mean pictures (N, H, W, C).

    Attributes:
        offset: what a black pixel is in the range of the means.
    """

    offset = 0.0

    def draw(self, features: Tensor) -> Tensor:
        """Maps (N, in_size) to uint8 pictures (N, H, W, C)."""
        return to_bytes(self(features), self.offset)


class DreamerImageDecoder(ImageDecoder):
    """A linear layer to 1x1 and four transposed convolutions of stride 2 (kernels 5, 5, 6, 6) to 64x64.

    Source: as for `DreamerImageEncoder`.
    """

    offset = -0.5

    def __init__(self, in_size: int, shape: Shape, style: ImageStyle) -> None:
        super().__init__()
        _check_dreamer(shape)
        depth = style.depth
        self.dense = linear(in_size, 32 * depth, style.init)
        self.first = _deconv(32 * depth, 4 * depth, 5, style.init)
        self.rest = nn.Sequential(
            _Activation(4 * depth, style.norm, style.act),
            _deconv(4 * depth, 2 * depth, 5, style.init),
            _Activation(2 * depth, style.norm, style.act),
            _deconv(2 * depth, depth, 6, style.init),
            _Activation(depth, style.norm, style.act),
            _started(_LastDeconv(depth, shape[2], 6, stride=2), style.init),
        )
        self.fast, self.squash = style.bfloat16, style.squash

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_size) to mean pictures (N, 64, 64, C) in the range [-0.5, 0.5], clamped only by `squash`."""
        with _precision(features, use_bfloat16(self.fast, features)):
            pictures: Tensor = self.rest(self._from_point(self.dense(features)))
        pictures = pictures.permute(0, 2, 3, 1)
        return torch.sigmoid(pictures) + self.offset if self.squash else pictures

    def _from_point(self, x: Tensor) -> Tensor:
        """The first transposed convolution, which from a 1x1 picture is a plain matrix product (and much faster)."""
        kernel = self.first.weight.permute(0, 2, 3, 1)  # (in, 5, 5, out), a view without a copy
        out = x @ kernel.flatten(1)
        return (out.unflatten(1, kernel.shape[1:]) + _bias(self.first).to(out.dtype)).permute(0, 3, 1, 2)


class V3ImageEncoder(nn.Module):
    """Four convolutions of kernel 5, each followed by 2x2 max-pooling: (H, W) to (H / 16, W / 16, 4 `depth`).

    Source: DreamerV3 (Hafner et al. 2023, code of 2024), depths `depth * (2, 3, 4, 4)`.
    """

    def __init__(self, shape: Shape, style: ImageStyle) -> None:
        super().__init__()
        _check_v3(shape)
        sizes = [multiple * style.depth for multiple in _V3_MULTIPLES]
        self.first = _conv(shape[2], sizes[0], 5, style.init, padding=2)
        layers: list[nn.Module] = []
        for size, after in zip(sizes, (*sizes[1:], None)):
            layers += [nn.MaxPool2d(2), _Activation(size, style.norm, style.act)]
            if after is not None:
                layers.append(_conv(size, after, 5, style.init, padding=2))
        self.rest = nn.Sequential(*layers)
        self.fast = style.bfloat16
        self.out_size = (shape[0] // 16) * (shape[1] // 16) * sizes[-1]

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps uint8 (N, H, W, C) to float32 (N, out_size)."""
        fast = use_bfloat16(self.fast, pictures)
        with _precision(pictures, fast):
            return _flat(self.rest(_read(pictures, self.first, fast)))


class V3ImageDecoder(ImageDecoder):
    """Block-linear from `deter` plus a small network from `stoch`, then upsampling and convolutions of kernel 5.

    Source: DreamerV3 (Hafner et al. 2023, code of 2024).
    """

    def __init__(self, deter: int, stoch: int, shape: Shape, units: int, style: ImageStyle) -> None:
        super().__init__()
        _check_v3(shape)
        act, norm, init = style.act, style.norm, style.init
        channels = _V3_MULTIPLES[-1] * style.depth
        self.deter_size = deter
        self.height, self.width = shape[0] // 16, shape[1] // 16
        size = self.height * self.width * channels
        self.from_deter = BlockLinear(deter, size, _V3_BLOCKS, init)
        self.from_stoch = MLP(stoch, size, 1, 2 * units, act, norm, init)
        layers: list[nn.Module] = [_Activation(channels, norm, act)]
        for multiple in _V3_MULTIPLES[-2::-1]:
            layers += [_UpConv(channels, multiple * style.depth, init), _Activation(multiple * style.depth, norm, act)]
            channels = multiple * style.depth
        self.rest = nn.Sequential(*layers, _UpConv(channels, shape[2], init))
        self.fast = style.bfloat16

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, deter + stoch) to mean pictures (N, H, W, C) in [0, 1]."""
        deter, stoch = features[:, : self.deter_size], features[:, self.deter_size :]
        blocks = self.from_deter(deter).unflatten(1, (_V3_BLOCKS, self.height, self.width, -1))
        joined = blocks.permute(0, 2, 3, 1, 4).flatten(3)
        joined = joined + self.from_stoch(stoch).unflatten(1, (self.height, self.width, -1))
        fast = use_bfloat16(self.fast, features)
        with _precision(features, fast):
            pictures: Tensor = self.rest(joined.to(torch.bfloat16 if fast else joined.dtype).permute(0, 3, 1, 2))
        return torch.sigmoid(pictures.permute(0, 2, 3, 1))


class _UpConv(nn.Module):
    """Nearest-neighbour upsampling by two and a convolution of kernel 5, padding 2.

    Computed at the lower resolution: of the 5 rows that a kernel covers after upsampling, at most 3 differ, so an
    even and an odd output row are each a convolution of kernel 3 with summed weights. The same equation for
    about a third of the work.
    """

    def __init__(self, in_channels: int, out_channels: int, init: Init) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels, 5, init, padding=2)
        # (output row parity, row of the lower resolution, row of the kernel)
        even, odd = (
            ((1, 1, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 0, 0, 1)),
            ((1, 0, 0, 0, 0), (0, 1, 1, 0, 0), (0, 0, 0, 1, 1)),
        )
        self.rows: Tensor
        self.register_buffer("rows", torch.tensor((even, odd), dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # sum the weights before they are rounded
            weight = torch.einsum("oikl,ask,btl->aboist", self.conv.weight, self.rows, self.rows)
        weight = weight.flatten(0, 2).contiguous(memory_format=torch.channels_last)  # (2 * 2 * out, in, 3, 3)
        return _interleaved(functional.conv2d(x, weight, _bias(self.conv).repeat(4), padding=1))


def to_bytes(mean: Tensor, offset: float) -> Tensor:
    """Mean pictures in the range [offset, offset + 1], float32 or bfloat16, as uint8 in the same layout.

    They are computed in place: `mean` is overwritten.
    """
    return mean.float().sub_(offset).mul_(255.0).round_().clamp_(0, 255).to(torch.uint8)


def picture_error(mean: Tensor, pictures: Tensor, offset: float, weights: Tensor | None = None) -> Tensor:
    """Squared error of every picture, summed over its pixels.

    Args:
        mean: (N, H, W, C) in the range [offset, offset + 1], float32 or bfloat16.
        pictures: (N, H, W, C) uint8.
        offset: what a black pixel is in that range.
        weights: of the pixels, (N, H, W, 1) or (N, H, W, C); None: all 1.

    Returns:
        (N,) float32.
    """
    target = pictures.to(torch.float32).mul_(1 / 255).add_(offset)
    # Its fused backward pass makes this cheaper than a difference and a square.
    error = functional.mse_loss(mean.float(), target, reduction="none")
    return (error if weights is None else error * weights).flatten(1).sum(-1)


def coarse(pictures: Tensor, step: int, noise: Noise) -> Tensor:
    """Pictures `(..., H, W, C)` uint8 in which only multiples of `step` are kept, plus a random number below it.

    PlaNet sees `floor(x / 8) / 32 + U(0, 1/32) - 0.5`; this is the same on the scale of bytes.
    """
    drawn = noise.uniform(*pictures.shape).mul_(step).to(torch.uint8)
    return pictures // step * step + drawn


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
