"""PlaNet's further objectives: latent overshooting, observation overshooting, and the fixed global prior.

The ordinary bound trains one-step predictions only. Overshooting rolls the prior on from every posterior state,

    d = 1    s_{t-1} --a_t--> p(s_t | s_{t-1})
    d = 2    s_{t-2} --a_{t-1}--> . --a_t--> p(s_t | .)              and so on,

and trains each prediction on what the posterior knew (latent) or on what was seen (observation):

    latent         1/D sum_{d=1}^D beta_d KL(sg q(s_t) || p(s_t | s_{t-1})),  s_{t-1} ~ p(. | s_{t-d})
    observation    1/D sum_{d=1}^D -ln p(o_t, r_t | s_t),                     s_t ~ p(. | s_{t-d})
    global prior   KL(q(s_t) || N(0, 1))

The distance d = 1 of the latent sum is the ordinary bound, gradients into the posterior included; it stands in the
RSSM's own loss. What is before an episode's first step is the initial state, and no prediction crosses a beginning.

Source: Hafner et al. 2019 (PlaNet), section 4 and appendix; the official code for the global prior.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wmgym.nets.distributions import Latent, free_nats
from wmgym.random import Noise
from wmgym.worlds.base import SequenceBatch, State, flatten_state, map_state

if TYPE_CHECKING:
    from wmgym.worlds.rssm import RSSM


class Prediction(NamedTuple):
    """What the prior predicts `distance` steps ahead, for the times `distance - 1` to `T - 1`."""

    distance: int
    states: State  # (T - distance + 1, B, ...), drawn
    valid: Tensor  # (T - distance + 1, B) bool: no episode begins on the way

    def mean_loss(self, loss: Tensor) -> Tensor:
        """`loss`, of the shape of `valid`, as `(T, B)` with zeros where there is no prediction."""
        return F.pad(loss * self.valid, (0, 0, self.distance - 1, 0))


def predictions(world: RSSM, batch: SequenceBatch, states: State, noise: Noise, furthest: int) -> Iterator[Prediction]:
    """Open-loop predictions from every posterior state, at the distances 1 to `furthest` (and at most T).

    Args:
        world: an RSSM or one of its relatives.
        batch: `(T, B)` sequences.
        states: their posterior states.
        noise: source of the draws.
        furthest: the largest distance.
    """
    length, size = batch.shape
    keep = (~batch.is_first)[..., None].to(batch.action.dtype)  # (T, B, 1)
    before = map_state(lambda first, rest: torch.cat([first[None], rest[:-1]]) * keep, world.initial(size), states)
    reached = _step(world, before, batch.action * keep, noise)
    valid = torch.ones_like(batch.is_first)
    yield Prediction(1, reached, valid)
    for distance in range(2, min(furthest, length) + 1):
        reached = _step(world, map_state(lambda x: x[:-1], reached), batch.action[distance - 1 :], noise)
        valid = valid[:-1] & ~batch.is_first[distance - 1 :]
        yield Prediction(distance, reached, valid)


def _step(world: RSSM, states: State, action: Tensor, noise: Noise) -> State:
    """One transition of states `(T, B, ...)`."""
    lead = action.shape[:2]
    reached = world.transition(flatten_state(states), action.flatten(0, 1), noise)
    return map_state(lambda x: x.unflatten(0, lead), reached)


def multi_step_losses(
    world: RSSM, batch: SequenceBatch, states: State, posterior: Latent, noise: Noise
) -> dict[str, Tensor]:
    """The objectives that the configuration turns on, `(T, B)` by name; nothing by default."""
    c = world.config
    losses: dict[str, list[Tensor]] = {}
    if c.global_prior:
        divergence = free_nats(posterior.kl(posterior.standard()), c.free_nats, c.free_per_step)  # type: ignore[arg-type]
        losses["global_prior"] = [c.global_prior * divergence]
    furthest = max(c.latent_overshooting, c.observation_overshooting)
    if furthest > 1 or c.observation_overshooting:
        for prediction in predictions(world, batch, states, noise, furthest):
            if 1 < prediction.distance <= c.latent_overshooting:
                losses.setdefault("latent_overshooting", []).append(_latent_loss(world, prediction, posterior))
            if prediction.distance <= c.observation_overshooting:
                losses.setdefault("observation_overshooting", []).append(_seen_loss(world, prediction, batch, noise))
    return {name: torch.stack(parts).sum(0) for name, parts in losses.items()}


def _latent_loss(world: RSSM, prediction: Prediction, posterior: Latent) -> Tensor:
    c, first = world.config, prediction.distance - 1
    target = type(posterior)(*(leaf[first:].detach() for leaf in posterior))
    divergence = free_nats(target.kl(world.prior_of(prediction.states)), c.free_nats, c.free_per_step)  # type: ignore[arg-type]
    return prediction.mean_loss(divergence) * c.overshooting_weight(prediction.distance) * c.kl_weights()[0]


def _seen_loss(world: RSSM, prediction: Prediction, batch: SequenceBatch, noise: Noise) -> Tensor:
    later = _since(batch, prediction.distance - 1)
    parts = world.decoding_losses(world.features(prediction.states), later, noise)
    return prediction.mean_loss(torch.stack(list(parts.values())).sum(0)) / world.config.observation_overshooting


def _since(batch: SequenceBatch, time: int) -> SequenceBatch:
    observation = {key: value[time:] for key, value in batch.observation.items()}
    rest = (batch.action, batch.reward, batch.is_first, batch.is_terminal)
    return SequenceBatch(observation, *(value[time:] for value in rest))
