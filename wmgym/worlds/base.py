"""What a world is: something that can be observed into and imagined forward.

Time, in every sequence of this project (replay, losses, dreams), stands like this::

    t                 0            1            2            3
    observation       o0           o1           o2           o3        seen at t
    reward            0            r1           r2           r3        received on reaching o_t
    is_first          True         False        False        False     o_t begins an episode
    is_terminal       False        False        False        True      the episode truly ends at o_t
    action            0            a1           a2           a3        the action that LED to o_t
    state             s0 --a1-->   s1 --a2-->   s2 --a3-->   s3

`action[t]` is what was done between `o_{t-1}` and `o_t`; at `is_first` it and the reward are zero. A truncated
episode ends without `is_terminal`. Sequences are time-first, `(T, B, ...)`; single steps are `(B, ...)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.random import Noise

State = Any
"""A world's own NamedTuple of tensors, batch first. Everyone else only indexes, stacks and masks it."""

StateT = TypeVar("StateT")
Observation = dict[str, Tensor]
"""Observations by key (see `wmgym.spaces.as_dict`): pictures uint8 (..., H, W, C), vectors float32 (..., N)."""


class Outcome(NamedTuple):
    """What a step brings, as a world expects it."""

    reward: Tensor  # (B,) expected reward
    continues: Tensor  # (B,) probability that the episode goes on


class Imagined(NamedTuple):
    """One predicted step: the state reached and what reaching it brings."""

    state: State
    reward: Tensor  # (B,)
    continues: Tensor  # (B,)


@dataclass
class SequenceBatch:
    """Sequences from replay, time first; the alignment is the diagram at the top of this file.

    Attributes:
        observation: by key, `(T, B, ...)`; pictures uint8 HWC, vectors float32.
        action: `(T, B, A)` float32, scaled to [-1, 1], or one-hot for discrete actions.
        reward: `(T, B)` float32.
        is_first: `(T, B)` bool.
        is_terminal: `(T, B)` bool.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_terminal: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(T, B)`."""
        return self.reward.shape[0], self.reward.shape[1]


@dataclass
class WorldLoss:
    """What a world's loss returns.

    Attributes:
        total: scalar to minimise.
        parts: named means, for the log.
        states: posterior states `(T, B, ...)`, still attached to the graph.
    """

    total: Tensor
    parts: dict[str, Tensor]
    states: State
    metrics: dict[str, Tensor] = field(default_factory=dict)


class World(nn.Module, ABC):
    """The interface that every world model follows.

    A subclass implements `initial`, `observe`, `transition`, `outcome`, `features`, `decode` and `loss`; being
    imagined, opened as `Dream-v0`, planned in and trained in follows from these.

    Attributes:
        observation_space: of the real environment, as the agent sees it (pictures uint8 HWC).
        action_space: `Box` (scaled to [-1, 1] before it reaches the world) or `Discrete` (one-hot).
        config: frozen dataclass, JSON-serialisable, enough to rebuild the module.
    """

    observation_space: spaces.Dict | spaces.Box
    action_space: spaces.Box | spaces.Discrete
    config: Any
    feature_size: int

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """The state before anything was seen, `(batch_size, ...)`."""

    @abstractmethod
    def observe(self, state: State, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise) -> State:
        """One filter step, the posterior.

        Args:
            state: `(B, ...)` at the previous step.
            action: `(B, A)` float32 that led to `observation`.
            observation: by key, `(B, ...)`.
            is_first: `(B,)` bool; where True, state and action are reset before the step.
            noise: source of the draws.
        """

    @abstractmethod
    def transition(self, state: State, action: Tensor, noise: Noise, temperature: float = 1.0) -> State:
        """One predicted step, the prior: the state that `action` `(B, A)` leads to."""

    @abstractmethod
    def outcome(self, previous: State, action: Tensor, state: State) -> Outcome:
        """Reward and continuation of the step from `previous` by `action` to `state`; any leading dimensions."""

    @abstractmethod
    def features(self, state: State) -> Tensor:
        """What heads and policies read, `(..., feature_size)` float32; any leading dimensions."""

    @abstractmethod
    def decode(self, features: Tensor) -> Observation:
        """Expected observations, with the keys and dtypes of the space; any leading dimensions."""

    @abstractmethod
    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        """The objective on one batch of sequences."""

    def decode_keys(self, features: Tensor, keys: Collection[str]) -> Observation:
        """Some of what `decode` gives; a world whose decoder can leave the others out overrides it."""
        decoded = self.decode(features)
        return {key: decoded[key] for key in keys}

    @property
    def has_ensemble(self) -> bool:
        """Whether `disagreement` can be asked for: a world keeps the members of its ensemble in `ensemble`."""
        return len(getattr(self, "ensemble", ())) > 0

    def disagreement(self, state: State, action: Tensor) -> Tensor:
        """How far the predictions of an ensemble are apart about the step by `action` `(B, A)`, `(B,)`.

        Raises:
            ValueError: if the world has no ensemble.
        """
        raise ValueError(f"This {type(self).__name__} has no ensemble that could disagree.")

    def imagine(self, state: State, action: Tensor, noise: Noise, temperature: float = 1.0) -> Imagined:
        """One predicted step with its outcome: `transition`, then `outcome`."""
        reached = self.transition(state, action, noise, temperature)
        return Imagined(reached, *self.outcome(state, action, reached))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


# -- states as opaque trees -----------------------------------------------------------------------------------


def map_state(function: Callable[..., Tensor], *states: StateT) -> StateT:
    """`function` applied leaf by leaf to one or more states of the same kind."""
    first: Any = states[0]
    return type(first)(*(function(*leaves) for leaves in zip(*states, strict=True)))


def index_state(state: StateT, index: Any) -> StateT:
    """The rows `index` of every leaf (an integer array, slice or mask over the leading dimension)."""
    return map_state(lambda leaf: leaf[index], state)


def stack_states(states: list[StateT]) -> StateT:
    """A list of T states as one state with leading dimension T."""
    return map_state(lambda *leaves: torch.stack(leaves), *states)


def concat_states(states: list[StateT]) -> StateT:
    """States joined along their leading dimension."""
    return map_state(lambda *leaves: torch.cat(leaves), *states)


def flatten_state(state: StateT) -> StateT:
    """`(T, B, ...)` leaves as `(T * B, ...)`."""
    return map_state(lambda leaf: leaf.flatten(0, 1), state)


def detach_state(state: StateT) -> StateT:
    """The state cut off from the graph."""
    return map_state(Tensor.detach, state)


def where_state(mask: Tensor, yes: StateT, no: StateT) -> StateT:
    """Rows of `yes` where `mask` `(B,)` is True, of `no` elsewhere."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.dim() - mask.dim())), a, b)

    return map_state(pick, yes, no)


def state_to_dict(state: State) -> dict[str, Tensor]:
    """The leaves by name, for files."""
    return dict(state._asdict())


def state_from_dict(like: StateT, leaves: Mapping[str, Tensor]) -> StateT:
    """The inverse of `state_to_dict`, for a state of the kind of `like`."""
    return type(like)(**leaves)
