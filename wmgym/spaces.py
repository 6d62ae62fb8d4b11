"""Observation spaces as every world sees them: a flat dictionary of boxes.

A `Box` observation is the dictionary with the single key `OBSERVATION`, so that encoders, decoders, replay
and losses have one case instead of two.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces

OBSERVATION = "observation"


class SpaceError(ValueError):
    """A space that worlds and agents cannot use; the message names it and the way out."""


def is_image(space: spaces.Space) -> bool:
    """Whether `space` is a uint8 picture (H, W, C)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def as_dict_space(space: spaces.Space) -> dict[str, spaces.Box]:
    """The boxes of an observation space by key.

    Args:
        space: a `Box` (uint8 (H, W, C) picture or a vector) or a `Dict` of such boxes.

    Raises:
        SpaceError: for anything else; the message says which entry and what to do.
    """
    boxes = dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION: space}
    if not boxes:
        raise SpaceError("The observation space is an empty Dict: a world needs something to see.")
    for key, box in boxes.items():
        _check_box(key, box)
    return boxes  # type: ignore[return-value]  # checked just above


def _check_box(key: str, box: spaces.Space) -> None:
    if isinstance(box, spaces.Dict):
        raise SpaceError(
            f"Observation {key!r} is a Dict inside a Dict. Flatten it first, for example with "
            "gymnasium.wrappers.FlattenObservation."
        )
    if not isinstance(box, spaces.Box):
        raise SpaceError(
            f"Observation {key!r} is a {type(box).__name__} space. Worlds see Box spaces (vectors or uint8 "
            "pictures) or a Dict of them; convert it with gymnasium.wrappers.FlattenObservation."
        )
    if len(box.shape) == 3 and box.dtype != np.uint8:
        raise SpaceError(
            f"Observation {key!r} has shape {box.shape} and dtype {box.dtype}. Pictures must be uint8 (H, W, C)."
        )
    if len(box.shape) == 2 or len(box.shape) > 3:
        raise SpaceError(
            f"Observation {key!r} has {len(box.shape)} dimensions {box.shape}. Use a vector (flatten it with "
            "gymnasium.wrappers.FlattenObservation) or a uint8 picture (H, W, C)."
        )
    if len(box.shape) == 1 and box.shape[0] == 0:
        raise SpaceError(f"Observation {key!r} is empty (shape {box.shape}): remove it from the Dict.")


def unseeded(space: spaces.Space) -> spaces.Space:
    """A copy that draws samples of its own: `space` may be another environment's, or a world's.

    Example:
        >>> shared = spaces.Discrete(1000, seed=0)
        >>> mine = unseeded(shared)
        >>> mine == shared, mine.seed(0) == shared.seed(0), bool(mine.sample() == shared.sample())
        (True, True, True)
    """
    copy = deepcopy(space)
    inner = copy.spaces if isinstance(copy, spaces.Dict | spaces.Tuple) else ()
    for part in (copy, *(inner.values() if isinstance(inner, dict) else inner)):
        part._np_random = None
    return copy


def as_dict(observation: Any) -> dict[str, Any]:
    """An observation as a dictionary by key, whether it came as one or not."""
    return observation if isinstance(observation, dict) else {OBSERVATION: observation}


def copied(observation: Any) -> dict[str, np.ndarray]:
    """An observation by key in arrays of its own: an environment may write the next one into the same."""
    return {key: np.array(value) for key, value in as_dict(observation).items()}


def from_dict(observation: dict[str, Any], space: spaces.Space) -> Any:
    """The inverse of `as_dict` for observations of `space`."""
    return observation if isinstance(space, spaces.Dict) else observation[OBSERVATION]


def action_size(space: spaces.Space) -> int:
    """How many numbers an action has as a network reads it: dimensions, or choices (one-hot).

    Raises:
        SpaceError: if `space` is neither a finite one-dimensional `Box` nor a `Discrete`.
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise SpaceError(
                f"The action space has infinite bounds (low {space.low}, high {space.high}). Bound it with "
                "gymnasium.wrappers.ClipAction and a finite Box."
            )
        return int(space.shape[0])
    raise SpaceError(
        f"Actions of {space} are not supported: use a one-dimensional Box with finite bounds, or Discrete."
    )
