"""MuJoCo's whole state, read and put back to the last bit.

MuJoCo is imported where it is used: importing it settles how it renders, which `wmgym.rendering` chooses first.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wmgym.rendering import is_dm_control, is_gymnasium_mujoco


def simulator_of(env: gym.Env) -> tuple[Any, Any] | None:
    """MuJoCo's model and data in an environment of dm_control or Gymnasium; None in others."""
    inner: Any = env.unwrapped
    if is_dm_control(env):
        return inner.physics.model.ptr, inner.physics.data.ptr
    return (inner.model, inner.data) if is_gymnasium_mujoco(env) else None


def get_physics(model: Any, data: Any) -> NDArray[np.float64]:
    """Everything that the simulation's future depends on, `(P,)`."""
    import mujoco

    whole = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, whole))
    mujoco.mj_getState(model, data, state, whole)
    return state


def set_physics(model: Any, data: Any, state: NDArray[np.float64]) -> None:
    """Go back to where `get_physics` was called."""
    import mujoco

    whole = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, state, whole)
    mujoco.mj_forward(model, data)  # what follows from positions and velocities, sensors included
    mujoco.mj_setState(model, data, state, whole)  # mj_forward has moved the solver's first guess
