"""Pictures through linear layers over patches: what convolutions become when no two windows overlap.

A layer joins the squares of neighbouring places (8x8 pixels, then 2x2 places) into one vector each and sends them
through the same linear layer, normalisation and activation; the decoder goes the same way back. All of it is plain
matrix products, and the last places keep a grid of 4x4, so that small things stay where they are: walker's pose is
learned in a third of the time that the papers' convolutions take.

Source: the first layer of the Vision Transformer (Dosovitskiy et al. 2020), here used twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmgym.nets.images import ImageDecoder, ImageSizeError, ImageStyle, Shape, to_bytes
from wmgym.nets.mlp import activation, linear, normalisation
from wmgym.nets.precision import use_bfloat16

_SIDES = (8, 2)  # a layer joins squares of so many places a side
_MULTIPLES = (6, 8)  # channels after it, in units of `depth`
_REDUCTION = 16


class PatchImageEncoder(nn.Module):
    """(H, W) pictures to a grid of H / 16 x W / 16 places of 8 `depth` numbers.

    Args:
        shape: (H, W, C) of the pictures, multiples of 16.
        style: depth, activation, normalisation, first weights, precision.

    Raises:
        ImageSizeError: for other sizes.
    """

    def __init__(self, shape: Shape, style: ImageStyle) -> None:
        super().__init__()
        _check(shape)
        channels = shape[2]
        layers = []
        for side, multiple in zip(_SIDES, _MULTIPLES):
            layers.append(_layer(side * side * channels, multiple * style.depth, style))
            channels = multiple * style.depth
        self.layers = nn.ModuleList(layers)
        self.fast = style.bfloat16
        self.out_size = shape[0] // _REDUCTION * (shape[1] // _REDUCTION) * channels

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps uint8 (N, H, W, C) to float32 (N, out_size)."""
        fast = use_bfloat16(self.fast, pictures)
        x = pictures.to(torch.bfloat16 if fast else torch.float32).sub_(127.5).mul_(1 / 64)
        for side, layer in zip(_SIDES, self.layers):
            x = _run(layer, join_places(x, side), fast)
        return x.flatten(1).float()


class PatchImageDecoder(ImageDecoder):
    """From features back to pictures, the way of `PatchImageEncoder` reversed."""

    def __init__(self, in_size: int, shape: Shape, style: ImageStyle) -> None:
        super().__init__()
        _check(shape)
        self.grid = (shape[0] // _REDUCTION, shape[1] // _REDUCTION)
        channels = [multiple * style.depth for multiple in _MULTIPLES]
        self.dense = _layer(in_size, self.grid[0] * self.grid[1] * channels[-1], style)
        widths = [shape[2], *channels]
        self.spread = nn.ModuleList(
            linear(widths[i + 1], side * side * widths[i], style.init) for i, side in reversed([*enumerate(_SIDES)])
        )
        self.finish = nn.ModuleList(_finish(width, style) for width in reversed(channels[:-1]))
        self.fast = style.bfloat16

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_size) to mean pictures (N, H, W, C) in [0, 1]."""
        return split_places(self._squares(features), _SIDES[0])

    def draw(self, features: Tensor) -> Tensor:
        """The same as bytes; they are rounded before they are put in their places, for a quarter of the memory."""
        return split_places(to_bytes(self._squares(features), self.offset), _SIDES[0])

    def _squares(self, features: Tensor) -> Tensor:
        """Means of pictures whose last squares are not split yet."""
        fast = use_bfloat16(self.fast, features)
        x = _run(self.dense, features, fast).unflatten(1, (*self.grid, -1))
        for side, spread, finish in zip(_SIDES[:0:-1], self.spread, self.finish):
            x = _run(finish, split_places(_run(spread, x, fast), side), fast)
        return _run(self.spread[-1], x, fast).sigmoid_()


def join_places(x: Tensor, side: int) -> Tensor:
    """Joins squares of places: (N, H, W, C) to (N, H / side, W / side, side * side * C)."""
    count, height, width, channels = x.shape
    squares = x.reshape(count, height // side, side, width // side, side, channels).transpose(2, 3)
    return squares.reshape(count, height // side, width // side, side * side * channels)


def split_places(x: Tensor, side: int) -> Tensor:
    """The inverse of `join_places`: (N, H, W, side * side * C) to (N, H * side, W * side, C)."""
    count, height, width, channels = x.shape
    squares = x.reshape(count, height, width, side, side, channels // (side * side)).transpose(2, 3)
    return squares.reshape(count, height * side, width * side, -1)


def _layer(in_size: int, out_size: int, style: ImageStyle) -> nn.Sequential:
    return nn.Sequential(linear(in_size, out_size, style.init), *_finish(out_size, style))


def _finish(size: int, style: ImageStyle) -> nn.Sequential:
    return nn.Sequential(normalisation(style.norm, size), activation(style.act))


def _run(layer: nn.Module, x: Tensor, bfloat16: bool) -> Tensor:
    """The layer, in bfloat16 where asked for; normalisations come back from it in float32 and are rounded again."""
    if not bfloat16:
        out: Tensor = layer(x)
        return out
    with torch.autocast(x.device.type, torch.bfloat16):
        rounded: Tensor = layer(x)
    return rounded.to(torch.bfloat16)


def _check(shape: Shape) -> None:
    if shape[0] % _REDUCTION or shape[1] % _REDUCTION:
        raise ImageSizeError(
            f'Pictures are {shape[0]}x{shape[1]}, but the "patches" image network needs multiples of {_REDUCTION}, '
            "such as 64x64 or 96x96. Resize them with gymnasium.wrappers.ResizeObservation."
        )
