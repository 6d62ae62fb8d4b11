"""DreamerV3: Hafner et al., "Mastering Diverse Domains through World Models" (2023; the official code of 2024).

    dream s_1 .. s_H with the actor from every posterior state s_0
    R_t     = r_{t+1} + d(s_{t+1}) ((1 - lam) v(s_{t+1}) + lam R_{t+1}),   R_H = v(s_H),   t = 0 .. H - 1
    A_t     = (R_t - v(s_t)) / max(1, running P95(R) - P5(R)),   w_t = d(s_0) ... d(s_t)
    policy  = mean(-w_t [ ln pi(a_t | s_t) sg(A_t) + 3e-4 H(pi) ])
    value   = mean(w_t [ CE(v(s_t), sg R_t) + CE(v(s_t), sg v'(s_t)) ])
    repval  = the same for the states that were really seen, with the rewards really received, bootstrapped by R_0
    all     <- all - LaProp(AGC(grad [ world + policy + value + 0.3 repval ]))
    v'      <- v' + 0.02 (v - v')

The continue head predicts the discount itself, `1 - 1/333` where an episode goes on; only `repval` has a gradient into
the world. Unlike the official code, replayed sequences begin in the initial state instead of a stored one, and the
`learning_starts` first decisions are uniform instead of the untrained actor's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from agents.actors import Actor, Critic
from agents.arguments import passed_on, refuse_ignored
from agents.dreamer import OF_THE_FLAGSHIP_S_WORLD, ActorGradient, Dreamer
from agents.dreamer_v1 import predicted_discounts
from agents.imagination import ReturnRange, Rollout, frozen, lambda_returns, matmul_precision
from agents.policy import WorldModelPolicy
from wmgym.nets.coders import CoderConfig
from wmgym.nets.optim import LaProp
from wmgym.worlds.base import SequenceBatch, World, detach_state, flatten_state, map_state
from wmgym.worlds.rssm import RSSM, HeadConfig, RSSMConfig

SIZES = {"1m": 64, "12m": 256, "25m": 384, "50m": 512, "100m": 768, "200m": 1024, "400m": 1536}
"""Width of every layer by the number of parameters (of pictures of 64x64x3); all other sizes follow from it."""


class DreamerV3(Dreamer):
    """DreamerV3, with the paper's settings for the DeepMind control suite as defaults.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        size: "1m", "12m", "25m", "50m", "100m", "200m" or "400m" parameters.
        learning_rate: LaProp's, for everything.
        warmup: updates over which the learning rate rises from zero.
        free_nats: divergence, at each step, that costs nothing.
        dyn_scale: weight of the divergence that trains the prior.
        rep_scale: weight of the divergence that trains the posterior.
        repval_scale: weight of the value loss on what was replayed.
        unimix: share of the uniform distribution in latents and discrete actions.
        world_config: a whole world configuration, instead of `size` and the four above that concern the world.
        horizon: imagined steps.
        imagine_starts: how many posterior states dreams start from, the last ones of every sequence (rounded up to
            whole steps, two at least); None: all.
        gamma: discount per decision.
        lam: of the lambda-return.
        actor_gradient: see `Dreamer`; the paper has REINFORCE for either kind of action.
        entropy_scale: weight of the actor's entropy.
        exploration_noise: see `Dreamer`; the paper's actor explores by itself.
        slow_rate: how fast the slow critic follows (each update).
        clip: largest norm of a tensor's gradient, as a share of the tensor's norm.
        options: the rest of `WorldModelAgent`'s arguments.

    Raises:
        ValueError: if there is no such size.

    Example:
        >>> small = {"size": "1m", "batch_size": 2, "batch_length": 8, "learning_starts": 40, "train_ratio": 4}
        >>> DreamerV3("Pendulum-v1", seed=0, **small).learn(60).num_timesteps
        60
    """

    world: RSSM

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        size: str = "12m",
        learning_rate: float | Schedule = 4e-5,
        warmup: int = 1000,
        batch_size: int = 16,
        batch_length: int = 64,
        train_ratio: float = 512.0,
        learning_starts: int = 1024,
        online_queue: bool = True,
        free_nats: float = 1.0,
        dyn_scale: float = 1.0,
        rep_scale: float = 0.1,
        repval_scale: float = 0.3,
        unimix: float = 0.01,
        world_config: RSSMConfig | None = None,
        horizon: int = 15,
        imagine_starts: int | None = None,
        gamma: float = 1 - 1 / 333,
        lam: float = 0.95,
        actor_gradient: ActorGradient = "reinforce",
        entropy_scale: float = 3e-4,
        exploration_noise: float = 0.0,
        slow_rate: float = 0.02,
        clip: float = 0.3,
        **options: Any,
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"DreamerV3 has no size {size!r}: choose one of {', '.join(SIZES)}.")
        self.size, self.warmup, self.unimix = size, warmup, unimix
        self.free_nats, self.dyn_scale, self.rep_scale = free_nats, dyn_scale, rep_scale
        self.repval_scale = repval_scale
        width = SIZES[size]
        config = v3_world(width, gamma, unimix, free_nats, dyn_scale, rep_scale)
        world_config = world_config or config
        widths = {"deter": config.deter, "stoch": config.stoch, "units": width, "depth": config.encoder.depth}
        for name in widths:
            if options.get(name, widths[name]) != widths[name]:
                raise TypeError(
                    f"DreamerV3's size={size!r} has {name}={widths[name]}: give world_config=... for another."
                )
        options |= widths
        refuse_ignored("DreamerV3", Dreamer, options, OF_THE_FLAGSHIP_S_WORLD)
        super().__init__(env, policy, **passed_on(Dreamer, locals()), **options)

    # -- networks ---------------------------------------------------------------------------------------------

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        size, space = world.feature_size, self.action_space
        shape: Any = {"act": "silu", "norm": "rms", "init": "v3"}
        actor = Actor(size, space, 3, self.units, "bounded_normal", out_scale=0.01, unimix=self.unimix, **shape)
        critic = Critic(size, 3, self.units, two_hot=True, out_scale=0.0, **shape)
        slow_critic = copy.deepcopy(critic).requires_grad_(False)
        return {"actor": actor, "critic": critic, "slow_critic": slow_critic, "return_range": ReturnRange()}

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        return {"all": LaProp(parameters, self.lr_schedule(1.0), betas=(0.9, 0.999), eps=1e-20, clip=self.clip)}

    def _warmup(self) -> float:
        return min(1.0, self._n_updates / self.warmup) if self.warmup else 1.0

    # -- the algorithm ----------------------------------------------------------------------------------------

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        world_loss = self._world_loss(batch)
        last = self._last_steps(batch)
        states = map_state(lambda leaf: leaf[last], world_loss.states)  # (K, B, ...)
        with matmul_precision(self.dream_precision):
            dreams = self._dream(flatten_state(detach_state(states)))
            losses, returns, metrics = self._dream_losses(dreams)
        first_return = returns[0].unflatten(0, (-1, batch.shape[1]))
        losses["repval"] = self.repval_scale * self._replay_value_loss(
            self.world.features(states), first_return, batch.reward[last], batch.is_first[last], batch.is_terminal[last]
        )
        self.checks.require_finite({f"{name} loss": loss for name, loss in losses.items()})
        self._descend_all(world_loss.total + torch.stack(list(losses.values())).sum())
        polyak_update(self.policy.critic.parameters(), self.policy.slow_critic.parameters(), self.slow_rate)
        parts = {f"{name}_loss": loss for name, loss in losses.items()}
        return {**world_loss.parts, **world_loss.metrics, **parts, **metrics}

    def _last_steps(self, batch: SequenceBatch) -> slice:
        """The steps of the batch that dreams start from; at least two, so that there is a step to learn values of."""
        if self.imagine_starts is None:
            return slice(None)
        return slice(-max(2, math.ceil(self.imagine_starts / batch.shape[1])), None)

    def _dream_losses(self, dreams: Rollout) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Losses of actor and critic, the returns `(H, N)`, and what to log."""
        with frozen(self.world, self.policy.critic):
            discounts = predicted_discounts(self.world, dreams.features, self.gamma)
            values = self.policy.critic(dreams.features)
            returns = lambda_returns(dreams.rewards, discounts[1:], values, self.lam)
        weights = torch.cumprod(discounts, 0)[:-1].detach()
        actor_loss, metrics = self._actor_loss(dreams, returns, values, weights)
        critic_loss = (weights * self._value_loss(dreams.features[:-1].detach(), returns)).mean()
        metrics |= {"dream_reward": dreams.rewards.mean(), "dream_return": returns.mean()}
        return {"actor": actor_loss, "critic": critic_loss}, returns, metrics

    def _value_loss(self, features: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy `(...)` of the critic with the returns, and with what the slow critic says."""
        with torch.no_grad():
            slow = self.policy.slow_critic(features)
        loss: Tensor = self.policy.critic.loss(features, returns.detach(), slow)
        return loss

    def _replay_value_loss(
        self, features: Tensor, bootstrap: Tensor, reward: Tensor, is_first: Tensor, is_terminal: Tensor
    ) -> Tensor:
        """Value loss on replayed steps; all arguments are `(K, B, ...)`, `features` with gradient into the world.

        Where an episode ends, the return of the step before it bootstraps from `bootstrap`, or from nothing after a
        terminal step; the last step of an episode has no return of its own.
        """
        is_last = torch.cat([is_first[1:], is_terminal[-1:]]) | is_terminal
        discounts = self.gamma * (~is_terminal[1:]).to(reward.dtype)
        lam = self.lam * (~is_last[1:]).to(reward.dtype)
        returns = lambda_returns(reward[1:], discounts, bootstrap, lam)
        return ((~is_last[:-1]) * self._value_loss(features[:-1], returns)).mean()

    def _descend_all(self, loss: Tensor) -> None:
        optimizer = self.optimizers["all"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def v3_world(
    units: int, gamma: float, unimix: float, free_nats: float, dyn_scale: float, rep_scale: float
) -> RSSMConfig:
    """DreamerV3's world of the width `units`."""
    classes = depth = units // 16
    coder = CoderConfig(
        units=units,
        layers=3,
        norm="rms",
        init="v3",
        image="v3",
        depth=depth,
        image_act="silu",
        image_norm="rms",
    )
    return RSSMConfig(
        latent="categorical",
        stoch=32,
        classes=classes,
        unimix=unimix,
        cell="block",
        deter=8 * units,
        hidden=units,
        blocks=8,
        prior_layers=2,
        norm="rms",
        init="v3",
        encoder=coder,
        decoder=coder,
        reward=HeadConfig(layers=1, units=units, likelihood="twohot", out_scale=0.0),
        continues=HeadConfig(layers=1, units=units),
        free_nats=free_nats,
        free_per_step=True,
        dyn_scale=dyn_scale,
        rep_scale=rep_scale,
        continue_target=gamma,
    )
