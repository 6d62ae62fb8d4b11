"""The transformer state-space model: an RSSM whose memory is attention over what was drawn and done.

    s_t ~ q(s_t | e(o_t))                              posterior, from the observation alone: all steps at once
    h_t = transformer([s_0, a_1], ..., [s_{t-1}, a_t]) of the last L of these in the episode; all layers' outputs
    s_t ~ p(s_t | h_t)                                 prior
    o_t, r_t, c_t ~ p(. | h_t, s_t)                    decoder and heads over `features` = [h_t, s_t]

Nothing in its training waits for the step before; a dream carries the keys and values of L steps, and costs one token a
step.

Source: Chen et al. 2022, "TransDreamer: Reinforcement Learning with Transformer World Models". There positions are told
by sines, and a dream reads all of its past again at every step; here the distance between two steps is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.nets.cells import MemorylessCore
from wmgym.nets.distributions import Latent
from wmgym.nets.mlp import MLP
from wmgym.nets.transformer import Context, Transformer
from wmgym.random import Noise
from wmgym.worlds.base import Observation, SequenceBatch
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.rssm import RSSM


class TSSMState(NamedTuple):
    """State of a `TSSM`: `deter` and `stoch` as an RSSM's, and the context of the next step (`Context`)."""

    deter: Tensor
    stoch: Tensor
    keys: Tensor
    values: Tensor
    known: Tensor


@dataclass(frozen=True)
class TSSMConfig(RSSMConfig):
    """An RSSM's shape and objective (`cell` and `blocks` have no meaning), and its transformer's."""

    layers: int = 2
    heads: int = 4
    context: int = 16
    """L, how many steps it remembers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deter % (self.layers * self.heads):
            raise ValueError(
                f"deter={self.deter}, the outputs of all layers side by side, must be a multiple of "
                f"layers * heads = {self.layers * self.heads}."
            )
        if self.context < 1:
            raise ValueError(f"context must be 1 or more, not {self.context}.")


class TransformerCore(nn.Module):
    """From draws and actions to `deter`: a token for each step, then the transformer.

    Args:
        stoch: width of the flattened stochastic state.
        action: width of the action.
        config: the world's.
    """

    def __init__(self, stoch: int, action: int, config: TSSMConfig) -> None:
        super().__init__()
        width = config.deter // config.layers
        self.inputs = MemorylessCore(stoch, action, width, config.act, config.norm, config.init)
        self.transformer = Transformer(width, config.layers, config.heads, config.context, config.act)

    def token(self, stoch: Tensor, action: Tensor) -> Tensor:
        """What a step is to the transformer, `(..., D)`."""
        return self.inputs(stoch, self.inputs.project(action))


class TSSM(RSSM):
    """A transformer state-space model over any observation of vectors and pictures.

    Args:
        observation_space: `Box` or `Dict` of boxes, pictures as uint8 HWC.
        action_space: `Box` or `Discrete`.
        config: shape and objective.

    Example:
        >>> import numpy as np
        >>> from wmgym.random import ModeNoise
        >>> world = TSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> world.imagine(world.initial(4), torch.zeros(4, 2), ModeNoise()).state.known.sum(-1)
        tensor([1., 1., 1., 1.])
    """

    config: TSSMConfig
    core: TransformerCore  # type: ignore[assignment]
    posterior: MLP  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Dict | spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        config: TSSMConfig | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, config or TSSMConfig())

    def _build_core(self, action: int) -> TransformerCore:  # type: ignore[override]
        return TransformerCore(self.stoch_size, action, self.config)

    def _build_posterior(self, stats: int) -> MLP:  # type: ignore[override]
        c = self.config
        return MLP(self.encoder.out_size, stats, c.posterior_layers, c.hidden, c.act, c.norm, c.init)

    # -- one step ---------------------------------------------------------------------------------------------

    def initial(self, batch_size: int) -> TSSMState:  # type: ignore[override]
        """Zeros, and nothing known, `(batch_size, ...)`."""
        zeros = torch.zeros(batch_size, self.config.deter + self.stoch_size, device=self.device)
        deter, stoch = zeros.split([self.config.deter, self.stoch_size], -1)
        return TSSMState(deter, stoch, *self.core.transformer.empty(batch_size))

    def observe(  # type: ignore[override]
        self, state: TSSMState, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> TSSMState:
        """See `World.observe`; the context goes on, the observation alone says what is drawn."""
        keep = (~is_first)[:, None].to(action.dtype)
        state = TSSMState(*(leaf * keep for leaf in state))
        deter, context = self._remember(state, action * keep)
        stats = self.posterior(self.encoder(self._observed(self._seen(observation, noise))))
        return TSSMState(deter, self._latent(stats).sample(noise), *context)

    def transition(  # type: ignore[override]
        self, state: TSSMState, action: Tensor, noise: Noise, temperature: float = 1.0
    ) -> TSSMState:
        """See `RSSM.transition`."""
        deter, context = self._remember(state, action)
        return TSSMState(deter, self._latent(self.prior(deter)).sample(noise, temperature), *context)

    def _remember(self, state: TSSMState, action: Tensor) -> tuple[Tensor, Context]:
        return self.core.transformer.step(self.core.token(state.stoch, action), Context(*state[2:]))

    # -- learning ---------------------------------------------------------------------------------------------

    def _filter(self, batch: SequenceBatch, noise: Noise) -> tuple[TSSMState, Latent]:  # type: ignore[override]
        """Posterior states `(T, B, ...)` and their distributions, with no loop over time."""
        posterior = self._latent(self.posterior(self.encoder(self._observed(batch.observation))))
        stoch = posterior.sample(noise)
        keep = (~batch.is_first)[..., None].to(batch.action.dtype)
        before = torch.cat([torch.zeros_like(stoch[:1]), stoch[:-1]])
        tokens = self.core.token(before * keep, batch.action * keep)
        deter, context = self.core.transformer(tokens, batch.is_first)
        return TSSMState(deter, stoch, *context), posterior
