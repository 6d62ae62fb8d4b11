"""The recurrent network: an RSSM in which nothing is drawn (PlaNet, figure 2a).

    h_t = f(h_{t-1}, s_{t-1}, a_t)
    s_t = m_p(h_t)                    predicted
    s_t = m_q(h_t, e(o_t))            once o_t is seen
    o_t, r_t ~ p(. | h_t, s_t)

The divergence is half the squared distance of the two: that of Gaussians of deviation 1. It has no nats to give away,
so `free_nats` does not apply. The official code's deterministic model (`mean_only`) has no divergence at all, so that
nothing trains m_p: `kl_scale=0` here.

Source: Hafner et al. 2019 (PlaNet), section 3.
"""

from __future__ import annotations

from dataclasses import replace

from gymnasium import spaces
from torch import Tensor

from wmgym.nets.distributions import Point
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.rssm import RSSM

__all__ = ["RNN", "RSSMConfig"]


class RNN(RSSM):
    """A deterministic recurrent world: an `RSSM` without chance; configured alike (`latent` has no meaning).

    Example:
        >>> import numpy as np
        >>> from wmgym.random import TorchNoise
        >>> import torch
        >>> world = RNN(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> one, two = (world.transition(world.initial(1), torch.ones(1, 2), TorchNoise()) for _ in range(2))
        >>> torch.equal(one.stoch, two.stoch)
        True
    """

    def __init__(
        self,
        observation_space: spaces.Dict | spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        config: RSSMConfig | None = None,
    ) -> None:
        config = replace(config or RSSMConfig(), latent="gaussian", free_nats=0.0)
        super().__init__(observation_space, action_space, config)

    def _stats_size(self) -> int:
        return self.config.stoch

    def _latent(self, stats: Tensor) -> Point:
        return Point(stats)
