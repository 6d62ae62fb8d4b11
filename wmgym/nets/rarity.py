"""How much each pixel of a picture counts, by how rare its colour is.

A squared error is a sum over pixels. What is small but decides (a fireball of a few pixels among thousands of wall) is
not worth a number of the code, nor a mixture of what comes next. Here a pixel counts by the share of its colour among
all pixels that were seen,

    weight = share(colour)^-power / sum over colours share^(1 - power)

so that its mean over pixels is 1. Nothing about the game is in it: only that what is seldom seen is worth seeing.

Source: this project. Zhang et al. 2016 ("Colorful Image Colorization", section 2.2) weigh colours so, for a classifier.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.spaces import is_image

_BITS = 3
"""Of each channel that tell a colour; of more than three channels, the first three tell it."""
_RATE = 0.001
"""Of the running average, once it has seen a thousand batches; until then all count alike."""
_LEAST = 1e-5
"""Share that a colour is taken to have at least, lest a single pixel be everything."""


class Rarity(nn.Module):
    """Shares of the colours of each picture, and the weights of pixels that follow from them.

    Args:
        boxes: the observation's boxes by key (`wmgym.spaces.as_dict_space`); vectors are left out.
        power: of the rarity; 0: all pixels count alike, 1: all colours do.

    Example:
        >>> rarity = Rarity({"camera": spaces.Box(0, 255, (2, 2, 3), "uint8")}, power=0.5)
        >>> picture = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
        >>> picture[0, 0, 0] = 255
        >>> rarity.take({"camera": picture})
        >>> rarity.weights({"camera": picture})["camera"][0, 0, :, 0]  # a quarter and three quarters
        tensor([1.4641, 0.8453])
    """

    def __init__(self, boxes: Mapping[str, spaces.Box], power: float) -> None:
        super().__init__()
        self.power = power
        self._keys = [key for key, box in boxes.items() if is_image(box)]
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros(()))
        for number, key in enumerate(self._keys):
            channels = min(boxes[key].shape[2], 3)
            self.register_buffer(f"share_{number}", torch.zeros(2 ** (_BITS * channels)))

    def forward(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `weights`; while training, what is given is counted first."""
        colours = self._colours(observation)
        if self.training:
            self._count(colours)
        return self._weights(colours)

    def take(self, observation: Mapping[str, Tensor]) -> None:
        """Count the colours of pictures `(..., H, W, C)` uint8."""
        self._count(self._colours(observation))

    def weights(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of each pixel, `(..., H, W, 1)` float32, for the pictures given; before any was taken, 1."""
        return self._weights(self._colours(observation))

    @torch.no_grad()
    def _count(self, colours: Mapping[str, Tensor]) -> None:
        self.batches += 1
        rate = torch.clamp(1 / self.batches, min=_RATE)
        for key, numbers in colours.items():
            share = self._share(key)
            counts = torch.bincount(numbers.flatten(), minlength=len(share))
            share.lerp_(counts / counts.sum(), rate)

    def _weights(self, colours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, numbers in colours.items():
            share = self._share(key)
            of_colour = share.clamp(min=_LEAST) ** -self.power
            mean = torch.where(self.batches > 0, (share * of_colour).sum(), of_colour[0])
            found[key] = (of_colour / mean)[numbers][..., None]
        return found

    def _share(self, key: str) -> Tensor:
        return self.get_buffer(f"share_{self._keys.index(key)}")

    def _colours(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The number `(..., H, W)` of each pixel's colour, for the pictures given."""
        return {key: _colour_numbers(observation[key]) for key in self._keys if key in observation}


def _colour_numbers(pictures: Tensor) -> Tensor:
    number = torch.zeros(pictures.shape[:-1], dtype=torch.int32, device=pictures.device)
    for channel in pictures.unbind(-1)[:3]:
        number.bitwise_left_shift_(_BITS).add_(channel >> (8 - _BITS))
    return number
