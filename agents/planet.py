"""PlaNet: Hafner et al., "Learning Latent Dynamics for Planning from Pixels" (2019).

    collect S episodes at random
    loop: C times   draw B sequences of L steps
                    world <- world - grad [ -ln p(o) - 10 ln p(r) + max(0, KL(q || p) - 3) ]
          once      act for an episode: at every decision filter the state, plan with CEM in the world, add noise

There is no policy and no value: `predict` plans. The other dynamics and objectives of the paper are one argument each,
`dynamics`, `latent_overshooting`, `observation_overshooting`, `global_prior`; the other planners `planner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from agents.arguments import check_choices, check_range, check_whole, refuse_ignored
from agents.base import WorldModelAgent
from agents.planners import CEM, PLANNERS, Planner
from agents.planning import PlanningPolicy
from agents.policy import WorldModelPolicy
from wmgym.nets.coders import PATCHES, ImageNet, normal_coder
from wmgym.nets.mlp import Activation, Norm
from wmgym.worlds.base import SequenceBatch, World
from wmgym.worlds.config import HeadConfig, RSSMConfig
from wmgym.worlds.family import DYNAMICS

Dynamics = Literal["rssm", "ssm", "rnn", "dmm_observation", "dmm_dynamics"]


class PlaNet(WorldModelAgent):
    """PlaNet, with the paper's settings as defaults (the paper sees pictures: `observation="pixels"`).

    Unlike the other agents it learns between episodes, `updates_per_episode` times, and its first episodes are random;
    give `updates_per_episode=None` to learn as the others do, by `train_ratio` and `learning_starts`.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        dynamics: "rssm", "ssm", "rnn", or the deep Markov models "dmm_observation" and "dmm_dynamics" (see
            `wmgym.worlds.family`).
        learning_rate: Adam's.
        seed_episodes: S, random ones to begin with.
        updates_per_episode: C; as many come before the first planned episode. None: by `train_ratio`.
        exploration_noise: deviation of the Gaussian noise on continuous actions while collecting; for discrete actions
            the probability of a random one.
        planner: "cem", "mppi" or "random".
        horizon: H, steps of a plan.
        candidates: plans tried in an iteration.
        elites: how many of them the next iteration is fitted to ("cem", "mppi").
        iterations: of the search; None: 10, for "random" 1, which is all it can have.
        warm_start: begin each search around the rest of the last plan.
        temperature: of the world's chance while plans are tried: 1 draws each step from the prior, as the paper does,
            0 takes the prior's mean, which tells plans apart with fewer of them.
        deter: width of the deterministic state.
        stoch: number of latents.
        units: width of the layers of the heads, and of those that see vectors.
        image: network for pictures, where there are some: the paper's convolutions ("dreamer"), DreamerV3's ("v3"), or
            the flagship's layers over patches in bfloat16 ("patches", the fastest).
        depth: width of it (`CoderConfig.depth`): channels of the paper's first convolution.
        picture_scale: precision of the Normal that pictures are judged by.
        picture_share: share of the frames that each update reconstructs.
        act: of the layers, those of pictures apart: "relu", "elu", "silu", "mish" or "tanh".
        norm: of the same layers: "none", "layer" or "rms".
        free_nats: divergence of a step that costs nothing.
        reward_scale: weight of the reward's log likelihood.
        vector_scale: precision (one over the variance) of the Normal that vectors are judged by; rewards have the
            paper's 1.
        standardize: see and judge vectors in units of their deviation (`RSSMConfig.standardize`).
        latent_overshooting: D; predictions up to D steps ahead are trained on the posterior (1: off).
        overshooting_weights: beta_1 to beta_D of them; None: all 1.
        observation_overshooting: predictions up to so many steps ahead are trained on observations and rewards.
        global_prior: weight of the divergence from a fixed standard normal distribution.
        world_config: a whole world configuration, instead of the seventeen above; its kind is `dynamics`.
        ema: decay of the running average of the learner's weights, which is the world that acts, dreams and is saved.
            0, as in the paper: the learner is the world.
        clip: largest gradient norm.
        options: the rest of `WorldModelAgent`'s arguments.

    Example:
        >>> small = {"batch_size": 2, "batch_length": 8, "units": 16, "candidates": 16, "elites": 4, "iterations": 2}
        >>> agent = PlaNet("Pendulum-v1", seed_episodes=1, updates_per_episode=1, seed=0, **small)
        >>> agent.learn(210).num_timesteps
        210
    """

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        dynamics: Dynamics = "rssm",
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 50,
        batch_length: int = 50,
        seed_episodes: int = 5,
        updates_per_episode: int | None = 100,
        learning_starts: int = 0,
        exploration_noise: float = 0.3,
        planner: Literal["cem", "mppi", "random"] = "cem",
        horizon: int = 12,
        candidates: int = 1000,
        elites: int = 100,
        iterations: int | None = None,
        warm_start: bool = False,
        temperature: float = 1.0,
        deter: int = 200,
        stoch: int = 30,
        units: int = 300,
        image: ImageNet = "dreamer",
        depth: int = 32,
        picture_scale: float = 1.0,
        picture_share: float = 1.0,
        act: Activation = "relu",
        norm: Norm = "none",
        free_nats: float = 3.0,
        reward_scale: float = 10.0,
        vector_scale: float = 1.0,
        standardize: bool = False,
        latent_overshooting: int = 1,
        overshooting_weights: Sequence[float] | None = None,
        observation_overshooting: int = 0,
        global_prior: float = 0.0,
        world_config: RSSMConfig | None = None,
        ema: float = 0.0,
        clip: float = 1000.0,
        **options: Any,
    ) -> None:
        self.dynamics, self.planner = dynamics, planner
        check_choices(self, {"dynamics": DYNAMICS, "planner": PLANNERS})
        if updates_per_episode is not None:
            refuse_ignored("PlaNet", WorldModelAgent, options, ("train_ratio", "train_freq", "gradient_steps"))
        self.seed_episodes, self.updates_per_episode = seed_episodes, updates_per_episode
        check_whole(self, {"seed_episodes": 0} | ({} if updates_per_episode is None else {"updates_per_episode": 1}))
        self.exploration_noise, self.ema, self.clip = exploration_noise, ema, clip
        self.horizon, self.candidates, self.elites = horizon, candidates, elites
        self.iterations, self.warm_start, self.temperature = iterations, warm_start, temperature
        check_range(self, ["temperature"])
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be at least 0 and less than 1, not {ema}.")
        self.search = _search(planner, horizon, candidates, elites, iterations)
        self.deter, self.stoch, self.units, self.depth = deter, stoch, units, depth
        self.image, self.picture_scale, self.picture_share = image, picture_scale, picture_share
        check_choices(self, {"image": get_args(ImageNet)})
        check_range(self, ["picture_scale"])
        check_range(self, ["picture_share"], high=1.0)
        self.act, self.norm = act, norm
        self.free_nats, self.reward_scale, self.vector_scale = free_nats, reward_scale, vector_scale
        self.standardize = standardize
        self.latent_overshooting, self.observation_overshooting = latent_overshooting, observation_overshooting
        self.overshooting_weights = None if overshooting_weights is None else tuple(overshooting_weights)
        self.global_prior = global_prior
        self.world_config = world_config or self._paper_world()
        super().__init__(
            env,
            policy,
            learning_rate=learning_rate,
            batch_size=batch_size,
            batch_length=batch_length,
            learning_starts=learning_starts,
            **{"pretrain": updates_per_episode or 1, **options},
        )

    # -- networks ---------------------------------------------------------------------------------------------

    def _paper_world(self) -> RSSMConfig:
        coder = replace(normal_coder(self.units, 2, self.act, self.depth), norm=self.norm, image=self.image)
        if self.image == "patches":
            coder = replace(coder, **PATCHES, bfloat16=True)
        return RSSMConfig(
            stoch=self.stoch,
            deter=self.deter,
            hidden=self.deter,
            act=self.act,
            norm=self.norm,
            init="glorot",
            encoder=coder,
            decoder=coder,
            reward=HeadConfig(layers=3, units=self.units, likelihood="normal"),
            continues=None,
            kl_balance=None,
            free_nats=self.free_nats,
            free_per_step=True,
            vector_scale=self.vector_scale,
            standardize=self.standardize,
            reward_scale=self.reward_scale,
            picture_bits=5,
            picture_scale=self.picture_scale,
            picture_share=self.picture_share,
            latent_overshooting=self.latent_overshooting,
            overshooting_weights=self.overshooting_weights,
            observation_overshooting=self.observation_overshooting,
            global_prior=self.global_prior,
        )

    def _build_world(self) -> World:
        return DYNAMICS[self.dynamics](self.observation_space, self.action_space, self.world_config)  # type: ignore[arg-type]

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        return {"learner": deepcopy(world)} if self.ema else {}

    def _build_policy(self, world: World) -> WorldModelPolicy:
        return PlanningPolicy(
            self.observation_space,
            self.action_space,
            world,
            self.search,
            self.warm_start,
            self.temperature,
            self._build_behaviour(world),
        )

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.lr_schedule(1.0)
        return {"world": torch.optim.Adam(self.learner.parameters(), rate, eps=1e-4, fused=True)}

    # -- the algorithm ----------------------------------------------------------------------------------------

    def _decide(self) -> Tensor:
        if self._episode_num >= self.seed_episodes:
            return super()._decide()
        assert self._carry is not None
        self._carry = self._carry._replace(action=self._random_action())
        return self._carry.action

    def _earn_updates(self) -> None:
        if self._episode_num >= self.seed_episodes:
            super()._earn_updates()

    def _updates_earned(self) -> float:
        if self.updates_per_episode is None:
            return super()._updates_earned()
        return self.updates_per_episode * float(self._last_episode_starts.sum())  # type: ignore[union-attr]

    @property
    def learner(self) -> World:
        """What is trained: the world itself, or with `ema` that of which the world is the average."""
        return self.policy.learner if self.ema else self.world

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        loss = self._world_loss(batch, self.learner)
        norm = self._descend("world", loss.total, self.learner)
        if self.ema:
            self._average()
        return {**loss.parts, **loss.metrics, "world_grad_norm": norm}

    def _average(self) -> None:
        """Move the world towards the learner, at first faster: its earliest weights are soon forgotten."""
        share = max(1 - self.ema, 9 / (10 + self._n_updates))
        polyak_update(self.learner.parameters(), self.world.parameters(), share)
        for mine, learnt in zip(self.world.buffers(), self.learner.buffers(), strict=True):
            mine.copy_(learnt)


def _search(name: str, horizon: int, candidates: int, elites: int, iterations: int | None) -> Planner:
    kind = PLANNERS[name]
    settings = {"horizon": horizon, "candidates": candidates}
    if iterations is not None:
        settings["iterations"] = iterations
    if issubclass(kind, CEM):
        settings["elites"] = elites
    return kind(**settings)
