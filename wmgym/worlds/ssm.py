"""The state-space model: every state is drawn, nothing is carried past the draw (PlaNet, figure 2b).

    x_t = act(W [s_{t-1}, a_t])
    s_t ~ p(s_t | x_t)                prior
    s_t ~ q(s_t | x_t, e(o_t))        posterior
    o_t, r_t ~ p(. | s_t)             `features` = s_t

`x_t` stands where the RSSM has its recurrent state, but the next step never reads it. The official code gives the
posterior the prior's mean and deviation; here it reads the layer that these are computed from.

Source: Hafner et al. 2019 (PlaNet), section 3.
"""

from __future__ import annotations

from torch import Tensor

from wmgym.nets.cells import MemorylessCore
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.rssm import RSSM, RSSMState

__all__ = ["SSM", "RSSMConfig"]


class SSM(RSSM):
    """A state-space model: an `RSSM` without its deterministic path; configured alike (`cell` has no meaning).

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> world = SSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), RSSMConfig(stoch=30))
        >>> world.features(world.initial(4)).shape
        torch.Size([4, 30])
    """

    def _build_core(self, action: int) -> MemorylessCore:
        c = self.config
        return MemorylessCore(self.stoch_size, action, c.deter, c.act, c.norm, c.init)

    def _feature_size(self) -> int:
        return self.stoch_size

    def _deter_features(self) -> None:
        return None

    def _advance(self, state: RSSMState, action: Tensor) -> Tensor:
        return self.core(state.stoch, action)

    def features(self, state: RSSMState) -> Tensor:
        """`stoch`, `(..., feature_size)`."""
        return state.stoch
