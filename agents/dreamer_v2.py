"""DreamerV2: Hafner et al., "Mastering Atari with Discrete World Models" (2021).

    world   <- world - grad [ 0.8 KL(sg q || p) + 0.2 KL(q || sg p) - ln p(o) - ln p(r) (- ln p(d)) ]
    dream s_1 .. s_H with the actor from every posterior state s_0
    R_t     = r(s_t) + d(s_t) ((1 - lam) v'(s_{t+1}) + lam R_{t+1}),   R_H = v'(s_H),   t = 0 .. H - 1
    actor   <- actor + grad mean(w_t [ rho ln pi(a_t | s_t) sg(R_{t+1} - v'(s_t)) + (1 - rho) R_{t+1} + eta H(pi) ])
    critic  <- critic + grad mean(w_t ln N(sg R_t; v(s_t), 1)),   w_t = d(s_0) ... d(s_{t-1})
    v'      <- v every 100 updates

The return of a state counts the reward of reaching it, so an action is judged by the return of the state it leads to.
The discount d is 0.99, or predicted where episodes end; at s_0, which was really seen, it is the true one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from agents.actors import Actor, Critic
from agents.arguments import passed_on, refuse_ignored
from agents.dreamer import OF_THE_FLAGSHIP_S_WORLD, ActorGradient, Dreamer
from agents.dreamer_v1 import predicted_discounts
from agents.imagination import Rollout, frozen, lambda_returns, matmul_precision, policy_objective, reach_weights
from agents.policy import WorldModelPolicy
from wmgym.nets.coders import normal_coder
from wmgym.worlds.base import SequenceBatch, State, World, detach_state, flatten_state, index_state, map_state
from wmgym.worlds.rssm import RSSM, HeadConfig, RSSMConfig


class DreamerV2(Dreamer):
    """DreamerV2, with the paper's settings for continuous control as defaults (zoo preset `atari` has the others).

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's, for the world.
        actor_learning_rate: Adam's, for the actor.
        critic_learning_rate: Adam's, for the critic.
        train_ratio: one update per 5 simulator steps, at action repeat 2.
        deter: width of the deterministic state, and of the world's hidden layers.
        stoch: number of categorical latents.
        classes: of each.
        units: width of the layers of heads, actor and critic, and of those that see vectors.
        depth: channels of the first convolution, when there are pictures.
        kl_balance: share of the divergence that trains the prior.
        kl_scale: weight of the divergence.
        free_nats: divergence, as the mean of a batch, that costs nothing.
        vector_scale: precision (one over the variance) of the Normal that vectors are judged by; pictures and rewards
            have the paper's 1.
        pcont: predict whether episodes end. The paper does where they can (Atari, not dm_control): turn it on there.
        pcont_scale: weight of that prediction.
        world_config: a whole world configuration, instead of the eleven above.
        horizon: imagined steps.
        imagine_starts: how many of a batch's posterior states dreams start from; None: all.
        gamma: discount per decision.
        lam: of the lambda-return.
        actor_gradient: "dynamics" (backpropagation through the world), "reinforce", or "auto": the first for
            continuous actions, the second for discrete ones.
        entropy_scale: weight of the actor's entropy.
        exploration_noise: see `Dreamer`; the paper's actor explores by itself.
        slow_every: updates between two copies of the critic to the slow critic.
        weight_decay: share of every weight that an update takes away, at the first learning rate.
        clip: largest gradient norm of each of the three networks.
        options: the rest of `Dreamer`'s and `WorldModelAgent`'s arguments.

    Example:
        >>> small = {"batch_size": 2, "batch_length": 8, "units": 16, "train_ratio": 4.0, "learning_starts": 40}
        >>> DreamerV2("Pendulum-v1", pretrain=1, seed=0, **small).learn(60).num_timesteps
        60
    """

    world: RSSM
    LEAST_HORIZON = 2  # the paper's returns are of all imagined states but the last

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float | Schedule = 3e-4,
        actor_learning_rate: float = 8e-5,
        critic_learning_rate: float = 8e-5,
        batch_size: int = 16,
        batch_length: int = 50,
        train_ratio: float = 320.0,
        learning_starts: int = 1000,
        pretrain: int = 100,
        deter: int = 200,
        stoch: int = 32,
        classes: int = 32,
        units: int = 400,
        depth: int = 48,
        kl_balance: float = 0.8,
        kl_scale: float = 1.0,
        free_nats: float = 1.0,
        vector_scale: float = 1.0,
        pcont: bool = False,
        pcont_scale: float = 1.0,
        world_config: RSSMConfig | None = None,
        horizon: int = 15,
        imagine_starts: int | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        actor_gradient: ActorGradient = "auto",
        entropy_scale: float = 1e-4,
        exploration_noise: float = 0.0,
        slow_every: int = 100,
        weight_decay: float = 1e-6,
        clip: float = 100.0,
        **options: Any,
    ) -> None:
        self.classes, self.kl_balance, self.kl_scale, self.free_nats = classes, kl_balance, kl_scale, free_nats
        self.vector_scale, self.pcont, self.pcont_scale = vector_scale, pcont, pcont_scale
        self.slow_every, self.weight_decay = slow_every, weight_decay
        scales: dict[str, Any] = {"kl_balance": kl_balance, "kl_scale": kl_scale, "free_nats": free_nats}
        scales |= {"vector_scale": vector_scale, "continue_scale": pcont_scale}
        world_config = world_config or v2_world(deter, stoch, classes, units, depth, gamma, pcont, **scales)
        refuse_ignored("DreamerV2", Dreamer, options, (*OF_THE_FLAGSHIP_S_WORLD, "slow_rate"))
        super().__init__(env, policy, **passed_on(Dreamer, locals()), **options)

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        size, space = world.feature_size, self.action_space
        actor = Actor(size, space, 4, self.units, "truncated_normal", "elu", "none", "glorot", min_std=0.1)
        critic = Critic(size, 4, self.units, act="elu", norm="none", init="glorot")
        return {"actor": actor, "critic": critic, "slow_critic": copy.deepcopy(critic).requires_grad_(False)}

    def _optimizer(self, module: nn.Module, rate: float) -> torch.optim.Optimizer:
        # The paper's decay is not multiplied by the learning rate; torch's is.
        decay = self.weight_decay / rate if rate else 0.0
        return torch.optim.AdamW(module.parameters(), rate, eps=1e-5, weight_decay=decay, fused=True)

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        loss = self._world_loss(batch)
        world_norm = self._descend("world", loss.total, self.world)
        rows = self._start_rows(batch)
        starts = index_state(flatten_state(detach_state(loss.states)), rows)
        with matmul_precision(self.dream_precision):
            metrics = self._update_from(starts, batch.is_terminal.flatten()[rows])
        return {**loss.parts, **loss.metrics, "world_grad_norm": world_norm, **metrics}

    def _update_from(self, starts: State, ended: Tensor) -> dict[str, Tensor]:
        """Dream and learn from states `(N, ...)`, of which those where `ended` `(N,)` were an episode's end."""
        dreams = self._dream(starts)
        with frozen(self.world):
            rewards, discounts = self._rewards_and_discounts(dreams, starts, ended)
        values = self.policy.slow_critic(dreams.features)
        returns = lambda_returns(rewards, discounts, values, self.lam)  # R_0 .. R_{H-1}
        weights = reach_weights(discounts)
        actor_loss, metrics = self._actor_loss(dreams, returns, values, weights)
        critic_loss = self.policy.critic.loss(dreams.features[:-1].detach(), returns.detach())
        critic_loss = (weights * critic_loss).mean()
        actor_norm = self._descend("actor", actor_loss, self.policy.actor)
        self._descend("critic", critic_loss, self.policy.critic)
        if self._n_updates % self.slow_every == 0:
            polyak_update(self.policy.critic.parameters(), self.policy.slow_critic.parameters(), 1.0)
        return {
            **metrics,
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "actor_grad_norm": actor_norm,
            "dream_reward": dreams.rewards.mean(),
            "dream_return": returns.mean(),
        }

    def _rewards_and_discounts(self, dreams: Rollout, starts: State, ended: Tensor) -> tuple[Tensor, Tensor]:
        """At the states s_0 .. s_{H-1}, `(H, N)` each."""
        # An RSSM reads the reward of a step from the state it reached, so where the step began does not matter.
        first = self.world.outcome(starts, dreams.actions[0], starts).reward
        rewards = torch.cat([first[None], dreams.rewards[:-1]])
        discounts = predicted_discounts(self.world, dreams.features[:-1], self.gamma)
        if self.world.continue_head is not None:
            discounts = torch.cat([self.gamma * (~ended).to(discounts.dtype)[None], discounts[1:]])
        return rewards, discounts

    def _actor_loss(
        self, dreams: Rollout, returns: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The actions a_0 .. a_{H-2}, each by the return R_1 .. R_{H-1} of the state that it leads to."""
        policy = map_state(lambda x: x[:-1], dreams.policy)
        judged = dreams._replace(actions=dreams.actions[:-1], policy=policy)
        objective = policy_objective(judged, returns[1:], values[:-2], self.reinforce)
        entropy = policy.entropy()
        loss = -(weights[:-1] * (objective + self.entropy_scale * entropy)).mean()
        return loss, {"actor_entropy": entropy.mean()}


def v2_world(
    deter: int, stoch: int, classes: int, units: int, depth: int, gamma: float, pcont: bool, **scales: float
) -> RSSMConfig:
    """DreamerV2's world at the given sizes, with further fields of its configuration."""
    coder = normal_coder(units, 4, "elu", depth, image_act="elu")
    return RSSMConfig(
        latent="categorical",
        stoch=stoch,
        classes=classes,
        cell="layernorm",
        deter=deter,
        hidden=deter,
        act="elu",
        norm="none",
        init="glorot",
        encoder=coder,
        decoder=coder,
        reward=HeadConfig(layers=4, units=units, likelihood="normal"),
        continues=HeadConfig(layers=4, units=units) if pcont else None,
        continue_target=gamma,
        **scales,  # type: ignore[arg-type]
    )
