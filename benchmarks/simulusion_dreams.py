"""Simulusion's dream environment, for `benchmarks.dream`: a worker of `benchmarks.serving`.

`make bench-peers` builds the environment that it runs in. Simulusion's `WorldModelEnv` steps any model through
functions that its user gives it, so both sides step the same world of this package. It has no vector form; its copies
stand in Gymnasium's `SyncVectorEnv`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from simulusion.envs import WorldModelEnv
from torch import Tensor

from benchmarks.dream import make_model
from benchmarks.serving import Spec, Update, serve
from wmgym.random import TorchNoise
from wmgym.worlds.base import State, World


def build(spec: Spec) -> Update:
    """One decision of `spec.batch` dreams."""
    world = make_model(spec.observation == "pixels").world
    dreams = gym.vector.SyncVectorEnv([lambda: dream(world)] * spec.batch)
    dreams.reset(seed=0)
    actions = dreams.action_space.sample()
    return Update(lambda: dreams.step(actions), sum(parameter.numel() for parameter in world.parameters()))


def dream(world: World) -> gym.Env[Any, Any]:
    """One of simulusion's environments around `world`, whose observations are decoded."""
    noise = TorchNoise(torch.Generator().manual_seed(0))

    def reset(model: World, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        state = model.initial(1)
        return {"state": state, "observation": decoded(model, state)}

    @torch.inference_mode()
    def transition(model: World, state: State, action: Tensor) -> dict[str, Any]:
        after = model.transition(state, action[None], noise)
        reward, _ = model.outcome(state, action[None], after)
        return {"state": after, "observation": decoded(model, after), "reward": reward, "terminated": False}

    return WorldModelEnv(world, world.observation_space, world.action_space, reset_fn=reset, transition_fn=transition)


@torch.inference_mode()
def decoded(world: World, state: State) -> np.ndarray:
    """What is seen in `state`."""
    (seen,) = world.decode(world.features(state)).values()
    array: np.ndarray = seen[0].numpy()
    return array


if __name__ == "__main__":
    serve(build)
