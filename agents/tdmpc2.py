"""TD-MPC2: Hansen et al., "TD-MPC2: Scalable, Robust World Models for Continuous Control" (2024).

    loop: act       z <- h(o); MPPI over plans of H steps in the world, some of them the actor's own,
                    each worth its rewards and what the critics say of where it ends; draw from the belief
          draw B sequences of H + 1 steps
          y         <- r + gamma (1 - end) min of 2 slow critics(h(o'), actor(h(o')))
          world, critics <- both - grad sum_t rho^t [ world's losses + 0.1 CE(critics(z_t, a_t), y_t) ]   z in the open
          actor     <- actor + grad sum_t rho^t [ mean of 2 critics(z_t, actor(z_t)) / scale + entropy ]
          slow critics <- (1 - tau) slow critics + tau critics

The world is `wmgym.worlds.tdmpc.TOLD`: nothing is decoded to learn it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from agents.actors import Actor
from agents.arguments import check_range, check_whole, refuse_ignored
from agents.base import WorldModelAgent
from agents.critics import CriticEnsemble
from agents.imagination import ReturnRange, frozen
from agents.plannable import Shared, plannable
from agents.planners import MPPI
from agents.planning import PlanningPolicy
from agents.policy import WorldModelPolicy
from wmgym.nets.coders import PATCHES, CoderConfig
from wmgym.nets.mlp import Activation
from wmgym.random import Noise
from wmgym.spaces import action_size
from wmgym.worlds.base import SequenceBatch, State, World, map_state
from wmgym.worlds.tdmpc import TOLD, TOLDConfig


class TDMPC2Policy(PlanningPolicy):
    """Plans with MPPI around the last plan and among an actor's own, and looks beyond their ends with critics.

    Args:
        observation_space: of the environment.
        action_space: of the environment, in its own units.
        world: what is planned in.
        planner: the search.
        behaviour: `actor`, `critics`, and what they learn with.
        actor_plans: how many of the plans tried are the actor's.
        gamma: discount per decision.
    """

    critics: CriticEnsemble
    slow_critics: CriticEnsemble
    planner: MPPI

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        world: World,
        planner: MPPI,
        behaviour: dict[str, nn.Module],
        actor_plans: int,
        gamma: float,
    ) -> None:
        super().__init__(observation_space, action_space, world, planner, warm_start=True, behaviour=behaviour)
        self.actor_plans, self.gamma = actor_plans, gamma

    def search(self, state: State, start: Tensor | None, noise: Noise, exploring: bool) -> tuple[Tensor, Tensor]:
        """See `PlanningPolicy.search`; who explores is as far off the plan as the search is unsure."""
        members = pick_two(self.critics, noise)

        def value(features: Tensor) -> Tensor:
            return self.worth(self.critics(features, self.actor(features).mode(), members))

        planner = self.present_planner()
        proposals = self._propose(state, noise, planner.horizon) if self.actor_plans else None
        model = plannable(self.world, state, value, self.gamma)
        belief, plans, returns = planner.search(model, noise, start, proposals)
        action = planner.pick(plans, returns, noise)
        return belief.blur(action, noise) if exploring else action, belief.mean

    def worth(self, values: Tensor) -> Tensor:
        """What two critics' values `(2, ...)` are together, `(...)`."""
        return values.mean(0)

    def present_planner(self) -> MPPI:
        """The search as it is now."""
        return self.planner

    def _propose(self, state: State, noise: Noise, horizon: int) -> Tensor:
        """Plans `(horizon, B, K, A)` that the actor follows in the world."""
        count, plans = self.actor_plans, []
        noise = Shared(noise, state[0].shape[0])
        state = map_state(lambda leaf: leaf.repeat_interleave(count, 0), state)  # (B * K, ...)
        for _ in range(horizon):
            plans.append(self.actor(self.world.features(state)).sample(noise))
            state = self.world.transition(state, plans[-1], noise)
        return torch.stack(plans).unflatten(1, (-1, count))


class TDMPC2(WorldModelAgent):
    """TD-MPC2, with the defaults of its model of five million parameters.

    What differs from its code is listed in `docs/tdmpc2.md`: above all the critics have no dropout, and those asked
    about the end of a plan are told the likeliest action of the actor instead of a draw.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's, for world, critics and actor.
        encoder_rate: factor on it for the world's encoder.
        batch_size: sequences in a batch.
        horizon: H, steps of a plan and of the world's predictions while it learns.
        train_freq: decisions between updates; None: as `train_ratio` says.
        learning_starts: random decisions before the first update.
        pretrain: updates then; None: as many as `learning_starts`.
        latent: width of the latent, a multiple of 8.
        units: width of the dynamics, of the heads, the actor and the critics.
        encoder_units: width of the encoder's hidden layer.
        depth: width of the picture networks, when there are pictures (`CoderConfig.depth`).
        act: activation of all of these but pictures: "mish", or "silu", which a processor computes in half the time.
        critics: members of the ensemble.
        world_config: a whole world configuration, instead of `latent` to `act`, and `rho`.
        gamma: discount per decision.
        rho: factor on the losses of each further step.
        value_scale: weight of the critics' loss beside the world's.
        entropy_scale: weight of the actor's entropy, times the width of an action.
        slow_rate: how fast the slow critics follow (each update).
        candidates: plans tried in an iteration of the search, the actor's among them.
        elites: how many of them the next iteration is fitted to.
        iterations: of the search.
        actor_plans: how many of the plans tried are the actor's.
        temperature: factor on the returns of plans, whose exponentials are their weights.
        min_std: smallest deviation of the belief over continuous actions.
        max_std: largest, and that of the first draws.
        clip: largest gradient norm of world and critics, and of the actor.
        options: the rest of `WorldModelAgent`'s arguments.

    Example:
        >>> small = {"batch_size": 4, "latent": 16, "units": 16, "candidates": 16, "elites": 4, "actor_plans": 2}
        >>> agent = TDMPC2("Pendulum-v1", learning_starts=40, pretrain=1, iterations=2, seed=0, **small)
        >>> agent.learn(45).num_timesteps
        45
    """

    world: TOLD
    policy: TDMPC2Policy

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float | Schedule = 3e-4,
        encoder_rate: float = 0.3,
        batch_size: int = 256,
        horizon: int = 3,
        train_freq: int | None = 1,
        learning_starts: int = 2500,
        pretrain: int | None = None,
        latent: int = 512,
        units: int = 512,
        encoder_units: int = 256,
        depth: int = 16,
        act: Activation = "mish",
        critics: int = 5,
        world_config: TOLDConfig | None = None,
        gamma: float = 0.99,
        rho: float = 0.5,
        value_scale: float = 0.1,
        entropy_scale: float = 1e-4,
        slow_rate: float = 0.01,
        candidates: int = 512,
        elites: int = 64,
        iterations: int = 6,
        actor_plans: int = 24,
        temperature: float = 0.5,
        min_std: float = 0.05,
        max_std: float = 2.0,
        clip: float = 20.0,
        **options: Any,
    ) -> None:
        self.encoder_rate, self.horizon, self.critics = encoder_rate, horizon, critics
        self.latent, self.units, self.encoder_units, self.depth = latent, units, encoder_units, depth
        self.act = act
        self.gamma, self.rho, self.value_scale = gamma, rho, value_scale
        self.entropy_scale, self.slow_rate, self.clip = entropy_scale, slow_rate, clip
        self.candidates, self.elites, self.iterations = candidates, elites, iterations
        self.actor_plans, self.temperature, self.min_std, self.max_std = actor_plans, temperature, min_std, max_std
        self._check_own_arguments()
        self.mppi = MPPI(horizon, candidates, iterations, elites, temperature, 0.0, min_std, max_std, first_std=max_std)
        self.world_config = world_config or self._world_config()
        if train_freq is not None:
            refuse_ignored("TDMPC2 with a train_freq", WorldModelAgent, options, ("train_ratio",))
        super().__init__(
            env,
            policy,
            learning_rate=learning_rate,
            batch_size=batch_size,
            train_freq=train_freq,
            learning_starts=learning_starts,
            pretrain=max(1, learning_starts) if pretrain is None else pretrain,
            **{"batch_length": horizon + 1, **options},
        )

    def _check_own_arguments(self) -> None:
        check_whole(self, {"horizon": 1, "latent": 8, "units": 1, "encoder_units": 1, "depth": 1, "critics": 2})
        check_whole(self, {"candidates": 1, "elites": 1, "iterations": 1, "actor_plans": 0})
        check_range(self, ("gamma", "rho", "slow_rate"), high=1.0)
        check_range(self, ("encoder_rate", "value_scale", "entropy_scale", "clip", "temperature", "min_std", "max_std"))
        if self.actor_plans >= self.candidates:
            raise ValueError(
                f"actor_plans={self.actor_plans} leaves nothing to search: keep it below candidates={self.candidates}."
            )

    # -- networks ---------------------------------------------------------------------------------------------

    def _world_config(self) -> TOLDConfig:
        pictures: dict[str, Any] = {**PATCHES, "depth": self.depth}
        return TOLDConfig(
            latent=self.latent,
            units=self.units,
            act=self.act,
            encoder=CoderConfig(
                units=self.encoder_units, layers=1, act=self.act, init="small", symlog=False, **pictures
            ),
            decoder=CoderConfig(units=self.encoder_units, layers=2, **pictures),
            rho=self.rho,
        )

    def _build_world(self) -> World:
        return TOLD(self.observation_space, self.action_space, self.world_config)  # type: ignore[arg-type]

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        features, actions = world.feature_size, action_size(self.action_space)
        actor = Actor(features, self.action_space, 2, self.units, "squashed_normal", self.act, init="small")
        critics = CriticEnsemble(features, actions, self.critics, self.units, act=self.act)
        slow_critics = copy.deepcopy(critics).requires_grad_(False)
        return {"actor": actor, "critics": critics, "slow_critics": slow_critics, "return_range": ReturnRange()}

    def _build_policy(self, world: World) -> WorldModelPolicy:
        behaviour = self._build_behaviour(world)
        own = (world, self.mppi, behaviour, self.actor_plans, self.gamma)
        return TDMPC2Policy(self.observation_space, self.action_space, *own)

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.lr_schedule(1.0)
        world = self.world
        encoder = nn.ModuleList([world.encoder, world.project])
        heads = [world.reward_head] if world.end_head is None else [world.reward_head, world.end_head]
        model = nn.ModuleList([world.dynamics, *heads, self.policy.critics])
        groups = [{"params": [*module.parameters()]} for module in (model, world.decoder)]
        return {
            "encoder": torch.optim.Adam(encoder.parameters(), self.encoder_rate * rate, fused=True),
            "model": torch.optim.Adam(groups, rate, fused=True),
            "actor": torch.optim.Adam(self.policy.actor.parameters(), rate, eps=1e-5, fused=True),
        }

    # -- the algorithm ----------------------------------------------------------------------------------------

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        loss = self._world_loss(batch)
        features = self.world.features(loss.states)
        value_loss = self._value_loss(features, batch)
        norm = self._descend_model(loss.total + self.value_scale * value_loss)
        metrics = self._update_actor(features.detach())
        polyak_update(self.policy.critics.parameters(), self.policy.slow_critics.parameters(), self.slow_rate)
        self.world.follow(self.slow_rate)
        return {**loss.parts, **loss.metrics, "critic_loss": value_loss, "world_grad_norm": norm, **metrics}

    def _value_loss(self, features: Tensor, batch: SequenceBatch) -> Tensor:
        errors = self.policy.critics.loss(features[:-1], batch.action[1:], self._targets(batch))
        return (self.world.weights(batch) * errors).sum()

    @torch.no_grad()
    def _targets(self, batch: SequenceBatch) -> Tensor:
        """`y` `(T - 1, B)`, from what was seen, not from what was foretold."""
        reached = self.world.features(self.world.encode(batch.observation))[1:]
        action = self.policy.actor(reached).sample(self.noise)
        members = pick_two(self.policy.slow_critics, self.noise)
        value = self.policy.slow_critics(reached, action, members).amin(0)
        return batch.reward[1:] + self.gamma * ~batch.is_terminal[1:] * value

    def _descend_model(self, loss: Tensor) -> Tensor:
        """One step of world and critics; the decoder, from which nothing learns, has no part in the clipping."""
        self.checks.require_finite({"world's and critics' loss": loss})
        for name in ("encoder", "model"):
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        learning = [p for name in ("encoder", "model") for p in self.optimizers[name].param_groups[0]["params"]]
        norm = nn.utils.clip_grad_norm_(learning, self.clip, foreach=True)
        for name in ("encoder", "model"):
            self.optimizers[name].step()
        return norm

    def _update_actor(self, features: Tensor) -> dict[str, Tensor]:
        """One step of the actor on latents `(T, B, Z)`."""
        critics = self.policy.critics
        policy = self.policy.actor(features)
        action = policy.sample(self.noise)
        with frozen(critics):
            values = critics(features, action, pick_two(critics, self.noise))
        objective, metrics = self._objective(values, policy)
        powers = self.world.config.rho ** torch.arange(len(features), device=features.device)
        loss = -(powers[:, None] * objective).mean()
        norm = self._descend("actor", loss, self.policy.actor)
        return {"actor_loss": loss, "actor_grad_norm": norm, "value": values.mean(), **metrics}

    def _objective(self, values: Tensor, policy: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What the actor climbs, `(T, B)`, from two critics' `values` `(2, T, B)` of its draws; scalars for the log."""
        worth = self.policy.worth(values)
        scale = self.policy.return_range.update(worth[0])  # of states that were seen; those after it are foretold
        entropy = policy.entropy()
        weight = self.entropy_scale * action_size(self.action_space)
        objective = worth / scale + weight * entropy
        return objective, {"actor_entropy": entropy.mean(), "return_scale": scale}


def pick_two(critics: CriticEnsemble, noise: Noise) -> Tensor:
    """The numbers of two members, at random."""
    return noise.uniform(critics.members).topk(2).indices
