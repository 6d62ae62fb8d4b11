"""How well candidates for a controller do: in dreams, all at once, and in the real environment, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.controllers import Controller
from agents.plannable import PassedOn
from agents.policy import Carry, WorldModelPolicy
from wmgym.random import ModeNoise, Noise
from wmgym.worlds.base import State, World, index_state

Ends = Literal["sample", "threshold", "never"]


class _SharedChance(PassedOn):
    """One stream of chance for each rollout number, which that rollout of every candidate draws from.

    So candidates differ by what they do and hardly by luck: of two that are nearly alike, the better one is found with
    far fewer dreams.

    Args:
        noise: source of the draws.
        rollouts: R.
        rows: `(K,)` the rollout numbers of the dreams that go on.
    """

    def __init__(self, noise: Noise, rollouts: int, rows: Tensor) -> None:
        super().__init__(noise)
        self.rollouts, self.rows = rollouts, rows

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return draw(self.rollouts, *shape[1:])[self.rows]


@torch.no_grad()
def dream_returns(
    world: World,
    controller: Controller,
    candidates: Tensor,
    starts: State,
    rollouts: int,
    horizon: int,
    noise: Noise,
    temperature: float = 1.0,
    ends: Ends = "sample",
) -> tuple[Tensor, int]:
    """How candidates do in dreams, all of them and all their rollouts as one batch; nothing is decoded.

    Args:
        world: dreamt in.
        controller: knows how candidates act.
        candidates: `(P, N)` parameters.
        starts: `(S, ...)` states to begin from.
        rollouts: R, dreams for each candidate. Rollout `r` of every candidate begins in the same state and meets with
            the same chance, as long as they act alike.
        horizon: steps after which a dream is cut.
        noise: source of all draws.
        temperature: of the world.
        ends: whether a dream ends by chance, once continuing is less likely than not, or never.

    Returns:
        Undiscounted predicted returns `(P, R)`, and how many steps were dreamt.
    """
    count = len(candidates)
    places = (noise.uniform(rollouts) * len(starts[0])).long()
    state = index_state(starts, places.repeat(count))
    weights = candidates.repeat_interleave(rollouts, 0)  # (P * R, N)
    rows = torch.arange(len(weights), device=weights.device)  # of the dreams that go on
    chance = _SharedChance(noise, rollouts, rows % rollouts)
    returns = torch.zeros(len(weights), device=weights.device)
    steps = 0
    for _ in range(horizon):
        action = controller.act(world.features(state), weights)
        state, reward, continues = world.imagine(state, action, chance, temperature)
        returns[rows] += reward
        steps += len(rows)
        goes_on = _goes_on(continues, chance, ends)
        if not goes_on.all():
            rows, weights, state = rows[goes_on], weights[goes_on], index_state(state, goes_on)
            chance.rows = rows % rollouts
        if not len(rows):
            break
    return returns.unflatten(0, (count, rollouts)), steps


def _goes_on(continues: Tensor, noise: Noise, ends: Ends) -> Tensor:
    if ends == "never":
        return torch.ones_like(continues, dtype=torch.bool)
    if ends == "threshold":
        return continues >= 0.5
    return noise.uniform(len(continues)) < continues


@torch.no_grad()
def real_returns(env: VecEnv, policy: WorldModelPolicy, candidates: Tensor, rollouts: int) -> tuple[Tensor, int]:
    """How candidates do in the real environment, which each sees through the world's filter without chance.

    Args:
        env: as many episodes at once as it has environments; it is reset first.
        policy: its world filters, its actor knows how candidates act.
        candidates: `(P, N)` parameters.
        rollouts: R, episodes for each candidate.

    Returns:
        Returns `(P, R)`, and how many decisions were taken.
    """
    waiting = deque(range(len(candidates) * rollouts))
    jobs = np.array([waiting.popleft() if waiting else -1 for _ in range(env.num_envs)])  # -1: nothing left to do
    returns = torch.zeros(len(candidates) * rollouts)
    noise, device = ModeNoise(policy.world.device), policy.world.device
    carry, is_first = policy.initial_carry(env.num_envs), np.ones(env.num_envs, bool)
    seen, steps = env.reset(), 0
    while (jobs >= 0).any():
        observation, _ = policy.to_observation(seen)
        first = torch.as_tensor(is_first, device=device)
        state = policy.world.observe(carry.state, carry.action, observation, first, noise)
        weights = candidates[torch.as_tensor(np.maximum(jobs, 0) // rollouts)]
        carry = Carry(state, policy.actor.act(policy.world.features(state), weights))
        seen, rewards, is_first, _ = env.step(policy.to_environment(carry.action))
        busy = np.flatnonzero(jobs >= 0)
        returns[jobs[busy]] += torch.as_tensor(rewards[busy], dtype=torch.float32)
        steps += len(busy)
        for i in np.flatnonzero(is_first & (jobs >= 0)):
            jobs[i] = waiting.popleft() if waiting else -1
    return returns.unflatten(0, (len(candidates), rollouts)), steps
