"""Where dreams begin: posterior states of real episodes, which travel with the world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from wmgym.worlds.base import State, index_state, map_state, state_from_dict, state_to_dict

StartPolicy = Literal["episode", "any"]

IS_FIRST = "is_first"


class StartStates:
    """States of a world to begin dreams from.

    Args:
        states: a state of the world with N rows.
        is_first: `(N,)` bool; which of them are first steps of episodes. The others lie mid-episode.

    Raises:
        ValueError: if there are none, or the lengths differ.
    """

    def __init__(self, states: State, is_first: Tensor) -> None:
        if is_first.dim() != 1 or is_first.dtype != torch.bool or not len(is_first):
            raise ValueError(
                f"is_first must be a bool tensor (N,) with N >= 1, not {is_first.dtype} {tuple(is_first.shape)}."
            )
        for name, leaf in state_to_dict(states).items():
            if leaf.dim() == 0 or len(leaf) != len(is_first):
                raise ValueError(
                    f"The leaf {name!r} of the start states has shape {tuple(leaf.shape)}, but is_first says that "
                    f"there are {len(is_first)}."
                )
        self.states = map_state(Tensor.detach, states)
        self.is_first = is_first
        self._first = torch.nonzero(is_first).squeeze(-1)

    def __len__(self) -> int:
        return len(self.is_first)

    def sample(self, uniform: Tensor, policy: StartPolicy) -> Tensor:
        """Indices `(K,)` of starts.

        Args:
            uniform: `(K,)` numbers in [0, 1) that decide.
            policy: `"episode"` draws among first steps of episodes, `"any"` among all.

        Raises:
            ValueError: if `"episode"` is asked for and there is no first step.
        """
        if policy == "any":
            return (uniform * len(self)).long()
        if not len(self._first):
            raise ValueError(
                f"None of the {len(self)} start states is a first step of an episode: use start='any', or save "
                "some that are."
            )
        return self._first[(uniform * len(self._first)).long()]

    def rows(self, indices: Tensor) -> State:
        """The states at `indices` `(K,)`.

        Raises:
            IndexError: if there is no such start.
        """
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"There are {len(self)} start states (0 to {len(self) - 1}), not {indices.tolist()}.")
        return index_state(self.states, indices)

    def to(self, device: torch.device | str) -> StartStates:
        """The same on another device."""
        return StartStates(map_state(lambda leaf: leaf.to(device), self.states), self.is_first.to(device))

    def to_tensors(self) -> dict[str, Tensor]:
        """The leaves and `is_first` by name, for files."""
        return {**state_to_dict(self.states), IS_FIRST: self.is_first}

    @classmethod
    def from_tensors(cls, like: State, tensors: Mapping[str, Tensor]) -> StartStates:
        """The inverse of `to_tensors`.

        Args:
            like: any state of the world, for its kind and shapes.
            tensors: by name.

        Raises:
            ValueError: naming the tensor that is missing, unknown or of the wrong shape.
        """
        leaves = state_to_dict(like)
        for name in [*leaves, IS_FIRST]:
            if name not in tensors:
                raise ValueError(f"The start states lack the tensor {name!r}.")
        for name, tensor in tensors.items():
            if name == IS_FIRST:
                continue
            if name not in leaves:
                raise ValueError(f"The start states have the unknown tensor {name!r}.")
            if tensor.shape[1:] != leaves[name].shape[1:]:
                raise ValueError(
                    f"The start states' tensor {name!r} has shape {tuple(tensor.shape)}, but the world's states have "
                    f"(N, {', '.join(map(str, leaves[name].shape[1:]))})."
                )
        return cls(state_from_dict(like, {name: tensors[name] for name in leaves}), tensors[IS_FIRST])
