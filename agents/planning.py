"""Acting by planning: a policy that searches in its world at every step."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.plannable import plannable
from agents.planners import Planner, shifted
from agents.policy import Carry, WorldModelPolicy, extended
from wmgym.random import Noise, TorchNoise
from wmgym.worlds.base import Observation, State, World, detach_state


class PlanningPolicy(WorldModelPolicy):
    """Acts by planning in its world at every step.

    Args:
        observation_space: of the environment.
        action_space: of the environment, in its own units.
        world: filters observations, and is planned in.
        planner: the search.
        warm_start: begin each search around the rest of the last plan, which is then one more leaf of the state that
            is carried from step to step.
        temperature: of the world's chance while plans are tried; 0 tries them in the means of its priors.
        behaviour: modules that a search asks too, by name.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        world: World,
        planner: Planner,
        warm_start: bool = False,
        temperature: float = 1.0,
        behaviour: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, world, behaviour or {})
        self.planner, self.warm_start, self.temperature = planner, warm_start, temperature
        self._state_kind = type(world.initial(1))
        self._with_plan = extended(self._state_kind, "plan")

    def initial_carry(self, batch_size: int) -> Carry:
        """See `WorldModelPolicy.initial_carry`; with warm start the plan is zero, `(B, H, A)`."""
        state, action = super().initial_carry(batch_size)
        if self.warm_start:
            state = self._with_plan(*state, action.unsqueeze(1).repeat(1, self.planner.horizon, 1))
        return Carry(state, action)

    @torch.no_grad()
    def step(
        self, carry: Carry, observation: Observation, is_first: Tensor, noise: Noise, deterministic: bool = False
    ) -> Carry:
        """See one observation `(B, ...)`, and plan. A deterministic decision is searched with the same draws always."""
        leaves = carry.state[:-1] if self.warm_start else carry.state
        before = self._state_kind(*leaves)
        state = detach_state(self.world.observe(before, carry.action, observation, is_first, noise))
        draws = TorchNoise(torch.Generator(self.device).manual_seed(0), self.device) if deterministic else noise
        action, plan = self.search(state, self._start(carry, is_first), draws, not deterministic)
        if self.warm_start:
            state = self._with_plan(*state, plan.transpose(0, 1).contiguous())
        return Carry(state, action)

    def _start(self, carry: Carry, is_first: Tensor) -> Tensor | None:
        """The rest of the last plan, `(H, B, A)`; zero where an episode begins."""
        if not self.warm_start:
            return None
        return shifted(carry.state.plan.transpose(0, 1) * ~is_first[:, None])

    def search(self, state: State, start: Tensor | None, noise: Noise, exploring: bool) -> tuple[Tensor, Tensor]:
        """Plan from `state` `(B, ...)`, around `start` `(H, B, A)`.

        Returns:
            The action `(B, A)`, and the plan `(H, B, A)` that the next search may begin around.
        """
        belief = self.planner.plan(plannable(self.world, state, temperature=self.temperature), noise, start)
        return belief.action(), belief.mean
