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

    def __call__(self, actions: Any, ignored: Tensor | None = None) -> Tensor:
        """Actions `(B, ...)`, an array or a tensor, as `(B, A)` float32; beyond a Box's bounds they are clipped.

        Args:
            actions: one action a row.
            ignored: `(B,)` bool; rows that may hold anything.

        Raises:
            ValueError: naming the row, for a wrong shape or dtype, NaN or infinity, or a choice that there is not.
        """
        if not isinstance(actions, Tensor):
            actions = self._as_tensor(np.asarray(actions))
        if actions.dim() == 0 or actions.shape[1:] != self.space.shape:
            raise ValueError(
                f"Actions have shape {tuple(actions.shape)}; a batch of {self.space} has shape "
                f"{('num_envs', *(self.space.shape or ()))}."
            )
        actions = actions.to(self.device)
        if isinstance(self.space, spaces.Discrete):
            return self._one_hot(self.space, actions, ignored)
        return self._scaled(actions, ignored)

    def _as_tensor(self, actions: np.ndarray) -> Tensor:
        if actions.dtype.kind not in "biuf":
            raise ValueError(f"Actions of {self.space} are numbers, not {actions.dtype}.")
        whole = np.issubdtype(actions.dtype, np.integer)
        # A copy: the caller may write on into the array.
        return torch.tensor(actions, dtype=torch.int64 if whole else None)

    def _one_hot(self, space: spaces.Discrete, actions: Tensor, ignored: Tensor | None) -> Tensor:
        if actions.is_floating_point() or actions.dtype == torch.bool:
            raise ValueError(f"Actions of {space} are integers, not {str(actions.dtype).removeprefix('torch.')}.")
        choice = actions.long() - int(space.start)
        _refuse((choice < 0) | (choice >= int(space.n)), actions, ignored, f"is not in {space}")
        return nn.functional.one_hot(choice.clamp(0, int(space.n) - 1), int(space.n)).float()

    def _scaled(self, actions: Tensor, ignored: Tensor | None) -> Tensor:
        _refuse(~actions.isfinite().all(-1), actions, ignored, "is not finite")
        return ((actions.float() - self._centre) / self._reach).clamp(-1.0, 1.0)


def _refuse(wrong: Tensor, actions: Tensor, ignored: Tensor | None, fault: str) -> None:
    if ignored is not None:
        wrong = wrong & ~ignored
    if wrong.any():
        row = int(wrong.int().argmax())
        raise ValueError(f"The action of environment {row} {fault}: {actions[row].tolist()}.")


def to_tensors(observation: Any, space: spaces.Space, batch: int, device: torch.device | str) -> Observation:
    """Observations `(B, ...)` of `space` as a world reads them: pictures uint8, the rest float32.

    Raises:
        ValueError: naming the key, for a missing key, a wrong shape, NaN or infinity, or pictures that are not uint8.
    """
    given = as_dict(observation)
    tensors = {}
    for key, box in as_dict_space(space).items():
        if key not in given:
            raise ValueError(f"The observation lacks {key!r}; it has {', '.join(map(repr, given))}.")
        array = np.asarray(given[key])
        if array.shape != (batch, *box.shape):
            raise ValueError(f"Observation {key!r} has shape {array.shape}, not {(batch, *box.shape)}.")
        if is_image(box) and array.dtype != np.uint8:
            raise ValueError(f"The picture {key!r} has dtype {array.dtype}: pictures are uint8, from 0 to 255.")
        if not np.isfinite(array).all():
            raise ValueError(f"Observation {key!r} holds NaN or infinity.")
        tensors[key] = torch.tensor(array, dtype=torch.uint8 if is_image(box) else torch.float32, device=device)
    return tensors


class ObservationConverter:
    """Turns what a world decodes into observations of the real environment's own space, or of a part of it.

    Args:
        space: the real environment's.
        keys: of a Dict space, those wanted; None: all.
        device: where the decoded tensors are.

    Attributes:
        space: of the observations given; of one key its Box alone.

    Raises:
        ValueError: for keys that the space does not have.
    """

    def __init__(
        self, space: spaces.Space, keys: Sequence[str] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._boxes = as_dict_space(space)
        self.space: spaces.Space = space
        if keys is not None:
            self._boxes = _chosen(self._boxes, keys)
            self.space = spaces.Dict(dict(self._boxes)) if len(self._boxes) > 1 else next(iter(self._boxes.values()))
        self._dtypes = {key: torch.from_numpy(np.empty(0, box.dtype)).dtype for key, box in self._boxes.items()}
        self._bounds = {
            key: tuple(torch.as_tensor(bound, dtype=torch.float64, device=device) for bound in (box.low, box.high))
            for key, box in self._boxes.items()
            if np.isfinite([box.low, box.high]).any() and not is_image(box)
        }

    def __call__(self, decoded: Observation) -> Any:
        """Tensors `(B, ...)` of the space's dtypes, clipped to its bounds."""
        tensors = {}
        for key, box in self._boxes.items():
            tensor = decoded[key].detach().reshape(-1, *box.shape)
            tensors[key] = tensor if is_image(box) else self._fit(key, tensor)
        return tensors if isinstance(self.space, spaces.Dict) else next(iter(tensors.values()))

    def _fit(self, key: str, tensor: Tensor) -> Tensor:
        dtype = self._dtypes[key]
        tensor = tensor.to(dtype) if dtype.is_floating_point else tensor.double().round()
        if key in self._bounds:
            low, high = self._bounds[key]
            tensor = tensor.clamp(low.to(tensor.dtype), high.to(tensor.dtype))
        return tensor.to(dtype)


def _chosen(boxes: dict[str, spaces.Box], keys: Sequence[str]) -> dict[str, spaces.Box]:
    unknown = [key for key in keys if key not in boxes]
    if isinstance(keys, str) or unknown or not keys:
        raise ValueError(f"keys={keys!r} must be a sequence of some of the observation's keys {tuple(boxes)}.")
    return {key: boxes[key] for key in keys}


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor as an array, which shares memory with nothing."""
    return np.array(tensor.detach().cpu().numpy())


def to_arrays(observation: Any) -> Any:
    """Observations as arrays that share memory with nothing."""
    if isinstance(observation, dict):
        return {key: to_array(tensor) for key, tensor in observation.items()}
    return to_array(observation)


def latent_space(world: World) -> spaces.Box:
    """The space of a world's features: every finite float32."""
    limit = np.finfo(np.float32).max
    return spaces.Box(-limit, limit, (world.feature_size,), np.float32)


def row_of(observation: Any, index: int) -> Any:
    """Row `index` of a batch of observations: of arrays a copy, of tensors a view."""
    if isinstance(observation, dict):
        return {key: row_of(batch, index) for key, batch in observation.items()}
    return observation[index] if isinstance(observation, Tensor) else np.array(observation[index])


def put_rows(observation: Any, mask: Tensor, rows: Any) -> Any:
    """A batch of observations (tensors) with the rows `mask` `(B,)` replaced by `rows`."""
    if isinstance(observation, dict):
        return {key: put_rows(tensor, mask, rows[key]) for key, tensor in observation.items()}
    bits = _AS_BITS.get(observation.dtype, observation.dtype)
    replaced = observation.view(bits).clone()
    replaced[mask] = rows.view(bits)
    return replaced.view(observation.dtype)


_AS_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""What torch cannot index as it is."""
