"""DreamerV1: Hafner et al., "Dream to Control: Learning Behaviors by Latent Imagination" (2020).

    world   <- world - grad [ max(mean KL(q || p), 3) - ln p(o) - ln p(r) (- 10 ln p(c)) ]
    dream s_1 .. s_H with the actor from every posterior state s_0
    R_t     = r(s_t) + d(s_t) ((1 - lam) v(s_{t+1}) + lam R_{t+1}),   R_H = v(s_H),   t = 1 .. H - 1
    actor   <- actor + grad mean(w_t R_t),                w_t = d(s_1) ... d(s_{t-1})
    critic  <- critic + grad mean(w_t ln N(R_t; v(s_t), 1))

The return of a state counts the reward of reaching it, as in the official code. Unlike there, `predict` with
`deterministic=True` takes the squashed mean of the actor's Normal, not the likeliest of 100 draws; vectors are seen by
fully connected layers (the paper has pictures only). Layers begin as TensorFlow's do: PyTorch's begin smaller, and the
critic then grows so slowly that its growth, not its judgement, drives the actor.
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor, nn

from agents.actors import Actor, Critic
from agents.arguments import passed_on, refuse_ignored
from agents.dreamer import OF_THE_FLAGSHIP_S_WORLD, Dreamer
from agents.imagination import Rollout, frozen, lambda_returns, reach_weights
from agents.policy import WorldModelPolicy
from wmgym.nets.coders import normal_coder
from wmgym.worlds.base import SequenceBatch, World
from wmgym.worlds.rssm import RSSM, HeadConfig, RSSMConfig


class DreamerV1(Dreamer):
    """DreamerV1, with the paper's settings for continuous control as defaults.

    Gaussian latents; the actor learns by backpropagation through the dynamics for either kind of action (discrete
    ones straight-through); no slow critic, no entropy.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's, for the world.
        actor_learning_rate: Adam's, for the actor.
        critic_learning_rate: Adam's, for the critic.
        train_ratio: 100 updates per 1000 simulator steps, at action repeat 2.
        deter: width of the deterministic state, and of the world's hidden layers.
        stoch: number of Gaussian latents.
        units: width of the layers of heads, actor and critic, and of those that see vectors.
        depth: channels of the first convolution, when there are pictures.
        free_nats: divergence, as the mean of a batch, that costs nothing.
        vector_scale: precision (one over the variance) of the Normal that vectors are judged by; pictures and rewards
            have the paper's 1.
        pcont: predict whether episodes end. The paper does where they can (Atari, not dm_control): turn it on there.
        pcont_scale: weight of that prediction.
        world_config: a whole world configuration, instead of the eight above.
        horizon: imagined steps.
        imagine_starts: how many of a batch's posterior states dreams start from; None: all.
        gamma: discount per decision.
        lam: of the lambda-return.
        exploration_noise: deviation of the Gaussian noise on continuous actions while collecting; for discrete actions
            the probability of a random one.
        clip: largest gradient norm of each of the three networks.
        options: the rest of `Dreamer`'s and `WorldModelAgent`'s arguments.

    Example:
        >>> small = {"batch_size": 2, "batch_length": 8, "units": 16, "train_ratio": 4.0, "learning_starts": 40}
        >>> DreamerV1("Pendulum-v1", pretrain=1, seed=0, **small).learn(60).num_timesteps
        60
    """

    world: RSSM
    LEAST_HORIZON = 2  # the paper's returns are of all imagined states but the last

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float | Schedule = 6e-4,
        actor_learning_rate: float = 8e-5,
        critic_learning_rate: float = 8e-5,
        batch_size: int = 50,
        batch_length: int = 50,
        train_ratio: float = 500.0,
        learning_starts: int = 2500,
        pretrain: int = 100,
        deter: int = 200,
        stoch: int = 30,
        units: int = 400,
        depth: int = 32,
        free_nats: float = 3.0,
        vector_scale: float = 1.0,
        pcont: bool = False,
        pcont_scale: float = 10.0,
        world_config: RSSMConfig | None = None,
        horizon: int = 15,
        imagine_starts: int | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        exploration_noise: float = 0.3,
        clip: float = 100.0,
        **options: Any,
    ) -> None:
        self.free_nats, self.vector_scale = free_nats, vector_scale
        self.pcont, self.pcont_scale = pcont, pcont_scale
        scales: dict[str, Any] = {"free_nats": free_nats, "vector_scale": vector_scale, "continue_scale": pcont_scale}
        world_config = world_config or v1_world(deter, stoch, units, depth, gamma, pcont, **scales)
        ignored = (*OF_THE_FLAGSHIP_S_WORLD, "actor_gradient", "entropy_scale", "slow_rate")
        refuse_ignored("DreamerV1", Dreamer, options, ignored)
        super().__init__(env, policy, **passed_on(Dreamer, locals()), **options)

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        size, space = world.feature_size, self.action_space
        actor = Actor(size, space, 4, self.units, "tanh_normal", "elu", "none", "glorot", init_std=5.0, min_std=1e-4)
        return {"actor": actor, "critic": Critic(size, 3, self.units, act="elu", norm="none", init="glorot")}

    def _optimizer(self, module: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), rate, eps=1e-7, fused=True)  # TensorFlow's eps

    @property
    def reinforce(self) -> float:
        """Nothing of it: the actor learns through the dynamics."""
        return 0.0

    def _start_rows(self, batch: SequenceBatch) -> Tensor | slice:
        """As `Dreamer`, but where ends are predicted no dream starts after one."""
        if self.world.continue_head is None:
            return super()._start_rows(batch)
        alive = (~batch.is_terminal).flatten().nonzero().squeeze(-1)
        if self.imagine_starts is None or self.imagine_starts >= len(alive):
            return alive
        return alive[self.noise.uniform(len(alive)).topk(self.imagine_starts).indices]

    def _update_behaviour(self, dreams: Rollout) -> dict[str, Tensor]:
        features = dreams.features[1:]  # the states imagined, s_1 .. s_H
        with frozen(self.world, self.policy.critic):
            discounts = predicted_discounts(self.world, features[:-1], self.gamma)
            values = self.policy.critic(features)
            returns = lambda_returns(dreams.rewards[:-1], discounts, values, self.lam)
        weights = reach_weights(discounts)
        actor_loss = -(weights * returns).mean()
        critic_loss = (weights * self.policy.critic.loss(features[:-1].detach(), returns.detach())).mean()
        actor_norm = self._descend("actor", actor_loss, self.policy.actor)
        self._descend("critic", critic_loss, self.policy.critic)
        return {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "actor_grad_norm": actor_norm,
            "actor_entropy": dreams.policy.entropy().mean(),
            "dream_reward": dreams.rewards.mean(),
            "dream_return": returns.mean(),
        }


def predicted_discounts(world: RSSM, features: Tensor, gamma: float) -> Tensor:
    """The discount `(...)` at the states of `features`: gamma, or what the world predicts that it is there.

    The continue head of these papers predicts `gamma` itself where an episode goes on (`continue_target`), so its
    word is taken as it stands; `World.outcome` divides by the target to give a probability.
    """
    if world.continue_head is None:
        return torch.full(features.shape[:-1], gamma, device=features.device)
    predicted = torch.sigmoid(world.continue_head(features).squeeze(-1))
    return predicted * (gamma / world.config.continue_target)


def v1_world(deter: int, stoch: int, units: int, depth: int, gamma: float, pcont: bool, **scales: float) -> RSSMConfig:
    """DreamerV1's world at the given sizes, with further fields of its configuration."""
    coder = normal_coder(units, 2, "elu", depth)
    return RSSMConfig(
        latent="gaussian",
        stoch=stoch,
        min_std=0.1,
        cell="gru",
        deter=deter,
        hidden=deter,
        act="elu",
        norm="none",
        init="glorot",
        encoder=coder,
        decoder=coder,
        reward=HeadConfig(layers=2, units=units, likelihood="normal"),
        continues=HeadConfig(layers=3, units=units) if pcont else None,
        kl_balance=None,
        kl_scale=1.0,
        continue_target=gamma,
        **scales,  # type: ignore[arg-type]
    )
