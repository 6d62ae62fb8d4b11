"""World Models' world: V, a variational autoencoder, sees; M, a recurrent mixture density network, remembers.

    z_t ~ q(z_t | o_t)                          V, `latent`
    h_t, c_t = LSTM([z_{t-1}, a_t], h_{t-1}, c_{t-1})   M, `hidden` and `cell`; zero where an episode begins
    z_t ~ p(z_t | h_t)                          mixtures of Gaussians, with temperature
    r_t, end_t ~ p(. | h_t)                     linear heads
    features = [z_t, h_t], or [z_t, h_t, c_t]

With `layers` (the paper has none) M is deeper: an MLP before the LSTM, and one behind it, the outlook, that reads
`[h_t, z_{t-1}, a_t]` and is what mixtures and heads are told instead of `h_t`.

In this project's time (`wmgym.worlds.base`) `h_t` knows everything up to `o_{t-1}` and the action that led to `o_t`:
it is what the paper calls `h` when it chooses `a_{t+1}` from `[z_t, h_t]`.

Source: Ha & Schmidhuber 2018, "World Models", appendix A, and its code.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.choices import check_literals
from wmgym.nets.coders import CoderConfig
from wmgym.nets.lstm import LSTM
from wmgym.nets.mixtures import GaussianMixtures
from wmgym.nets.mlp import MLP
from wmgym.nets.vae import VAE, Code
from wmgym.random import Noise
from wmgym.spaces import action_size, as_dict_space
from wmgym.worlds.base import Imagined, Observation, Outcome, SequenceBatch, World, WorldLoss


class MDNRNNState(NamedTuple):
    """State of an `MDNRNN`: `latent` `(B, Z)` from V, `hidden` and `cell` `(B, H)` of M."""

    latent: Tensor
    hidden: Tensor
    cell: Tensor


@dataclass(frozen=True)
class MDNRNNConfig:
    """Everything that fixes the shape and the objective of V and M. The defaults are the paper's for CarRacing."""

    latent: int = 32
    """Z; the paper has 32 for CarRacing, 64 for Take Cover."""
    hidden: int = 256
    """H; 256 and 512."""
    components: int = 5
    mixture: Literal["factored", "joint"] = "factored"
    """One mixture for every latent number (the paper's code), or one for all of them together."""
    layers: int = 0
    """Hidden layers of each of the two MLPs around M's memory: how the code of things that move changes is not linear
    in what is known, and is learnt in fewer updates with them. The paper has none."""
    units: int = 512
    """Width of the second of them; the first is as wide as the memory."""
    cell_in_features: bool = False
    """Whether `c` is a feature too, as in the paper's Take Cover."""
    coder: CoderConfig = field(default_factory=lambda: CoderConfig(depth=32, squash=True, symlog=False))
    kl_tolerance: float = 0.5
    """Nats for each latent number below which, all together, the KL of V presses no further."""
    observation_scale: float = 1.0
    """Weight of V's squared error; above 1 small things are worth nats of the code."""
    rarity: float = 0.0
    """Power by which pixels of rare colours count more in it (`wmgym.nets.rarity`); the paper has none."""
    predict_reward: bool = True
    predict_end: bool = True
    """Without: the world never ends (the paper's CarRacing predicts neither)."""
    end_weight: float = 1.0
    """Weight of steps that end in the loss of the end (10 in the paper's Take Cover); predictions are corrected."""
    reward_scale: float = 1.0
    """Weight of the squared error of the reward."""
    end_to_end: bool = False
    """Whether `loss` lets V learn from M too: what M expects takes the place of N(0, 1) as the prior of the codes."""

    def __post_init__(self) -> None:
        check_literals(self)


class MDNRNN(World):
    """V and M as one world: they are fitted one after the other, or together by `loss`.

    Args:
        observation_space: `Box` or `Dict` of boxes, pictures as uint8 HWC.
        action_space: `Box` or `Discrete`.
        config: shape and objective.

    Example:
        >>> import numpy as np
        >>> world = MDNRNN(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), MDNRNNConfig(latent=4, hidden=8))
        >>> from wmgym.random import TorchNoise
        >>> world.imagine(world.initial(6), torch.zeros(6, 2), TorchNoise(), temperature=1.15).state.latent.shape
        torch.Size([6, 4])
    """

    observation_space: spaces.Dict | spaces.Box
    action_space: spaces.Box | spaces.Discrete

    def __init__(
        self,
        observation_space: spaces.Dict | spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        config: MDNRNNConfig | None = None,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.config = c = config or MDNRNNConfig()
        self.feature_size = c.latent + c.hidden * (2 if c.cell_in_features else 1)
        self.groups = c.latent if c.mixture == "factored" else 1
        boxes = as_dict_space(observation_space)
        self.vae = VAE(boxes, c.latent, c.coder, c.kl_tolerance * c.latent, c.observation_scale, c.rarity)
        known = c.latent + action_size(action_space)
        self.before = MLP(known, None, c.layers, c.hidden)
        self.memory = LSTM(self.before.out_size, c.hidden)
        self.outlook = MLP(c.hidden + known, None, c.layers, c.units) if c.layers else None
        told = c.units if c.layers else c.hidden
        self.mixtures = nn.Linear(told, GaussianMixtures.stat_count(c.latent, c.components, self.groups))
        self.reward_head = nn.Linear(told, 1) if c.predict_reward else None
        self.end_head = nn.Linear(told, 1) if c.predict_end else None

    # -- one step ---------------------------------------------------------------------------------------------

    def initial(self, batch_size: int) -> MDNRNNState:
        """Zeros, `(batch_size, ...)`."""
        c = self.config
        zeros = torch.zeros(batch_size, c.latent + 2 * c.hidden, device=self.device)
        return MDNRNNState(*zeros.split([c.latent, c.hidden, c.hidden], -1))

    def observe(
        self, state: MDNRNNState, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> MDNRNNState:
        """See `World.observe`: M goes on with what it knew, V sees what is there now."""
        hidden, cell = self._remember(state, _known(state.latent, action))
        keep = ~is_first[:, None]
        return MDNRNNState(self.vae.encode(observation).sample(noise), hidden * keep, cell * keep)

    def transition(self, state: MDNRNNState, action: Tensor, noise: Noise, temperature: float = 1.0) -> MDNRNNState:
        """See `World.transition`; the temperature is the mixtures' (`GaussianMixtures.sample`)."""
        return self._step(state, action, noise, temperature)[0]

    def outcome(self, previous: MDNRNNState, action: Tensor, state: MDNRNNState) -> Outcome:
        """See `World.outcome`; M predicts both before it is known which latent is reached."""
        return self._outcome(self._outlook(state.hidden, _known(previous.latent, action)))

    def imagine(self, state: MDNRNNState, action: Tensor, noise: Noise, temperature: float = 1.0) -> Imagined:
        """See `World.imagine`; the outlook is computed once."""
        reached, outlook = self._step(state, action, noise, temperature)
        return Imagined(reached, *self._outcome(outlook))

    def features(self, state: MDNRNNState) -> Tensor:
        """`[latent, hidden]` or `[latent, hidden, cell]`, `(..., feature_size)`."""
        return torch.cat(state if self.config.cell_in_features else state[:2], -1)

    def decode(self, features: Tensor) -> Observation:
        """See `World.decode`; only the latent is read."""
        return self.vae.decoder.observation(features[..., : self.config.latent])

    def decode_keys(self, features: Tensor, keys: Collection[str]) -> Observation:
        """See `World.decode_keys`."""
        return self.vae.decoder.observation(features[..., : self.config.latent], keys)

    def predicted(self, outlook: Tensor) -> GaussianMixtures:
        """What M expects of the latent at an outlook `(..., H)`, or `(..., units)` with `layers`."""
        c = self.config
        return GaussianMixtures.from_stats(self.mixtures(outlook), c.latent, c.components, self.groups)

    def _step(self, state: MDNRNNState, action: Tensor, noise: Noise, temperature: float) -> tuple[MDNRNNState, Tensor]:
        """The state that is reached, and the outlook that foretold it."""
        known = _known(state.latent, action)
        hidden, cell = self._remember(state, known)
        outlook = self._outlook(hidden, known)
        return MDNRNNState(self.predicted(outlook).sample(noise, temperature), hidden, cell), outlook

    def _remember(self, state: MDNRNNState, known: Tensor) -> tuple[Tensor, Tensor]:
        return self.memory(self.memory.project(self.before(known)), state.hidden, state.cell)

    def _outlook(self, hidden: Tensor, known: Tensor) -> Tensor:
        """What M expects, as mixtures and heads are told it: `h`, or what an MLP makes of it and what is known."""
        return hidden if self.outlook is None else self.outlook(torch.cat([hidden, known], -1))

    def _outcome(self, outlook: Tensor) -> Outcome:
        return Outcome(self._reward(outlook), 1 - torch.sigmoid(self._end_logit(outlook)))

    def _reward(self, outlook: Tensor) -> Tensor:
        if self.reward_head is None:
            return torch.zeros(outlook.shape[:-1], device=outlook.device)
        return self.reward_head(outlook).squeeze(-1)

    def _end_logit(self, outlook: Tensor) -> Tensor:
        """Log odds that the episode ends; ends that counted `end_weight` times in the loss are as rare as they are."""
        if self.end_head is None:
            return torch.full(outlook.shape[:-1], -math.inf, device=outlook.device)
        return self.end_head(outlook).squeeze(-1) - math.log(self.config.end_weight)

    # -- learning ---------------------------------------------------------------------------------------------

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        """The objectives of V and M together, on `(T, B)` sequences; without `end_to_end`, M's gradient stops at V."""
        if self.config.end_to_end:
            return self._bound(batch, noise)
        code, terms = self.vae.loss(batch.observation, noise)
        seen = {f"{name}_loss": term.mean() for name, term in terms.items()}
        latent = Code(*(part.detach() for part in code)).sample(noise)
        remembered, states = self.memory_loss(latent, batch)
        parts = {**seen, **remembered}
        total = torch.stack(list(parts.values())).sum()
        return WorldLoss(total, {name: part.detach() for name, part in parts.items()}, states)

    def _bound(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        """The variational bound of whole sequences, for each latent number, with the losses of reward and end.

            E_q [scale |o_t - decode(z_t)|^2 + ln q(z_t | o_t) - ln p(z_t | h_t)] / Z

        Where nothing is known before (`memory_loss`), the prior is N(0, 1).

        Source: Chung et al. 2015, "A Recurrent Latent Variable Model for Sequential Data", equation 11, with V and M
        in the places of its networks.
        """
        code = self.vae.encode(batch.observation)
        latent = code.sample(noise)
        states, outlook = self._filter(latent, batch.action, batch.is_first)
        surprise = code.log_prob(latent) - self.predicted(outlook).log_prob(latent)
        share = 1 / self.config.latent
        errors = self.vae.errors(latent, batch.observation)
        parts = {f"{name}_loss": share * error.mean() for name, error in errors.items()}
        parts["kl_loss"] = share * torch.where(_foretold(batch), surprise, code.kl()).mean()
        parts |= self._outcome_losses(outlook, batch)
        total = torch.stack(list(parts.values())).sum()
        return WorldLoss(total, {name: part.detach() for name, part in parts.items()}, states)

    def memory_loss(self, latent: Tensor, batch: SequenceBatch) -> tuple[dict[str, Tensor], MDNRNNState]:
        """M's objective on known latents.

        Args:
            latent: `(T, B, Z)`, draws of V's codes.
            batch: the rest of the sequences; its observations are not read.

        Returns:
            Scalars by name, to be added: `latent_loss` (negative log likelihood, per latent number as in the paper's
            code), `reward_loss` and `end_loss`; and the posterior states `(T, B, ...)`.
        """
        states, outlook = self._filter(latent, batch.action, batch.is_first)
        log_prob = self.predicted(outlook).log_prob(latent)
        parts = {"latent_loss": -(log_prob * _weight(batch)).sum() / self.config.latent}
        return parts | self._outcome_losses(outlook, batch), states

    def _outcome_losses(self, outlook: Tensor, batch: SequenceBatch) -> dict[str, Tensor]:
        """`reward_loss` and `end_loss` at an outlook `(T, B, ...)`, where they are predicted."""
        parts, weight = {}, _weight(batch)
        if self.reward_head is not None:
            error = (self._reward(outlook) - batch.reward).square()
            parts["reward_loss"] = self.config.reward_scale * (error * weight).sum()
        if self.end_head is not None:
            logit = self.end_head(outlook).squeeze(-1)
            often = torch.tensor(self.config.end_weight, device=logit.device)
            target = batch.is_terminal.to(logit.dtype)
            error = F.binary_cross_entropy_with_logits(logit, target, reduction="none", pos_weight=often)
            parts["end_loss"] = (error * weight).sum()
        return parts

    def _filter(self, latent: Tensor, action: Tensor, is_first: Tensor) -> tuple[MDNRNNState, Tensor]:
        """States and outlooks `(T, B, ...)` over given latents; the memory is wiped where `is_first` says so."""
        known = _known(torch.cat([torch.zeros_like(latent[:1]), latent[:-1]]), action)
        projected = self.memory.project(self.before(known))
        keep = (~is_first).to(latent.dtype)[..., None]  # (T, B, 1)
        _, hidden, cell = self.initial(latent.shape[1])
        hiddens, cells = [], []
        # As in the RSSM: a step taken out by its number has a gradient of the whole sequence's size.
        for t, (inputs, kept) in enumerate(zip(projected.unbind(), keep.unbind(), strict=True)):
            hidden, cell = self.memory(inputs, hidden, cell)
            if t == 0:  # what came before is not known
                hidden, cell = torch.zeros_like(hidden), torch.zeros_like(cell)
            hidden, cell = hidden * kept, cell * kept
            hiddens.append(hidden)
            cells.append(cell)
        states = MDNRNNState(latent, torch.stack(hiddens), torch.stack(cells))
        return states, self._outlook(states.hidden, known)


def _known(latent: Tensor, action: Tensor) -> Tensor:
    """What M is told of a step: the latent before it, and its action."""
    return torch.cat([latent, action], -1)


def _foretold(batch: SequenceBatch) -> Tensor:
    """Which steps `(T, B)` M expects: nothing is known before an episode's first step, nor before the sequence's."""
    valid = ~batch.is_first
    valid[0] = False
    return valid


def _weight(batch: SequenceBatch) -> Tensor:
    """Equal shares `(T, B)` for the steps that M expects, none for the others."""
    foretold = _foretold(batch)
    return foretold / foretold.sum().clamp(min=1)
