"""Pictures of dreams: what a world decodes, drawn as it is or as bars."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from wmgym.dream.convert import to_array
from wmgym.spaces import as_dict_space, is_image
from wmgym.worlds.base import Observation, World

_BAR_SIZE = 128
_PAPER, _AXIS, _POSITIVE, _NEGATIVE = (245, 245, 245), (120, 120, 120), (40, 110, 180), (200, 90, 50)

_ROWS_AT_ONCE = 256
"""Pictures decoded together: the layers of a decoder are many times as large as what they draw."""


def picture_key(world: World) -> str | None:
    """The first picture among a world's observations; None if there is none."""
    return next((key for key, box in as_dict_space(world.observation_space).items() if is_image(box)), None)


def decode(world: World, features: Tensor, keys: Sequence[str] | None = None) -> Observation:
    """What a world decodes of `features` `(B, F)`, or some `keys` of it; pictures a few rows at a time."""
    parts = features.split(_ROWS_AT_ONCE) if _has_picture(world, keys) else (features,)
    decoded = [world.decode(part) if keys is None else world.decode_keys(part, keys) for part in parts]
    return decoded[0] if len(decoded) == 1 else {key: torch.cat([part[key] for part in decoded]) for key in decoded[0]}


def render_frames(world: World, features: Tensor) -> np.ndarray:
    """Pictures of the states with `features` `(B, F)`, uint8 `(B, H, W, 3)`.

    They come from the world's method `render(features)` if it has one, else from its picture decoder. A world that
    draws no pictures shows what it decodes as bars, one for each number (see `draw_bars`).
    """
    render = getattr(world, "render", None)
    if callable(render):
        return rgb(to_array(render(features)))
    if key := picture_key(world):
        return rgb(to_array(decode(world, features, [key])[key]))
    decoded = world.decode(features)
    rows = [to_array(value.float().reshape(len(value), -1)) for value in decoded.values()]
    return draw_bars(np.concatenate(rows, -1))


def draw_bars(values: np.ndarray) -> np.ndarray:
    """Numbers as bars from the middle, blue to the right and red to the left, the first at the top.

    Args:
        values: `(B, N)`; a bar fills `|x| / (1 + |x|)` of its half, so that numbers of any size fit.

    Returns:
        uint8 `(B, H, 128, 3)`, where H is at least 128 and even.

    Example:
        >>> draw_bars(np.array([[1.0, -1.0]])).shape
        (1, 128, 128, 3)
    """
    count = values.shape[1]
    rows = max(_BAR_SIZE // count, 2)
    width = np.round(values / (1 + np.abs(values)) * (_BAR_SIZE / 2))[..., None]  # (B, N, 1)
    place = np.arange(_BAR_SIZE) - _BAR_SIZE // 2 + 0.5  # (W,)
    filled = (np.abs(place) < np.abs(width)) & (np.sign(place) == np.sign(width))  # (B, N, W)
    ink = np.where(width[..., None] > 0, np.array(_POSITIVE), np.array(_NEGATIVE))
    bars = np.where(filled[..., None], ink, np.array(_PAPER)).astype(np.uint8)
    bars[:, :, _BAR_SIZE // 2] = _AXIS
    frames = bars.repeat(rows, axis=1)
    frames[:, rows - 1 :: rows] = _PAPER
    height = max(_BAR_SIZE, frames.shape[1] + frames.shape[1] % 2)
    padded = np.full((len(values), height, _BAR_SIZE, 3), _PAPER, np.uint8)
    padded[:, : frames.shape[1]] = frames
    return padded


def _has_picture(world: World, keys: Collection[str] | None) -> bool:
    boxes = as_dict_space(world.observation_space)
    return any(is_image(box) for key, box in boxes.items() if keys is None or key in keys)


def rgb(frames: np.ndarray) -> np.ndarray:
    """Pictures `(..., 3)`; of stacked frames the newest: the last three channels, or, if they are grey, the last.

    Example:
        >>> rgb(np.arange(4, dtype=np.uint8)).tolist(), rgb(np.arange(6, dtype=np.uint8)).tolist()
        ([3, 3, 3], [3, 4, 5])
    """
    return frames[..., -3:] if frames.shape[-1] % 3 == 0 else frames[..., -1:].repeat(3, axis=-1)
