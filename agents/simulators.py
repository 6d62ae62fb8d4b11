"""Plans tried in MuJoCo itself: what planning brings where the model makes no errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.physics import get_physics, set_physics, simulator_of
from wmgym.random import Noise
from wmgym.rendering import is_dm_control


class SimulatedPlans:
    """Plans tried one after the other in simulators, which are left as they were found, to the last bit.

    Args:
        envs: environments on MuJoCo in the midst of an episode, dm_control's (through `wmgym.make_env`) or
            Gymnasium's. Only the simulation and its rewards are run: no observation is made, nothing is counted.
        discount: of rewards, per decision.
        every_reward: count the reward of every simulator step, or (several times as fast) that of a decision's last one
            for all of them.

    Raises:
        TypeError: for an environment that is not on MuJoCo.
    """

    device = torch.device("cpu")

    def __init__(self, envs: Sequence[gym.Env], discount: float = 1.0, every_reward: bool = True) -> None:
        if not isinstance(envs, Sequence):
            raise TypeError(f"{envs} cannot be planned in: give its environments as a list.")
        self.simulators = [Simulator(env, every_reward) for env in envs]
        self.num_envs, self.discount = len(envs), discount
        self.action_space: spaces.Box = envs[0].action_space  # type: ignore[assignment]

    def returns(self, plans: Tensor, noise: Noise) -> Tensor:
        """See `Plannable.returns`; `noise` is not used."""
        numbers = plans.permute(1, 2, 0, 3).double().numpy()  # (N, J, H, A)
        returns = [
            [simulator.try_plan(plan, self.discount) for plan in rows]
            for simulator, rows in zip(self.simulators, numbers, strict=True)
        ]
        return torch.tensor(returns, dtype=torch.float32)


class Simulator:
    """The simulation under an environment: its state, and what actions in [-1, 1] bring.

    Args:
        env: an environment on MuJoCo.
        every_reward: see `SimulatedPlans`.

    Raises:
        TypeError: for an environment that is not.
    """

    def __init__(self, env: gym.Env, every_reward: bool = True) -> None:
        inner: Any = env.unwrapped
        self.repeat = int(env.get_wrapper_attr("repeat")) if env.has_wrapper_attr("repeat") else 1
        self.every_reward = every_reward
        simulator = simulator_of(env)
        if simulator is None:
            raise TypeError(
                f"{env} cannot be planned in: give a World and a state, a Dream-v0, or an environment on MuJoCo."
            )
        self.model, self.data = simulator
        self._task: _DmControlTask | _GymnasiumTask
        self._task = _DmControlTask(inner) if is_dm_control(env) else _GymnasiumTask(inner)
        box = inner.action_space
        self.middle, self.half = (box.high + box.low) / 2, (box.high - box.low) / 2

    def try_plan(self, plan: np.ndarray, discount: float = 1.0) -> float:
        """The sum of the rewards of `plan` `(H, A)` from the present state, which stays."""
        before = self.get_state()
        try:
            return sum(discount**t * self.step(action) for t, action in enumerate(plan))
        finally:
            self.set_state(before)

    def step(self, action: np.ndarray) -> float:
        """Do `action` `(A,)` as often as the environment repeats it; the sum of the rewards."""
        scaled = self.middle + self.half * np.clip(action, -1.0, 1.0)
        rewards = []
        for left in reversed(range(self.repeat)):
            self._task.advance(scaled)
            if self.every_reward or not left:
                rewards.append(self._task.reward())
        return self.repeat * float(np.mean(rewards))

    def get_state(self) -> np.ndarray:
        """Everything that the future depends on."""
        return get_physics(self.model, self.data)

    def set_state(self, state: np.ndarray) -> None:
        """Go back to where `get_state` was called."""
        set_physics(self.model, self.data, state)


class _DmControlTask:
    """A dm_control task's steps and rewards, without observations, counters and the end of the episode."""

    def __init__(self, inner: Any) -> None:
        self.env = inner._env

    def advance(self, action: np.ndarray) -> None:
        """One control step."""
        self.env.task.before_step(action, self.env.physics)
        self.env.physics.step(self.env._n_sub_steps)
        self.env.task.after_step(self.env.physics)

    def reward(self) -> float:
        """Of the state that is now."""
        return float(self.env.task.get_reward(self.env.physics))


class _GymnasiumTask:
    """The same of a MuJoCo environment of Gymnasium, which gives a step's reward with the step."""

    def __init__(self, inner: Any) -> None:
        self.env, self.last = inner, 0.0

    def advance(self, action: np.ndarray) -> None:
        """One step."""
        self.last = float(self.env.step(action)[1])

    def reward(self) -> float:
        """Of the last step."""
        return self.last
