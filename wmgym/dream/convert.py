"""Between Gymnasium's arrays and the tensors that worlds read and write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.spaces import action_size, as_dict, as_dict_space, is_image
from wmgym.worlds.base import Observation, World


class ActionConverter:
    """Turns actions of a space into what a world reads: scaled to [-1, 1], or one-hot.

    Args:
        space: `Box` with finite bounds or `Discrete`.
        device: where the tensors are wanted.

    Example:
        >>> ActionConverter(spaces.Discrete(3))(np.array([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    def __init__(self, space: spaces.Space, device: torch.device | str = "cpu") -> None:
        self.space = space
        self.size = action_size(space)
        self.device = torch.device(device)
        if isinstance(space, spaces.Box):
            low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (space.low, space.high))
            self._centre = ((high + low) / 2).to(device)
            self._reach = ((high - low) / 2).clamp(min=torch.finfo(torch.float32).tiny).to(device)

    def __call__(self, actions: Any, ignored: np.ndarray | None = None) -> Tensor:
        """Actions `(B, ...)` as `(B, A)` float32; beyond a Box's bounds they are clipped.

        Args:
            actions: one action a row.
            ignored: `(B,)` bool; rows that may hold anything.

        Raises:
            ValueError: naming the row, for a wrong shape or dtype, NaN or infinity, or a choice that there is not.
        """
        actions = np.asarray(actions)
        if actions.ndim == 0 or actions.shape[1:] != self.space.shape:
            raise ValueError(
                f"Actions have shape {actions.shape}; a batch of {self.space} has shape "
                f"{('num_envs', *(self.space.shape or ()))}."
            )
        if isinstance(self.space, spaces.Discrete):
            return self._one_hot(self.space, actions, ignored)
        return self._scaled(actions, ignored)

    def _one_hot(self, space: spaces.Discrete, actions: np.ndarray, ignored: np.ndarray | None) -> Tensor:
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"Actions of {space} are integers, not {actions.dtype}.")
        choice = actions - space.start
        _refuse((choice < 0) | (choice >= space.n), actions, ignored, f"is not in {space}")
        choice = np.clip(choice, 0, space.n - 1).astype(np.int64)
        return nn.functional.one_hot(torch.from_numpy(choice).to(self.device), int(space.n)).float()

    def _scaled(self, actions: np.ndarray, ignored: np.ndarray | None) -> Tensor:
        if not np.issubdtype(actions.dtype, np.number) or np.iscomplexobj(actions):
            raise ValueError(f"Actions of {self.space} are numbers, not {actions.dtype}.")
        _refuse(~np.isfinite(actions).all(-1), actions, ignored, "is not finite")
        numbers = torch.tensor(actions, dtype=torch.float32, device=self.device)
        return ((numbers - self._centre) / self._reach).clamp(-1.0, 1.0)


def _refuse(wrong: np.ndarray, actions: np.ndarray, ignored: np.ndarray | None, fault: str) -> None:
    if ignored is not None:
        wrong = wrong & ~ignored
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"The action of environment {row} {fault}: {actions[row]}.")


def to_tensors(observation: Any, space: spaces.Space, batch: int, device: torch.device | str) -> Observation:
    """Observations `(B, ...)` of `space` as a world reads them: pictures uint8, the rest float32.

    Raises:
        ValueError: naming the key, for a missing key, a wrong shape, NaN or infinity.
    """
    given = as_dict(observation)
    tensors = {}
    for key, box in as_dict_space(space).items():
        if key not in given:
            raise ValueError(f"The observation lacks {key!r}; it has {', '.join(map(repr, given))}.")
        array = np.asarray(given[key])
        if array.shape != (batch, *box.shape):
            raise ValueError(f"Observation {key!r} has shape {array.shape}, not {(batch, *box.shape)}.")
        if not np.isfinite(array).all():
            raise ValueError(f"Observation {key!r} holds NaN or infinity.")
        tensors[key] = torch.tensor(array, dtype=torch.uint8 if is_image(box) else torch.float32, device=device)
    return tensors


class ObservationConverter:
    """Turns what a world decodes into observations of the real environment's own space, or of a part of it.

    Args:
        space: the real environment's.
        keys: of a Dict space, those wanted; None: all.

    Attributes:
        space: of the observations given; of one key its Box alone.

    Raises:
        ValueError: for keys that the space does not have.
    """

    def __init__(self, space: spaces.Space, keys: Sequence[str] | None = None) -> None:
        self._boxes = as_dict_space(space)
        self.space: spaces.Space = space
        if keys is not None:
            self._boxes = _chosen(self._boxes, keys)
            self.space = spaces.Dict(dict(self._boxes)) if len(self._boxes) > 1 else next(iter(self._boxes.values()))
        self._bounded = {key for key, box in self._boxes.items() if np.isfinite([box.low, box.high]).any()}

    def __call__(self, decoded: Observation) -> Any:
        """Fresh arrays `(B, ...)` of the space's dtypes, clipped to its bounds."""
        arrays = {}
        for key, box in self._boxes.items():
            array = to_array(decoded[key]).reshape(-1, *box.shape)
            if array.dtype != np.uint8:
                array = self._fit(key, box, array)
            arrays[key] = array
        return arrays if isinstance(self.space, spaces.Dict) else next(iter(arrays.values()))

    def _fit(self, key: str, box: spaces.Box, array: np.ndarray) -> np.ndarray:
        if np.issubdtype(box.dtype, np.integer):
            array = np.rint(array)
        if key in self._bounded:
            array = np.clip(array, box.low, box.high)
        return array.astype(box.dtype, copy=False)


def _chosen(boxes: dict[str, spaces.Box], keys: Sequence[str]) -> dict[str, spaces.Box]:
    unknown = [key for key in keys if key not in boxes]
    if isinstance(keys, str) or unknown or not keys:
        raise ValueError(f"keys={keys!r} must be a sequence of some of the observation's keys {tuple(boxes)}.")
    return {key: boxes[key] for key in keys}


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor as an array, which shares memory with nothing."""
    return np.array(tensor.detach().cpu().numpy())


def latent_space(world: World) -> spaces.Box:
    """The space of a world's features: every finite float32."""
    limit = np.finfo(np.float32).max
    return spaces.Box(-limit, limit, (world.feature_size,), np.float32)


def row_of(observation: Any, index: int) -> Any:
    """A copy of row `index` of a batch of observations."""
    if isinstance(observation, dict):
        return {key: np.array(array[index]) for key, array in observation.items()}
    return np.array(observation[index])


def put_rows(observation: Any, mask: np.ndarray, rows: Any) -> None:
    """Overwrite the rows `mask` of a batch of observations, in place."""
    target, source = as_dict(observation), as_dict(rows)
    for key, array in target.items():
        array[mask] = source[key]
