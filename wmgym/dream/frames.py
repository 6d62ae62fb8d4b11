"""Pictures of dreams."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from wmgym.dream.convert import to_array
from wmgym.spaces import as_dict_space, is_image
from wmgym.worlds.base import World


def picture_key(world: World) -> str | None:
    """The first picture among a world's observations; None if there is none."""
    return next((key for key, box in as_dict_space(world.observation_space).items() if is_image(box)), None)


def can_render(world: World) -> bool:
    """Whether a world's states can be looked at: it has a method `render`, or decodes a picture."""
    return callable(getattr(world, "render", None)) or picture_key(world) is not None


def render_frames(world: World, features: Tensor) -> np.ndarray:
    """Pictures of the states with `features` `(B, F)`, uint8 `(B, H, W, 3)`."""
    render = getattr(world, "render", None)
    if callable(render):
        return _rgb(to_array(render(features)))
    key = picture_key(world)
    if key is None:
        raise ValueError("This world decodes no picture.")
    return _rgb(to_array(world.decode(features)[key]))


def _rgb(frames: np.ndarray) -> np.ndarray:
    """Grey pictures get three channels; of stacked frames the newest is shown."""
    return frames.repeat(3, axis=-1) if frames.shape[-1] < 3 else frames[..., -3:]
