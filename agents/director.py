"""Director: Hafner et al., "Deep Hierarchical Planning from Pixels" (2022).

    loop: act       every K steps the manager chooses a goal; the worker acts toward it
          world     <- as Dreamer's
          goals     <- goals - grad [ |h - dec(z)|^2 + KL(enc(h) || uniform) ],  z ~ enc(h)      h: posterior `deter`
          dream H steps, a new goal g = dec(z), z ~ manager(f), every K of them
          worker    <- as Dreamer's actor and critic, on the H / K pieces, r_t = max_cosine(g, h_{t+1})
          manager   <- manager + grad [ ln p(z) A + entropy ],  A of two returns over whole pieces:
                       of the world's rewards, and of a tenth of the goals' error, where no goal has been yet

The world is the flagship's, and so is how the worker learns (`Dreamer._update_behaviour`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn

from agents.actors import Actor, Critic
from agents.arguments import check_range, check_whole
from agents.dreamer import Dreamer
from agents.goals import GoalAutoencoder, GoalDirected, Manager, Pressure, max_cosine
from agents.imagination import (
    ReturnRange,
    Rollout,
    frozen,
    imagine_rollout,
    lambda_returns,
    matmul_precision,
    reach_weights,
)
from agents.policy import Carry, WorldModelPolicy, extended
from wmgym.random import Noise
from wmgym.worlds.base import Observation, SequenceBatch, World, detach_state, flatten_state, index_state, map_state

_REWARDS = ("task", "novelty")
"""What the manager is paid for."""


class DirectorPolicy(WorldModelPolicy):
    """Asks a manager for a goal every `every` steps, and a worker how to get there.

    The goal, and how many steps ago it was chosen, are two more leaves of the state that is carried from step to step.

    Args:
        observation_space: of the environment.
        action_space: of the environment, in its own units.
        world: filters observations into states.
        behaviour: `actor` (the worker), `manager` and `goals`, and what they learn with.
        every: K.
    """

    manager: Manager
    goals: GoalAutoencoder

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        world: World,
        behaviour: dict[str, nn.Module],
        every: int,
    ) -> None:
        super().__init__(observation_space, action_space, world, behaviour)
        self.every = every
        self._state_kind = type(world.initial(1))
        self._with_goal = extended(self._state_kind, "goal", "age")

    def initial_carry(self, batch_size: int) -> Carry:
        """See `WorldModelPolicy.initial_carry`; the goal is zero, `(B, D)`, and as old as goals become, `(B, 1)`."""
        state, action = super().initial_carry(batch_size)
        age = torch.full((batch_size, 1), float(self.every), device=self.world.device)
        return Carry(self._with_goal(*state, torch.zeros_like(state.deter), age), action)

    @torch.no_grad()
    def step(
        self, carry: Carry, observation: Observation, is_first: Tensor, noise: Noise, deterministic: bool = False
    ) -> Carry:
        """See `WorldModelPolicy.step`."""
        *leaves, goal, age = carry.state
        state = self.world.observe(self._state_kind(*leaves), carry.action, observation, is_first, noise)
        features = self.world.features(state)
        codes = self.manager(features)
        wanted = self.goals.decode(codes.mode() if deterministic else codes.sample(noise))
        new = (age >= self.every) | is_first[:, None]
        goal, age = torch.where(new, wanted, goal), torch.where(new, torch.ones_like(age), age + 1)
        worker = self.actor(torch.cat([features, goal], -1))
        action = worker.mode() if deterministic else worker.sample(noise)
        return Carry(self._with_goal(*detach_state(state), goal, age), action)


class Director(Dreamer):
    """Director, over the flagship's world.

    What differs from the paper: the world and the way the worker learns are `Dreamer`'s (Gaussian latents, a fixed
    weight of the worker's entropy, slow critics that follow at every update), and returns are scaled by their range
    instead of their deviation.

    Args:
        env: see `Dreamer`, as for every argument that is not listed here.
        policy: see `WorldModelAgent`.
        every: K, steps between two goals.
        horizon: imagined steps, a multiple of `every`.
        imagine_starts: how many of a batch's posterior states dreams start from; None: all.
        codes: choices that make up a goal.
        classes: among how many each is.
        goal_layers: hidden layers of the goals' encoder and decoder.
        goal_nats: what the divergence of the goals' codes from uniform is held at.
        novelty_scale: weight of the manager's reward for states that no goal stands for yet.
        manager_entropy: share of the largest entropy that the manager's is held at.
        manager_learning_rate: Adam's, for manager, its critics and the goals.
        options: the rest of `Dreamer`'s arguments.

    Example:
        >>> small = {"batch_size": 2, "batch_length": 8, "units": 16, "deter": 16, "goal_layers": 1}
        >>> agent = Director("Pendulum-v1", learning_starts=40, seed=0, **small)
        >>> agent.learn(60).num_timesteps
        60
    """

    policy: DirectorPolicy

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        every: int = 8,
        horizon: int = 16,
        imagine_starts: int | None = 128,
        codes: int = 8,
        classes: int = 8,
        goal_layers: int = 2,
        goal_nats: float = 10.0,
        novelty_scale: float = 0.1,
        manager_entropy: float = 0.5,
        manager_learning_rate: float = 3e-4,
        **options: Any,
    ) -> None:
        self.every, self.codes, self.classes, self.goal_layers = every, codes, classes, goal_layers
        self.goal_nats, self.novelty_scale, self.manager_entropy = goal_nats, novelty_scale, manager_entropy
        self.manager_learning_rate = manager_learning_rate
        check_whole(self, {"every": 1, "codes": 1, "classes": 2, "goal_layers": 1})
        check_range(self, ("goal_nats", "novelty_scale", "manager_learning_rate"))
        check_range(self, ("manager_entropy",), high=1.0)
        if horizon % self.every:
            raise ValueError(f"horizon={horizon} must be a multiple of every={self.every}, the steps to each goal.")
        super().__init__(env, policy, horizon=horizon, imagine_starts=imagine_starts, **options)

    # -- networks ---------------------------------------------------------------------------------------------

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        deter = world.initial(1).deter.shape[-1]
        aware = world.feature_size + deter  # the worker and its critic know the goal
        modules: dict[str, nn.Module] = {
            "actor": Actor(aware, self.action_space, layers=3, units=self.units),
            "critic": Critic(aware, layers=3, units=self.units, out_scale=0.0),
            "return_range": ReturnRange(),
            "manager": Manager(world.feature_size, self.codes, self.classes, layers=3, units=self.units),
            "goals": GoalAutoencoder(deter, self.codes, self.classes, self.goal_layers, self.units),
            "goal_pressure": Pressure(self.goal_nats, start=0.1, most=1.0),
            "entropy_pressure": Pressure(self.manager_entropy, start=3e-3, most=100.0, downward=False),
        }
        for name in _REWARDS:
            modules[f"{name}_critic"] = Critic(world.feature_size, layers=3, units=self.units, out_scale=0.0)
            modules[f"{name}_range"] = ReturnRange(minimum=1.0 if name == "task" else 1e-3)
        critics = {name: module for name, module in modules.items() if name.endswith("critic")}
        slow = {f"slow_{name}": copy.deepcopy(module).requires_grad_(False) for name, module in critics.items()}
        return modules | slow

    def _build_policy(self, world: World) -> WorldModelPolicy:
        behaviour = self._build_behaviour(world)
        return DirectorPolicy(self.observation_space, self.action_space, world, behaviour, self.every)

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        own = ("manager", "goals", *(f"{name}_critic" for name in _REWARDS))
        more = {
            name: torch.optim.Adam(self._part(name).parameters(), self.manager_learning_rate, eps=1e-5, fused=True)
            for name in own
        }
        return super()._build_optimizers() | more

    def _part(self, name: str) -> Any:
        return getattr(self.policy, name)

    # -- the algorithm ----------------------------------------------------------------------------------------

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        loss = self._world_loss(batch)
        world_norm = self._descend("world", loss.total, self.world)
        states = flatten_state(detach_state(loss.states))
        metrics = {**loss.parts, **loss.metrics, "world_grad_norm": world_norm, **self._update_goals(states.deter)}
        with matmul_precision(self.dream_precision):
            dreams, directed = self._dream_of_goals(index_state(states, self._start_rows(batch)))
            worker = self._update_behaviour(self._worker_dreams(dreams, torch.stack(directed.wanted)))
            manager = self._update_manager(dreams, torch.stack(directed.codes))
        return {**metrics, **worker, **manager}

    def _update_goals(self, deter: Tensor) -> dict[str, Tensor]:
        error, divergence = self.policy.goals.losses(deter, self.noise)
        pressure = self._part("goal_pressure")(divergence.mean())
        self._descend("goals", error.mean() + pressure * divergence.mean(), self.policy.goals)
        return {"goal_error": error.mean(), "goal_nats": divergence.mean()}

    def _dream_of_goals(self, starts: Any) -> tuple[Rollout, GoalDirected]:
        policy = self.policy
        directed = GoalDirected(policy.actor, policy.manager, policy.goals, self.every, self.noise)
        with frozen(self.world):
            through = self.reinforce < 1
            dreams = imagine_rollout(self.world, directed, starts, self.horizon, self.noise, through)  # type: ignore[arg-type]
        return dreams, directed

    def _worker_dreams(self, dreams: Rollout, goals: Tensor) -> Rollout:
        """The pieces between goals `(H / K, N, D)` side by side, `(K, H / K * N, ...)`, paid for coming near them."""
        deter = dreams.features[..., : goals.shape[-1]]
        reward = max_cosine(goals.repeat_interleave(self.every, 0), deter[1:])
        pieces = torch.stack(
            [dreams.features[first : first + self.every + 1] for first in range(0, self.horizon, self.every)], 1
        )  # (K + 1, H / K, N, F): the last state of a piece is the next one's first
        aware = torch.cat([pieces, goals.expand(len(pieces), *goals.shape)], -1).flatten(1, 2)
        return Rollout(
            aware,
            self._cut(dreams.actions),
            self._cut(reward),
            self._cut(dreams.continues),
            map_state(self._cut, dreams.policy),
        )

    def _cut(self, x: Tensor) -> Tensor:
        """Steps `(H, N, ...)` as pieces side by side, `(K, H / K * N, ...)`."""
        return self._piecewise(x).flatten(1, 2)

    def _update_manager(self, dreams: Rollout, codes: Tensor) -> dict[str, Tensor]:
        """One step of the manager and its critics on whole pieces: goals `codes` `(H / K, N, C)`."""
        features = dreams.features[:: self.every].detach()  # (H / K + 1, N, F)
        deter = dreams.features[1:, :, : self.policy.goals.size].detach()
        rewards = {"task": dreams.rewards.detach(), "novelty": self.policy.goals.novelty(deter, self.noise)}
        continues = self._piecewise(dreams.continues.detach())
        reach, discounts = reach_weights(continues), self.gamma * continues.prod(0)
        weights, advantage, metrics = reach_weights(discounts), torch.zeros_like(discounts), {}
        for name, scale in zip(_REWARDS, (1.0, self.novelty_scale), strict=True):
            gained = (reach * self._piecewise(rewards[name])).mean(0)
            above, metrics[f"{name}_return"] = self._judge(name, gained, features, discounts, weights)
            advantage = advantage + scale * above
        policy = self.policy.manager(features[:-1])
        entropy = policy.entropy()
        pressure = self._part("entropy_pressure")(entropy.mean())
        loss = -(weights * (policy.log_prob(codes) * advantage + pressure * entropy)).mean()
        self._descend("manager", loss, self.policy.manager)
        return {**metrics, "manager_entropy": entropy.mean(), "entropy_pressure": pressure}

    def _judge(
        self, name: str, rewards: Tensor, features: Tensor, discounts: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of one of the manager's critics; its scaled advantage `(H / K, N)`, and the mean return."""
        critic, slow = self._part(f"{name}_critic"), self._part(f"slow_{name}_critic")
        values = slow(features).detach()
        returns = lambda_returns(rewards, discounts, values, self.lam)
        scale = self._part(f"{name}_range").update(returns)
        self._descend(f"{name}_critic", (weights * critic.loss(features[:-1], returns)).mean(), critic)
        polyak_update(critic.parameters(), slow.parameters(), self.slow_rate)
        return (returns - values[:-1]) / scale, returns.mean()

    def _piecewise(self, x: Tensor) -> Tensor:
        """Steps `(H, N, ...)` as `(K, H / K, N, ...)`."""
        return x.unflatten(0, (-1, self.every)).transpose(0, 1)
