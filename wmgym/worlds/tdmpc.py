"""TOLD, the world of TD-MPC and TD-MPC2: a latent learns from what it has to foretell, not from what it could draw.

    z_t = h(o_t)                    encoder; TD-MPC2's latent is made of probabilities (SimNorm)
    z_t = d(z_{t-1}, a_t)           dynamics, without chance
    r_t ~ R(z_{t-1}, a_t)           two-hot over the symlog of rewards (TD-MPC: squared error)
    end_t ~ p(. | z_t)
    features = z_t

It filters nothing: an observation says all that there is to know. A decoder learns beside it, from latents that do not
learn from it, so that its dreams can be looked at and lived in (`Dream-v0`); the papers have none.

Sources: Hansen et al. 2022, "Temporal Difference Learning for Model Predictive Control" (TD-MPC), and 2024, "TD-MPC2:
Scalable, Robust World Models for Continuous Control", section 3.1, with their code.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from wmgym.choices import check_literals
from wmgym.nets.coders import CoderConfig, Decoder, Encoder
from wmgym.nets.distributions import SymlogTwoHot
from wmgym.nets.mlp import MLP, Activation, Init, Norm, linear
from wmgym.nets.simnorm import SimNorm
from wmgym.random import Noise
from wmgym.spaces import action_size, as_dict_space
from wmgym.worlds.base import Observation, Outcome, SequenceBatch, World, WorldLoss


class TOLDState(NamedTuple):
    """State of a `TOLD`: its `latent` `(B, Z)`."""

    latent: Tensor


@dataclass(frozen=True)
class TOLDConfig:
    """Everything that fixes a `TOLD`'s shape and objective. The defaults are TD-MPC2's of five million parameters."""

    latent: int = 512
    """Z, a multiple of `group`."""
    group: int = 8
    """V, numbers in each group of SimNorm; 0: the latent is not normalised (TD-MPC)."""
    units: int = 512
    """Width of the dynamics and of the heads, of two hidden layers each."""
    act: Activation = "mish"
    norm: Norm = "layer"
    """Of dynamics and heads."""
    init: Init = "small"
    reward: Literal["twohot", "mse"] = "twohot"
    bins: int = 101
    limit: float = 10.0
    """Rewards, after symlog, are classified over `bins` bins from `-limit` to `limit`."""
    encoder: CoderConfig = field(
        default_factory=lambda: CoderConfig(units=256, layers=1, act="mish", init="small", symlog=False)
    )
    decoder: CoderConfig = field(default_factory=lambda: CoderConfig(units=256, layers=2))
    slow_targets: bool = False
    """Whether what is foretold is compared with a slow copy of the encoder (TD-MPC), instead of itself."""
    ends: bool = True
    """Whether it predicts ends; without, the world never ends."""
    rho: float = 0.5
    """Factor on the losses of each further step."""
    consistency_scale: float = 20.0
    reward_scale: float = 0.1
    end_scale: float = 1.0

    def __post_init__(self) -> None:
        check_literals(self)
        if self.group and self.latent % self.group:
            raise ValueError(f"latent={self.latent} must be a multiple of group={self.group}.")


class TOLD(World):
    """The world of TD-MPC and TD-MPC2 (task-oriented latent dynamics).

    Args:
        observation_space: `Box` or `Dict` of boxes, pictures as uint8 HWC.
        action_space: `Box` or `Discrete`.
        config: shape and objective.

    Example:
        >>> import numpy as np
        >>> from wmgym.random import TorchNoise
        >>> world = TOLD(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), TOLDConfig(latent=16, units=8))
        >>> world.imagine(world.initial(6), torch.zeros(6, 2), TorchNoise()).state.latent.shape
        torch.Size([6, 16])
    """

    observation_space: spaces.Dict | spaces.Box
    action_space: spaces.Box | spaces.Discrete

    def __init__(
        self,
        observation_space: spaces.Dict | spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        config: TOLDConfig | None = None,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.config = c = config or TOLDConfig()
        self.feature_size = c.latent
        boxes = as_dict_space(observation_space)
        self.encoder = Encoder(boxes, c.encoder)
        self.project = _to_latent(self.encoder.out_size, c)
        own = nn.ModuleList([self.encoder, self.project])
        self.slow_encoder = copy.deepcopy(own).requires_grad_(False) if c.slow_targets else None
        joined = c.latent + action_size(action_space)
        self.dynamics = nn.Sequential(_mlp(joined, None, c), _to_latent(c.units, c))
        self.two_hot = SymlogTwoHot(c.bins, c.limit)
        self.reward_head = _mlp(joined, c.bins if c.reward == "twohot" else 1, c, out_scale=0.0)
        self.end_head = _mlp(c.latent, 1, c) if c.ends else None
        self.decoder = Decoder(c.latent, boxes, c.decoder)

    # -- one step ---------------------------------------------------------------------------------------------

    def initial(self, batch_size: int) -> TOLDState:
        """Zeros, `(batch_size, Z)`: no latent of an observation is so."""
        return TOLDState(torch.zeros(batch_size, self.config.latent, device=self.device))

    def encode(self, observation: Observation) -> TOLDState:
        """What observations `(..., ...)` are in the latent space, `(..., Z)`."""
        return TOLDState(self.project(self.encoder(observation)))

    def observe(
        self, state: TOLDState, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> TOLDState:
        """See `World.observe`; only the observation is read."""
        return self.encode(observation)

    def transition(self, state: TOLDState, action: Tensor, noise: Noise, temperature: float = 1.0) -> TOLDState:
        """See `World.transition`; there is no chance in it, and so nothing for the temperature to change."""
        return TOLDState(self.dynamics(torch.cat([state.latent, action], -1)))

    def outcome(self, previous: TOLDState, action: Tensor, state: TOLDState) -> Outcome:
        """See `World.outcome`; the reward is of the step, the end of where it leads."""
        out = self.reward_head(torch.cat([previous.latent, action], -1))
        reward = self.two_hot.mean(out) if self.config.reward == "twohot" else out.squeeze(-1)
        if self.end_head is None:
            return Outcome(reward, torch.ones_like(reward))
        return Outcome(reward, 1 - torch.sigmoid(self.end_head(state.latent).squeeze(-1)))

    def features(self, state: TOLDState) -> Tensor:
        """The latent, `(..., Z)`."""
        return state.latent

    def decode(self, features: Tensor) -> Observation:
        """See `World.decode`."""
        return self.decoder.observation(features)

    def decode_keys(self, features: Tensor, keys: Collection[str]) -> Observation:
        """See `World.decode_keys`."""
        return self.decoder.observation(features, keys)

    # -- learning ---------------------------------------------------------------------------------------------

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        """The objective on `(T, B)` sequences, from their first latents on in the open.

            sum_t rho^t (20 |z_t - sg(h(o_t))|^2 / Z + 0.1 CE(r_t) + BCE(end_t)) / (T - 1)

        Its states are the latents that were foretold, `(T, B, Z)`; where an episode begins, that of its observation.

        Source: equation 3, without the values, which are the agent's.
        """
        c = self.config
        seen = self.encode(batch.observation).latent
        foretold = self._foretell(seen, batch)
        weight = self.weights(batch)
        out = self.reward_head(torch.cat([foretold[:-1], batch.action[1:]], -1))
        errors = {
            "consistency_loss": c.consistency_scale * (foretold - self._targets(seen, batch)).square().mean(-1)[1:],
            "reward_loss": c.reward_scale * self._reward_error(out, batch.reward[1:]),
        }
        if self.end_head is not None:
            logit, ended = self.end_head(foretold[1:]).squeeze(-1), batch.is_terminal[1:].float()
            errors["end_loss"] = c.end_scale * F.binary_cross_entropy_with_logits(logit, ended, reduction="none")
        parts = {name: (weight * error).sum() for name, error in errors.items()}
        drawn = self.decoder.loss(seen.detach(), batch.observation)
        parts |= {f"{key}_loss": error.mean() for key, error in drawn.items()}
        total = torch.stack(list(parts.values())).sum()
        return WorldLoss(total, {name: part.detach() for name, part in parts.items()}, TOLDState(foretold))

    def _targets(self, seen: Tensor, batch: SequenceBatch) -> Tensor:
        """What `foretold` is compared with, `(T, B, Z)`, no gradient."""
        if self.slow_encoder is None:
            return seen.detach()
        encoder, project = self.slow_encoder
        with torch.no_grad():
            target: Tensor = project(encoder(batch.observation))
        return target

    def _reward_error(self, out: Tensor, reward: Tensor) -> Tensor:
        if self.config.reward == "twohot":
            return self.two_hot.loss(out, reward)
        return (out.squeeze(-1) - reward).square()

    def follow(self, rate: float) -> None:
        """Let the slow encoder, where there is one, follow by `rate`."""
        if self.slow_encoder is not None:
            polyak_update(
                [*self.encoder.parameters(), *self.project.parameters()], self.slow_encoder.parameters(), rate
            )

    def weights(self, batch: SequenceBatch) -> Tensor:
        """What each step but the first counts, `(T - 1, B)`: `rho^t / (T - 1)`, shared out; none across episodes."""
        steps, sequences = batch.reward.shape
        powers = self.config.rho ** torch.arange(steps - 1, device=batch.reward.device)
        return powers[:, None] * ~batch.is_first[1:] / ((steps - 1) * sequences)

    def _foretell(self, seen: Tensor, batch: SequenceBatch) -> Tensor:
        """Latents `(T, B, Z)` in the open from the first of `seen` on; each new episode begins as it was seen."""
        latent, foretold = seen[0], [seen[0]]
        for t in range(1, len(seen)):
            latent = self.dynamics(torch.cat([latent, batch.action[t]], -1))
            latent = torch.where(batch.is_first[t, :, None], seen[t], latent)
            foretold.append(latent)
        return torch.stack(foretold)


def _mlp(in_size: int, out_size: int | None, config: TOLDConfig, out_scale: float = 1.0) -> MLP:
    return MLP(in_size, out_size, 2, config.units, config.act, config.norm, config.init, out_scale)


def _to_latent(in_size: int, config: TOLDConfig) -> nn.Sequential:
    out = linear(in_size, config.latent, config.init)
    if not config.group:
        return nn.Sequential(out)
    return nn.Sequential(out, nn.LayerNorm(config.latent, eps=1e-3), SimNorm(config.group))
