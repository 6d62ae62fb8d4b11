"""Dreamer: learn a world, learn to act by dreaming in it.

    loop: collect `1 / updates_per_decision` decisions with the actor, add noise, store
          draw B sequences of T steps
          world      <- world - grad loss(sequences)                    posterior states s of every step
          dream H steps with the actor from some of the s                features f, rewards r, continues c
          R          <- lambda_returns(r, gamma c, slow_critic(f))
          actor      <- actor + grad R / scale(R) + entropy             through the dynamics, or REINFORCE
          critic     <- critic - grad (critic(f) - R)^2
          slow_critic <- (1 - tau) slow_critic + tau critic

`Dreamer` is the flagship: the recipe that learns fastest here, whatever paper each part is from. The papers' own
settings are `DreamerV1`, `DreamerV2` and `DreamerV3` in the files beside this one, which override its steps.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from agents.actors import Actor, Critic
from agents.arguments import check_choices, check_range, check_whole
from agents.base import WorldModelAgent
from agents.imagination import (
    ReturnRange,
    Rollout,
    frozen,
    imagine_rollout,
    lambda_returns,
    matmul_precision,
    policy_objective,
    reach_weights,
)
from agents.policy import WorldModelPolicy
from wmgym.nets.coders import PATCHES, CoderConfig
from wmgym.worlds.base import SequenceBatch, State, World, detach_state, flatten_state, index_state
from wmgym.worlds.rssm import RSSM, HeadConfig, RSSMConfig
from wmgym.worlds.tssm import TSSM, TSSMConfig

ActorGradient = Literal["auto", "dynamics", "reinforce"]


OF_THE_FLAGSHIP_S_WORLD = (
    "dynamics",
    "context",
    "picture_share",
    "picture_scale",
    "vector_scale",
    "reward_scale",
    "standardize",
    "foresight",
)
"""Arguments that the papers' agents, whose worlds are the papers', do not have."""


class Dreamer(WorldModelAgent):
    """The flagship agent: an RSSM with Gaussian latents and an actor-critic that learns in its dreams.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's, for the world.
        actor_learning_rate: Adam's, for the actor.
        critic_learning_rate: Adam's, for the critic.
        dynamics: "rssm", or "tssm" for the transformer state-space model (`wmgym.worlds.tssm`), which remembers
            `context` steps by attention.
        context: of a TSSM.
        deter: width of the deterministic state.
        stoch: number of Gaussian latents.
        units: width of every hidden layer.
        depth: width of the picture networks, when there are pictures (`CoderConfig.depth`).
        picture_share: share of the frames that each update reconstructs.
        picture_scale: weight of their squared error.
        vector_scale: weight of the vectors' squared error.
        reward_scale: weight of the reward's.
        standardize: see and judge vectors in units of their deviation (`RSSMConfig.standardize`).
        foresight: let a vector's numbers count by how well the world foretells them (`RSSMConfig.foresight`).
        ensemble: predictors (2 or more) whose disagreement tells what the world does not know; 0: none. They learn
            beside the world and cost little.
        world_config: a whole world configuration, instead of `dynamics` to `foresight`: an `RSSMConfig` or a
            `TSSMConfig`.
        horizon: imagined steps.
        imagine_starts: how many of a batch's posterior states dreams start from; None: all.
        gamma: discount per decision.
        lam: of the lambda-return.
        actor_gradient: "dynamics" (backpropagation through the world), "reinforce", or "auto": the first for
            continuous actions, the second for discrete ones.
        entropy_scale: weight of the actor's entropy.
        exploration_noise: deviation of the Gaussian noise on continuous actions while collecting; for discrete actions
            the probability of a random one.
        slow_rate: how fast the slow critic follows (each update).
        clip: largest gradient norm of each of the three networks.
        dream_precision: of the matrix products while dreaming (their inputs are rounded, their sums are not), on
            processors that have such products; elsewhere always float32.
        options: the rest of `WorldModelAgent`'s arguments.

    Example:
        >>> agent = Dreamer("Pendulum-v1", learning_starts=40, batch_size=2, batch_length=8, seed=0)
        >>> agent.learn(60).num_timesteps
        60
    """

    LEAST_HORIZON = 1
    """Steps of the shortest dream that there are returns of."""

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float | Schedule = 6e-4,
        actor_learning_rate: float = 3e-4,
        critic_learning_rate: float = 3e-4,
        batch_size: int = 16,
        batch_length: int = 32,
        train_ratio: float = 102.4,
        learning_starts: int = 2500,
        dynamics: Literal["rssm", "tssm"] = "rssm",
        context: int = 16,
        deter: int = 200,
        stoch: int = 30,
        units: int = 200,
        depth: int = 16,
        picture_share: float = 0.25,
        picture_scale: float = 1.0,
        vector_scale: float = 50.0,
        reward_scale: float = 50.0,
        standardize: bool = False,
        foresight: bool = True,
        ensemble: int = 0,
        world_config: RSSMConfig | None = None,
        horizon: int = 5,
        imagine_starts: int | None = 307,
        gamma: float = 0.99,
        lam: float = 0.95,
        actor_gradient: ActorGradient = "auto",
        entropy_scale: float = 1e-3,
        exploration_noise: float = 0.1,
        slow_rate: float = 0.02,
        clip: float = 100.0,
        dream_precision: Literal["float32", "bfloat16"] = "bfloat16",
        **options: Any,
    ) -> None:
        self.deter, self.stoch, self.units, self.depth = deter, stoch, units, depth
        self.picture_share, self.picture_scale = picture_share, picture_scale
        self.vector_scale, self.reward_scale = vector_scale, reward_scale
        self.standardize, self.foresight, self.ensemble = standardize, foresight, ensemble
        self.dynamics, self.context = dynamics, context
        check_whole(self, {"deter": 1, "stoch": 1, "units": 1, "depth": 1, "ensemble": 0, "context": 1})
        check_choices(self, {"dynamics": ("rssm", "tssm")})
        config = world_config or flagship_world(
            deter=deter,
            stoch=stoch,
            units=units,
            depth=depth,
            picture_share=picture_share,
            picture_scale=picture_scale,
            vector_scale=vector_scale,
            reward_scale=reward_scale,
            standardize=standardize,
            foresight=foresight,
        )
        if world_config is None and dynamics == "tssm":
            config = TSSMConfig(**vars(config), context=context)
        self.world_config = replace(config, ensemble=self.ensemble) if self.ensemble else config
        self.actor_learning_rate, self.critic_learning_rate = actor_learning_rate, critic_learning_rate
        self.horizon, self.imagine_starts = horizon, imagine_starts
        self.gamma, self.lam, self.actor_gradient = gamma, lam, actor_gradient
        self.entropy_scale, self.exploration_noise = entropy_scale, exploration_noise
        self.slow_rate, self.clip, self.dream_precision = slow_rate, clip, dream_precision
        self._check_behaviour()
        super().__init__(
            env,
            policy,
            learning_rate=learning_rate,
            batch_size=batch_size,
            batch_length=batch_length,
            train_ratio=train_ratio,
            learning_starts=learning_starts,
            **options,
        )

    def _check_behaviour(self) -> None:
        check_whole(
            self, {"horizon": self.LEAST_HORIZON} | ({} if self.imagine_starts is None else {"imagine_starts": 1})
        )
        check_range(self, ("gamma", "lam", "slow_rate", "picture_share"), high=1.0)
        check_range(self, ("actor_learning_rate", "critic_learning_rate", "entropy_scale", "exploration_noise", "clip"))
        check_range(self, ("picture_scale", "vector_scale", "reward_scale"))
        check_choices(self, {"actor_gradient": get_args(ActorGradient), "dream_precision": ("float32", "bfloat16")})

    # -- networks ---------------------------------------------------------------------------------------------

    def _build_world(self) -> World:
        kind = TSSM if isinstance(self.world_config, TSSMConfig) else RSSM
        return kind(self.observation_space, self.action_space, self.world_config)  # type: ignore[arg-type]

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        actor = Actor(world.feature_size, self.action_space, layers=3, units=self.units)
        critic = Critic(world.feature_size, layers=3, units=self.units, out_scale=0.0)
        slow_critic = copy.deepcopy(critic).requires_grad_(False)
        return {"actor": actor, "critic": critic, "slow_critic": slow_critic, "return_range": ReturnRange()}

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "world": self._optimizer(self.policy.world, self.lr_schedule(1.0)),
            "actor": self._optimizer(self.policy.actor, self.actor_learning_rate),
            "critic": self._optimizer(self.policy.critic, self.critic_learning_rate),
        }

    def _optimizer(self, module: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), rate, eps=1e-5, fused=True)

    @property
    def reinforce(self) -> float:
        """Share of REINFORCE in the actor's gradient."""
        if self.actor_gradient == "auto":
            return float(isinstance(self.action_space, spaces.Discrete))
        return float(self.actor_gradient == "reinforce")

    # -- the algorithm ----------------------------------------------------------------------------------------

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        loss = self._world_loss(batch)
        world_norm = self._descend("world", loss.total, self.world)
        with matmul_precision(self.dream_precision):
            states = flatten_state(detach_state(loss.states))
            dreams = self._dream(index_state(states, self._start_rows(batch)))
            metrics = self._update_behaviour(dreams)
        return {**loss.parts, **loss.metrics, "world_grad_norm": world_norm, **metrics}

    def _start_rows(self, batch: SequenceBatch) -> Tensor | slice:
        """Which of the batch's `T * B` posterior states dreams start from: all, or a random few that are no ends."""
        count = batch.reward.numel()
        if self.imagine_starts is None or self.imagine_starts >= count:
            return slice(None)
        chance = self.noise.uniform(count) - batch.is_terminal.flatten().float()  # at an end there is nothing to do
        return chance.topk(self.imagine_starts).indices

    def _dream(self, starts: State) -> Rollout:
        with frozen(self.world):
            return imagine_rollout(
                self.world, self.policy.actor, starts, self.horizon, self.noise, through_dynamics=self.reinforce < 1
            )

    def _update_behaviour(self, dreams: Rollout) -> dict[str, Tensor]:
        discounts = self.gamma * dreams.continues
        with frozen(self.policy.critic):
            values = self.policy.slow_critic(dreams.features)
            returns = lambda_returns(dreams.rewards, discounts, values, self.lam)
        weights = reach_weights(discounts)
        actor_loss, metrics = self._actor_loss(dreams, returns, values, weights)
        critic_loss = (weights * self.policy.critic.loss(dreams.features[:-1].detach(), returns.detach())).mean()
        actor_norm = self._descend("actor", actor_loss, self.policy.actor)
        self._descend("critic", critic_loss, self.policy.critic)
        polyak_update(self.policy.critic.parameters(), self.policy.slow_critic.parameters(), self.slow_rate)
        return {
            **metrics,
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "actor_grad_norm": actor_norm,
            "dream_reward": dreams.rewards.mean(),
            "dream_return": returns.mean(),
        }

    def _actor_loss(
        self, dreams: Rollout, returns: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scale = self.policy.return_range.update(returns)
        objective = policy_objective(dreams, returns / scale, values[:-1] / scale, self.reinforce)
        entropy = dreams.policy.entropy()
        loss = -(weights * (objective + self.entropy_scale * entropy)).mean()
        return loss, {"actor_entropy": entropy.mean(), "return_scale": scale}


def flagship_world(
    deter: int,
    stoch: int,
    units: int,
    depth: int,
    picture_share: float,
    picture_scale: float = 1.0,
    vector_scale: float = 50.0,
    reward_scale: float = 50.0,
    standardize: bool = False,
    foresight: bool = True,
) -> RSSMConfig:
    """The flagship's world at the given sizes; the layers of pictures run in bfloat16."""
    coder = CoderConfig(units=units, layers=2, depth=depth, **PATCHES, bfloat16=True)
    return RSSMConfig(
        deter=deter,
        stoch=stoch,
        hidden=units,
        encoder=coder,
        decoder=coder,
        reward=HeadConfig(layers=2, units=units),
        continues=HeadConfig(layers=1, units=units),
        picture_share=picture_share,
        picture_scale=picture_scale,
        standardize=standardize,
        foresight=foresight,
        vector_scale=vector_scale,
        reward_scale=reward_scale,
        continue_scale=5.0,
    )
