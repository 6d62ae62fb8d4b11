"""Deep Markov models with a history: the two recurrent variants of a state-space model.

    history in the observation model (`DMMObservation`)      history in the dynamics (`DMMDynamics`)

    s_t ~ p(s_t | s_{t-1}, a_t)                              s_t ~ p(s_t | h_{t-1}, a_t)
    h_t = f(h_{t-1}, s_t)                                    h_t = f(h_{t-1}, s_t)
    o_t, r_t ~ p(. | h_t)                                    o_t, r_t ~ p(. | h_t)

In the first the draws follow one another as a Markov chain, and only what is seen of them has a memory; in the second
the draws themselves depend on all that came before. Both decode h_t alone, which has seen s_t: the reverse of the
RSSM, whose h_t is made before s_t is drawn.

Source: Krishnan et al. 2017 (deep Markov models); the two variants as they are drawn in surveys of world models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.nets.cells import DenseCore, MemorylessCore
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.rssm import RSSM

__all__ = ["DMMDynamics", "DMMObservation", "RSSMConfig"]


class DMMState(NamedTuple):
    """State of a deep Markov model: `deter` `(B, D)` is what its prior reads, `memory` `(B, D)` the history."""

    deter: Tensor
    stoch: Tensor
    memory: Tensor


class _DMM(RSSM):
    """What the two variants share: a memory that is brought up to date with every draw."""

    def __init__(
        self,
        observation_space: spaces.Dict | spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        config: RSSMConfig | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, config)
        c = self.config
        self.history = DenseCore(self.stoch_size, 0, c.deter, c.hidden, c.cell == "layernorm", c.act, c.norm, c.init)

    def _feature_size(self) -> int:
        return self.config.deter

    def _deter_features(self) -> None:
        return None

    def initial(self, batch_size: int) -> DMMState:  # type: ignore[override]
        """Zeros, `(batch_size, ...)`."""
        deter, stoch = self.config.deter, self.stoch_size
        zeros = torch.zeros(batch_size, 2 * deter + stoch, device=self.device)
        return DMMState(*zeros.split([deter, stoch, deter], -1))

    def features(self, state: DMMState) -> Tensor:  # type: ignore[override]
        """`memory`, `(..., feature_size)`."""
        return state.memory

    def _join(self, previous: DMMState, deter: Tensor, stoch: Tensor) -> DMMState:  # type: ignore[override]
        bias = self.history.project(stoch[..., :0])  # a history without actions
        return DMMState(deter, stoch, self.history(previous.memory, stoch, bias))


class DMMObservation(_DMM):
    """A deep Markov model with its history in the observation model; configured as an `RSSM`.

    Example:
        >>> import numpy as np
        >>> world = DMMObservation(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> world.features(world.initial(4)).shape
        torch.Size([4, 200])
    """

    def _build_core(self, action: int) -> MemorylessCore:
        c = self.config
        return MemorylessCore(self.stoch_size, action, c.deter, c.act, c.norm, c.init)

    def _advance(self, state: DMMState, action: Tensor) -> Tensor:  # type: ignore[override]
        return self.core(state.stoch, action)


class DMMDynamics(_DMM):
    """A deep Markov model with its history in the dynamics; configured as an `RSSM`.

    Example:
        >>> import numpy as np
        >>> world = DMMDynamics(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> world.features(world.initial(4)).shape
        torch.Size([4, 200])
    """

    def _build_core(self, action: int) -> MemorylessCore:
        c = self.config
        return MemorylessCore(c.deter, action, c.deter, c.act, c.norm, c.init)

    def _advance(self, state: DMMState, action: Tensor) -> Tensor:  # type: ignore[override]
        return self.core(state.memory, action)
