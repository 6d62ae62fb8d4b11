"""The recurrent state-space model: PlaNet's, and DreamerV1's to V3's by configuration.

    h_t = f(h_{t-1}, s_{t-1}, a_t)        deterministic path, `deter`
    s_t ~ q(s_t | h_t, e(o_t))            posterior, `stoch`
    s_t ~ p(s_t | h_t)                    prior
    o_t, r_t, c_t ~ p(. | h_t, s_t)       decoder and heads over `features` = [h_t, s_t]

Sources: Hafner et al. 2019 (PlaNet), 2020 (DreamerV1), 2021 (DreamerV2), 2023 (DreamerV3).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.nets.cells import BlockCore, DenseCore, MemorylessCore
from wmgym.nets.coders import Decoder, Encoder
from wmgym.nets.distributions import Categoricals, Gaussian, Latent, TwoHot, free_nats
from wmgym.nets.images import coarse
from wmgym.nets.mlp import MLP, activation, linear, normalisation
from wmgym.nets.standardize import Standardizer
from wmgym.random import Noise
from wmgym.spaces import action_size, as_dict_space, is_image
from wmgym.worlds.base import Observation, Outcome, SequenceBatch, World, WorldLoss, map_state, stack_states
from wmgym.worlds.config import HeadConfig, RSSMConfig
from wmgym.worlds.foresight import Foresight
from wmgym.worlds.overshooting import multi_step_losses


class RSSMState(NamedTuple):
    """State of an `RSSM`: `deter` `(B, D)` and the flattened draw `stoch` `(B, S)`."""

    deter: Tensor
    stoch: Tensor


class Posterior(nn.Module):
    """`q(s | h, e)`: hidden layers and statistics; the embedding's share is computed for all steps at once."""

    def __init__(self, config: RSSMConfig, embedding: int, stats: int) -> None:
        super().__init__()
        self.deter = config.deter
        self.first = linear(config.deter + embedding, config.hidden, config.init)
        self.norm = normalisation(config.norm, config.hidden)
        self.act = activation(config.act)
        self.rest = MLP(
            config.hidden,
            stats,
            config.posterior_layers - 1,
            config.hidden,
            config.act,
            config.norm,
            config.init,
        )

    def project(self, embedding: Tensor) -> Tensor:
        """The embedding's share of the first layer, `(..., E)` to `(..., hidden)`."""
        return F.linear(embedding, self.first.weight[:, self.deter :], self.first.bias)

    def forward(self, deter: Tensor, projected: Tensor) -> Tensor:
        """Statistics `(B, stats)`."""
        hidden = projected + F.linear(deter, self.first.weight[:, : self.deter])
        return self.rest(self.act(self.norm(hidden)))


class RSSM(World):
    """A recurrent state-space model over any observation of vectors and pictures.

    Args:
        observation_space: `Box` or `Dict` of boxes, pictures as uint8 HWC.
        action_space: `Box` or `Discrete`.
        config: shape and objective.

    Example:
        >>> import numpy as np
        >>> world = RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> state = world.initial(4)
        >>> from wmgym.random import ModeNoise
        >>> world.imagine(state, torch.zeros(4, 2), ModeNoise()).reward.shape
        torch.Size([4])
    """

    observation_space: spaces.Dict | spaces.Box
    action_space: spaces.Box | spaces.Discrete

    def __init__(
        self,
        observation_space: spaces.Dict | spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        config: RSSMConfig | None = None,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.config = config = config or RSSMConfig()
        self.boxes = as_dict_space(observation_space)
        self.stoch_size = config.stoch * (config.classes if config.latent == "categorical" else 1)
        self.feature_size = self._feature_size()
        stats = self._stats_size()

        self.standardizer = Standardizer(self.boxes) if config.standardize else None
        self.foresight = Foresight(self.boxes) if config.foresight else None
        self.encoder = Encoder(self._observed_boxes(), config.encoder)
        self.core = self._build_core(action_size(action_space))
        shape = (config.act, config.norm, config.init)
        self.prior = MLP(config.deter, stats, config.prior_layers, config.hidden, *shape)
        self.posterior = self._build_posterior(stats)
        self.decoder = Decoder(self.feature_size, self.boxes, config.decoder, self._deter_features())
        self.two_hot = TwoHot()
        self.reward_head = self._build_head(config.reward)
        self.continue_head = self._build_head(config.continues) if config.continues else None
        self.ensemble = nn.ModuleList(
            MLP(self.feature_size + action_size(action_space), self.stoch_size, 2, config.hidden, *shape)
            for _ in range(config.ensemble)
        )

    def _observed_boxes(self) -> dict[str, spaces.Box]:
        keys = self.config.observed_keys
        if keys is None:
            return self.boxes
        unknown = [key for key in keys if key not in self.boxes]
        if unknown or not keys:
            raise ValueError(f"observed_keys={keys} must name some of the observations {list(self.boxes)}.")
        return {key: self.boxes[key] for key in keys}

    def _build_core(self, action: int) -> DenseCore | BlockCore | MemorylessCore:
        c = self.config
        if c.cell == "block":
            return BlockCore(self.stoch_size, action, c.deter, c.hidden, c.blocks, c.act, c.norm, c.init)
        return DenseCore(self.stoch_size, action, c.deter, c.hidden, c.cell == "layernorm", c.act, c.norm, c.init)

    def _build_posterior(self, stats: int) -> Posterior:
        return Posterior(self.config, self.encoder.out_size, stats)

    def _feature_size(self) -> int:
        return self.config.deter + self.stoch_size

    def _deter_features(self) -> int | None:
        """How many of the features, from the first, are `deter`; None where that is not how they stand."""
        return self.config.deter

    def _stats_size(self) -> int:
        """Numbers that fix one latent's distribution."""
        return self.stoch_size if self.config.latent == "categorical" else 2 * self.config.stoch

    def _build_head(self, head: HeadConfig) -> MLP:
        c = self.config
        out = len(self.two_hot.bins) if head.likelihood == "twohot" else 1
        return MLP(self.feature_size, out, head.layers, head.units, c.act, c.norm, c.init, head.out_scale)

    # -- one step ---------------------------------------------------------------------------------------------

    def initial(self, batch_size: int) -> RSSMState:
        """Zeros, `(batch_size, ...)`."""
        zeros = torch.zeros(batch_size, self.config.deter + self.stoch_size, device=self.device)
        return RSSMState(*zeros.split([self.config.deter, self.stoch_size], -1))

    def observe(
        self, state: RSSMState, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> RSSMState:
        """See `World.observe`."""
        embedding = self.posterior.project(self.encoder(self._observed(self._seen(observation, noise))))
        keep = 1.0 - is_first.to(action.dtype)[:, None]  # (B, 1)
        return self._filter_step(state, self.core.project(action * keep), embedding, keep, noise)[0]

    def transition(self, state: RSSMState, action: Tensor, noise: Noise, temperature: float = 1.0) -> RSSMState:
        """See `World.transition`; temperature scales the Gaussian's deviation or divides the logits."""
        deter = self._advance(state, self.core.project(action))
        return self._join(state, deter, self._latent(self.prior(deter)).sample(noise, temperature))

    def outcome(self, previous: RSSMState, action: Tensor, state: RSSMState) -> Outcome:
        """See `World.outcome`; an RSSM reads both from the state reached."""
        features = self.features(state)
        return Outcome(self._reward(features), self._continues(features))

    def features(self, state: RSSMState) -> Tensor:
        """`[deter, stoch]`, `(..., feature_size)`."""
        return torch.cat([state.deter, state.stoch], -1)

    def decode(self, features: Tensor) -> Observation:
        """See `World.decode`."""
        return self._in_own_units(self.decoder.observation(features))

    def decode_keys(self, features: Tensor, keys: Collection[str]) -> Observation:
        """See `World.decode_keys`; the networks that draw nothing of `keys` do not run."""
        return self._in_own_units(self.decoder.observation(features, keys))

    def disagreement(self, state: RSSMState, action: Tensor) -> Tensor:
        """Deviation of the ensemble's predictions of the next `stoch`, averaged over its dimensions, `(B,)`.

        Raises:
            ValueError: if the world has no ensemble.
        """
        if not self.ensemble:
            raise ValueError("This world has no ensemble: build it with RSSMConfig(ensemble=5) or more.")
        inputs = torch.cat([self.features(state), action], -1)
        return torch.stack([head(inputs) for head in self.ensemble]).std(0).mean(-1)

    def _latent(self, stats: Tensor) -> Latent:
        c = self.config
        if c.latent == "categorical":
            return Categoricals.from_stats(stats, c.classes, c.unimix)
        return Gaussian.from_stats(stats, c.min_std)

    def prior_of(self, state: RSSMState) -> Latent:
        """The prior that the step to `state` had; any leading dimensions."""
        return self._latent(self.prior(state.deter))

    # What the relatives of the family (`wmgym.worlds.family`) have otherwise: these two, `initial`, `features`, and the
    # methods that build.

    def _advance(self, state: RSSMState, action: Tensor) -> Tensor:
        """The next `deter`, which prior and posterior read; `action` is projected already."""
        return self.core(state.deter, state.stoch, action)

    def _join(self, previous: RSSMState, deter: Tensor, stoch: Tensor) -> RSSMState:
        """The state that the step from `previous` reached."""
        return RSSMState(deter, stoch)

    def _filter_step(
        self, state: RSSMState, action: Tensor, embedding: Tensor, keep: Tensor, noise: Noise
    ) -> tuple[RSSMState, Tensor]:
        """The posterior state and the numbers that fix its distribution; `keep` `(B, 1)` is 0 where episodes begin."""
        state = map_state(lambda leaf: leaf * keep, state)
        deter = self._advance(state, action)
        stats = self.posterior(deter, embedding)
        return self._join(state, deter, self._latent(stats).sample(noise)), stats

    def _reward(self, features: Tensor) -> Tensor:
        out = self.reward_head(features)
        return self.two_hot.mean(out) if self.config.reward.likelihood == "twohot" else out.squeeze(-1)

    def _continues(self, features: Tensor) -> Tensor:
        if self.continue_head is None:
            return torch.ones(features.shape[:-1], device=features.device)
        probability = torch.sigmoid(self.continue_head(features).squeeze(-1))
        return (probability / self.config.continue_target).clamp(max=1.0)

    # -- learning ---------------------------------------------------------------------------------------------

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        """The variational objective on `(T, B)` sequences, each starting from the initial state."""
        if self.standardizer is not None and self.training:
            self.standardizer.update(batch.observation)
        batch = replace(batch, observation=self._seen(batch.observation, noise))
        states, posterior = self._filter(batch, noise)
        if self.foresight is not None and self.training:
            self.foresight.update(self, batch, states, noise)
        features = self.features(states)
        prior = self.prior_of(states)
        parts = {
            **self.decoding_losses(features, batch, noise),
            **self._kl_losses(posterior, prior),
            **self._ensemble_loss(features, batch, posterior),
            **multi_step_losses(self, batch, states, posterior, noise),
        }
        total = torch.stack([part.mean() for part in parts.values()]).sum()
        means = {f"{name}_loss": part.mean().detach() for name, part in parts.items()}
        with torch.no_grad():
            metrics = {
                "kl": posterior.kl(prior).mean(),  # type: ignore[arg-type]
                "prior_entropy": prior.entropy().mean(),
                "posterior_entropy": posterior.entropy().mean(),
            }
        return WorldLoss(total, means, states, metrics)

    def _filter(self, batch: SequenceBatch, noise: Noise) -> tuple[RSSMState, Latent]:
        """Posterior states `(T, B, ...)` and their distributions; only the recurrence runs in the loop."""
        embedding = self.posterior.project(self.encoder(self._observed(batch.observation)))
        keep = 1.0 - batch.is_first.to(batch.action.dtype)[..., None]  # (T, B, 1)
        action = self.core.project(batch.action * keep)
        state = self.initial(batch.shape[1])
        states, stats = [], []
        # Taken apart at once: a step taken out by its number has a gradient of the whole sequence's size.
        for step in zip(action.unbind(), embedding.unbind(), keep.unbind(), strict=True):
            state, statistics = self._filter_step(state, *step, noise)
            states.append(state)
            stats.append(statistics)
        return stack_states(states), self._latent(torch.stack(stats))

    def _seen(self, observation: Observation, noise: Noise) -> Observation:
        """Vectors in units of their deviation, where the configuration says so; pictures with `picture_bits`.

        The rest of each number of a picture is drawn at random (PlaNet's dequantisation).
        """
        if self.standardizer is not None:
            observation = self.standardizer(observation)
        step = 2 ** (8 - self.config.picture_bits)
        if step == 1:
            return observation
        return {
            key: coarse(value, step, noise) if is_image(self.boxes[key]) else value
            for key, value in observation.items()
        }

    def _in_own_units(self, observation: Observation) -> Observation:
        return observation if self.standardizer is None else self.standardizer.inverse(observation)

    def _observed(self, observation: Observation) -> Observation:
        keys = self.config.observed_keys
        return observation if keys is None else {key: observation[key] for key in keys}

    def decoding_losses(self, features: Tensor, batch: SequenceBatch, noise: Noise) -> dict[str, Tensor]:
        """How badly features `(T, B, F)` tell what was seen and received, by name."""
        return {**self._reconstruction_losses(features, batch, noise), **self._head_losses(features, batch)}

    def _reconstruction_losses(self, features: Tensor, batch: SequenceBatch, noise: Noise) -> dict[str, Tensor]:
        pictures = {key for key, box in self.boxes.items() if is_image(box)}
        vectors = set(self.boxes) - pictures
        scale = self.config.vector_scale
        weights = self.foresight.weights(0.5 / (scale * self.decoder.error_weight)) if self.foresight else None
        seen = self._decode_loss(features, batch.observation, vectors, weights)
        losses = {key: loss * scale for key, loss in seen.items()}
        if pictures:
            rows, observation = self._picture_rows(features, batch.observation, noise)
            rows = rows if self.config.picture_gradient else rows.detach()
            for key, loss in self._decode_loss(rows, observation, pictures).items():
                losses[key] = loss * self.config.picture_scale
        return losses

    def _decode_loss(
        self, features: Tensor, observation: Observation, keys: set[str], weights: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        if not keys:
            return {}
        return self.decoder.loss(features, {key: observation[key] for key in sorted(keys)}, weights)

    def _picture_rows(self, features: Tensor, observation: Observation, noise: Noise) -> tuple[Tensor, Observation]:
        """A random share of the `(T, B)` frames, as `(K, ...)`."""
        if self.config.picture_share >= 1.0:
            return features, observation
        count = features.shape[0] * features.shape[1]
        kept = noise.uniform(count).topk(max(1, round(count * self.config.picture_share))).indices
        flat = {key: value.flatten(0, 1)[kept] for key, value in observation.items()}
        return features.flatten(0, 1)[kept], flat

    def _head_losses(self, features: Tensor, batch: SequenceBatch) -> dict[str, Tensor]:
        c = self.config
        out = self.reward_head(features)
        if c.reward.likelihood == "twohot":
            reward = self.two_hot.loss(out, batch.reward)
        else:
            reward = (out.squeeze(-1) - batch.reward).square() * (0.5 if c.reward.likelihood == "normal" else 1.0)
        losses = {"reward": reward * c.reward_scale}
        if self.continue_head is not None:
            target = (~batch.is_terminal).to(features.dtype) * c.continue_target
            logits = self.continue_head(features).squeeze(-1)
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            losses["continue"] = loss * c.continue_scale
        return losses

    def _kl_losses(self, posterior: Latent, prior: Latent) -> dict[str, Tensor]:
        c = self.config
        dyn, rep = c.kl_weights()
        share = c.overshooting_weight(1)
        if c.kl_balance is None and c.dyn_scale is None:
            return {"kl": share * c.kl_scale * free_nats(posterior.kl(prior), c.free_nats, c.free_per_step)}  # type: ignore[arg-type]
        train_prior = posterior.detach().kl(prior)  # type: ignore[arg-type]
        train_posterior = posterior.kl(prior.detach())  # type: ignore[arg-type]
        return {
            "dyn": share * dyn * free_nats(train_prior, c.free_nats, c.free_per_step),
            "rep": share * rep * free_nats(train_posterior, c.free_nats, c.free_per_step),
        }

    def _ensemble_loss(self, features: Tensor, batch: SequenceBatch, posterior: Latent) -> dict[str, Tensor]:
        """Each head predicts the next posterior's mean from features and action; it never shapes the state.

        A head learns from steps of its own, every n-th of the batch for n heads: together they cost what one would that
        learnt from all, and they agree only on what is known well.
        """
        if not self.ensemble or len(features) == 1:  # a single step has no next one
            return {}
        inputs = torch.cat([features[:-1].detach(), batch.action[1:]], -1).flatten(0, 1)
        mean = posterior.log_probs.exp().flatten(-2) if isinstance(posterior, Categoricals) else posterior.mean
        target = mean[1:].detach().flatten(0, 1)
        valid = (~batch.is_first[1:]).to(features.dtype).flatten()
        stride = min(len(self.ensemble), len(inputs))
        errors = []
        for number, head in enumerate(self.ensemble):
            own = slice(number % stride, None, stride)
            errors.append(((head(inputs[own]) - target[own]).square().mean(-1) * valid[own]).mean())
        return {"ensemble": torch.stack(errors).sum()}
