"""Plans tried in MuJoCo itself: what planning brings where the model makes no errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.random import Noise
from wmgym.rendering import is_dm_control, is_gymnasium_mujoco

_WHOLE = mujoco.mjtState.mjSTATE_INTEGRATION


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
        if is_dm_control(env):
            physics = inner.physics
            self.model, self.data = physics.model.ptr, physics.data.ptr
            self._task: _DmControlTask | _GymnasiumTask = _DmControlTask(inner)
        elif is_gymnasium_mujoco(env):
            self.model, self.data = inner.model, inner.data
            self._task = _GymnasiumTask(inner)
        else:
            raise TypeError(
                f"{env} cannot be planned in: give a World and a state, a Dream-v0, or an environment on MuJoCo."
            )
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
        state = np.empty(mujoco.mj_stateSize(self.model, _WHOLE))
        mujoco.mj_getState(self.model, self.data, state, _WHOLE)
        return state

    def set_state(self, state: np.ndarray) -> None:
        """Go back to where `get_state` was called."""
        mujoco.mj_setState(self.model, self.data, state, _WHOLE)
        mujoco.mj_forward(self.model, self.data)  # what follows from positions and velocities, sensors included
        mujoco.mj_setState(self.model, self.data, state, _WHOLE)  # mj_forward has moved the solver's first guess


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
