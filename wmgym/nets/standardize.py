"""Vectors in units of their own deviation, learned from what is seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.spaces import is_image

_LEAST_VARIANCE = 1e-6
"""Numbers that hardly change are not blown up further than a thousand times."""


class Standardizer(nn.Module):
    """Vectors less their mean, over their deviation, number by number; pictures pass unchanged.

    Mean and variance are those of all batches that `update` was given, each row counting once (Chan et al. 1979), and
    are saved with the module. Before the first batch nothing is changed.

    Args:
        boxes: the observation's boxes by key (`wmgym.spaces.as_dict_space`).

    Example:
        >>> scale = Standardizer({"pole": spaces.Box(-9, 9, (2,))})
        >>> scale.update({"pole": torch.tensor([[1.0, 0.0], [3.0, 0.0]])})
        >>> scale({"pole": torch.tensor([3.0, 0.0])})["pole"]
        tensor([1., 0.])
    """

    def __init__(self, boxes: Mapping[str, spaces.Box]) -> None:
        super().__init__()
        self._keys = [key for key, box in boxes.items() if not is_image(box)]
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(()))
        for number, key in enumerate(self._keys):
            self.register_buffer(f"mean_{number}", torch.zeros(boxes[key].shape))
            self.register_buffer(f"variance_{number}", torch.ones(boxes[key].shape))

    @torch.no_grad()
    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Take a batch in: by key `(..., N)`, or `(...)` for single numbers."""
        count = 0
        for number, key in enumerate(self._keys):
            mean, variance = self._statistics(number)
            rows = observation[key].float().reshape(-1, *mean.shape)
            count = len(rows)
            share = count / (self.rows + count)
            away = rows.mean(0) - mean
            spread = rows.var(0, correction=0) - variance + away.square() * (1 - share)
            mean.add_(share * away)
            variance.add_(share * spread)
        self.rows.add_(count)

    def forward(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The observation with its vectors in units of their deviation, float32."""
        changed = dict(observation)
        for number, key in enumerate(self._keys):
            if key in changed:
                mean, deviation = self._units(number)
                changed[key] = (changed[key].float() - mean) / deviation
        return changed

    def inverse(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The observation in its own units again."""
        changed = dict(observation)
        for number, key in enumerate(self._keys):
            if key in changed:
                mean, deviation = self._units(number)
                changed[key] = changed[key] * deviation + mean
        return changed

    def _statistics(self, number: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{number}"), self.get_buffer(f"variance_{number}")

    def _units(self, number: int) -> tuple[Tensor, Tensor]:
        mean, variance = self._statistics(number)
        return mean, variance.clamp(min=_LEAST_VARIANCE).sqrt()
