"""Where dreams begin: posterior states of real episodes, which travel with the world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from wmgym.random import ModeNoise
from wmgym.replay import SequenceReplay
from wmgym.replay_streams import drawing
from wmgym.spaces import action_size
from wmgym.worlds.base import (
    Observation,
    SequenceBatch,
    State,
    World,
    concat_states,
    index_state,
    map_state,
    state_from_dict,
    state_to_dict,
)

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

    @classmethod
    @torch.no_grad()
    def from_replay(
        cls, world: World, replay: SequenceReplay, count: int = 256, length: int = 32
    ) -> StartStates | None:
        """Posterior states of real episodes: `count` first steps at most, and as many that lie mid-episode.

        Those mid-episode are what filtering `length` real steps comes to. The replay samples on as if it had not been
        asked. None if it holds nothing.

        Args:
            world: that filters.
            replay: the real episodes.
            count: states of either kind.
            length: steps filtered; fewer where no sequence is so long.
        """
        noise = ModeNoise(world.device)
        first = _observe_first(world, replay.first_steps(count, world.device), noise)
        parts = [first]
        if length := next((steps for steps in range(length, 1, -1) if replay.can_sample(steps)), 0):
            with drawing(replay):
                parts.append(_filter_last(world, replay.sample(count, length, device=world.device), noise))
        states = concat_states(parts)
        is_first = torch.arange(len(states[0]), device=world.device) < len(first[0])
        return cls(states, is_first) if len(is_first) else None

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


def _observe_first(world: World, observation: Observation, noise: ModeNoise) -> State:
    count = len(next(iter(observation.values())))
    action = torch.zeros(count, action_size(world.action_space), device=world.device)
    is_first = torch.ones(count, dtype=torch.bool, device=world.device)
    return world.observe(world.initial(count), action, observation, is_first, noise)


def _filter_last(world: World, batch: SequenceBatch, noise: ModeNoise) -> State:
    """The posterior after each sequence; those that end in a first or last step of an episode are left out."""
    state = world.initial(batch.shape[1])
    for t in range(batch.shape[0]):
        observation = {key: value[t] for key, value in batch.observation.items()}
        state = world.observe(state, batch.action[t], observation, batch.is_first[t], noise)
    return index_state(state, ~(batch.is_first[-1] | batch.is_terminal[-1]))
