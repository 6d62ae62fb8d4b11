"""TD-MPC: Hansen et al., "Temporal Difference Learning for Model Predictive Control" (2022).

loop: as TD-MPC2's (`agents.tdmpc2`), with
      z_t compared with a slow encoder's, latents as they come, rewards and values by squared error
      an actor without chance, a <- tanh(pi(z)) + noise of deviation 0.05
      plans of 1 to H steps, whose belief is as wide as 0.5, falling to 0.05, while they grow
      actor <- actor + grad sum_t rho^t min of 2 critics(z_t, actor(z_t))
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor, nn

from agents.arguments import check_range, check_whole
from agents.critics import CriticEnsemble
from agents.planners import MPPI
from agents.policy import WorldModelPolicy
from agents.tdmpc2 import TDMPC2, TDMPC2Policy
from wmgym.nets.coders import CoderConfig
from wmgym.nets.mlp import MLP
from wmgym.random import Noise
from wmgym.spaces import SpaceError, action_size
from wmgym.worlds.base import World
from wmgym.worlds.tdmpc import TOLDConfig


class NoisyAction(NamedTuple):
    """An action with noise, cut off at -1 and 1; its gradient is the mean's."""

    mean: Tensor  # (..., A)
    std: float

    def sample(self, noise: Noise) -> Tensor:
        """A draw in [-1, 1]."""
        draw = (self.mean + self.std * noise.normal(*self.mean.shape)).clamp(-1, 1)
        return self.mean + (draw - self.mean).detach()

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean


class NoisyActor(nn.Module):
    """One action for each state, and noise that is the same everywhere.

    Args:
        features: width of the features.
        actions: width of an action.
        units: width of the two hidden layers.
        std: deviation of the noise.
    """

    def __init__(self, features: int, actions: int, units: int, std: float) -> None:
        super().__init__()
        self.net = MLP(features, actions, 2, units, "elu", "none")
        self.std = std

    def forward(self, features: Tensor) -> NoisyAction:
        """The action at features `(..., F)`."""
        return NoisyAction(torch.tanh(self.net(features)), self.std)


class TDMPCPolicy(TDMPC2Policy):
    """TD-MPC2's policy with a search that grows: plans are `reach` steps long, their belief at least `breadth` wide.

    Args:
        arguments: `TDMPC2Policy`'s.
    """

    reach: Tensor
    breadth: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("reach", torch.tensor(1))
        self.register_buffer("breadth", torch.tensor(self.planner.min_std))

    def worth(self, values: Tensor) -> Tensor:
        """See `TDMPC2Policy.worth`; the least."""
        return values.amin(0)

    def present_planner(self) -> MPPI:
        """See `TDMPC2Policy.present_planner`."""
        least = max(self.planner.min_std, self.breadth.item())
        return replace(self.planner, horizon=int(self.reach.item()), min_std=least)

    def search(self, state: Any, start: Tensor | None, noise: Noise, exploring: bool) -> tuple[Tensor, Tensor]:
        """See `PlanningPolicy.search`; what lies beyond the reach is zero."""
        whole, reach = self.planner.horizon, int(self.reach.item())
        action, plan = super().search(state, None if start is None else start[:reach], noise, exploring)
        return action, torch.cat([plan, plan.new_zeros(whole - reach, *plan.shape[1:])])


class TDMPC(TDMPC2):
    """TD-MPC, for continuous actions.

    What differs from the paper: sequences are drawn evenly instead of by priority; layers of the critics are all
    normalised.

    Args:
        env: see `WorldModelAgent`, as for every argument that neither stands here nor is `TDMPC2`'s.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's, for world, critics and actor.
        encoder_rate: factor on it for the world's encoder.
        batch_size: sequences in a batch.
        horizon: H, the longest plans, and steps of the world's predictions while it learns.
        latent: width of the latent.
        annealing: decisions, from the very first, in which plans grow from 1 to H steps and their belief's smallest
            deviation falls from `first_std` to `min_std`, which is that of the actor's noise.
        first_std: first of the belief's smallest deviations.
        value_scale: weight of the critics' loss, the mean over both (the paper: 0.1 times the sum).
        slow_rate: how fast slow critics and the slow encoder follow (the paper: 0.01 at every other update).
        clip: largest gradient norm.
        options: the rest of `TDMPC2`'s and `WorldModelAgent`'s arguments.

    Example:
        >>> small = {"batch_size": 4, "units": 16, "candidates": 16, "elites": 4, "actor_plans": 2, "iterations": 2}
        >>> agent = TDMPC("Pendulum-v1", learning_starts=40, pretrain=1, annealing=10, seed=0, **small)
        >>> agent.learn(55).num_timesteps, int(agent.policy.reach)
        (55, 5)
    """

    policy: TDMPCPolicy

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float | Schedule = 1e-3,
        encoder_rate: float = 1.0,
        batch_size: int = 512,
        horizon: int = 5,
        latent: int = 50,
        annealing: int = 25_000,
        first_std: float = 0.5,
        value_scale: float = 0.2,
        slow_rate: float = 0.005,
        clip: float = 10.0,
        **options: Any,
    ) -> None:
        self.annealing, self.first_std = annealing, first_std
        check_whole(self, {"annealing": 1})
        check_range(self, ("first_std",))
        given = {"act": "elu", "critics": 2, "candidates": 537, "actor_plans": 25, "min_std": 0.05, **options}
        super().__init__(
            env,
            policy,
            learning_rate=learning_rate,
            encoder_rate=encoder_rate,
            batch_size=batch_size,
            horizon=horizon,
            latent=latent,
            value_scale=value_scale,
            slow_rate=slow_rate,
            clip=clip,
            **given,
        )

    # -- networks ---------------------------------------------------------------------------------------------

    def _world_config(self) -> TOLDConfig:
        plain: dict[str, Any] = {"act": self.act, "norm": "none", "image": "patches", "depth": self.depth}
        plain |= {"image_act": "silu", "image_norm": "layer"}
        coder = CoderConfig(units=self.encoder_units, layers=1, symlog=False, **plain)
        return TOLDConfig(
            latent=self.latent,
            group=0,
            units=self.units,
            act=self.act,
            norm="none",
            init="torch",
            reward="mse",
            slow_targets=True,
            encoder=coder,
            decoder=replace(coder, layers=2, act="silu", norm="layer", symlog=True),
            rho=self.rho,
            consistency_scale=2.0,
            reward_scale=0.5,
        )

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        if not isinstance(self.action_space, spaces.Box):
            raise SpaceError(
                f"TDMPC needs continuous actions (a Box), not {self.action_space}: TDMPC2 has discrete ones too."
            )
        actions = action_size(self.action_space)
        critics = CriticEnsemble(world.feature_size, actions, self.critics, self.units, bins=0, act=self.act)
        return {
            "actor": NoisyActor(world.feature_size, actions, self.units, self.min_std),
            "critics": critics,
            "slow_critics": copy.deepcopy(critics).requires_grad_(False),
        }

    def _build_policy(self, world: World) -> WorldModelPolicy:
        search = replace(self.mppi, momentum=0.1)
        own = (world, search, self._build_behaviour(world), self.actor_plans, self.gamma)
        policy = TDMPCPolicy(self.observation_space, self.action_space, *own)
        policy.breadth.fill_(self.first_std)
        return policy

    def _become(self, manifest: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> None:
        if (std := tensors.pop("agent/actor.std", None)) is not None:  # where files of before have it
            tensors["agent/breadth"] = std
        super()._become(manifest, tensors, source)

    # -- the algorithm ----------------------------------------------------------------------------------------

    def _decide(self) -> Tensor:
        progress = min(1.0, self.num_timesteps / self.annealing)
        breadth = self.first_std + progress * (self.min_std - self.first_std)
        # A search that has grown stays: a second call of `learn` may count decisions from zero again.
        self.policy.breadth.clamp_(max=breadth)
        self.policy.reach.clamp_(min=int(1 + progress * (self.horizon - 1)))
        return super()._decide()

    def _objective(self, values: Tensor, policy: NoisyAction) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TDMPC2._objective`; no entropy, and nothing is scaled."""
        return self.policy.worth(values), {}
