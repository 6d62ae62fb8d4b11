"""What dreams keep in memory: one world, and no more than they need while they are drawn."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from wmgym import StartStates, as_model, save_world
from wmgym.dream import DreamModel
from wmgym.worlds.rssm import RSSM, RSSMConfig

from .toy import PUSH, VECTOR

BIG = RSSMConfig(deter=512, stoch=32, hidden=512)


def big_model() -> DreamModel:
    world = RSSM(VECTOR, PUSH, BIG).requires_grad_(False)
    return as_model(world, StartStates(world.initial(2), torch.tensor([True, True])))


def held_bytes() -> int:
    """Of all tensors that are alive; memory that several share counts once."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        # Sparse tensors, and those that compilers trace with, have no storage.
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    }
    return sum(storages.values())


def world_bytes(model: DreamModel) -> int:
    return sum(parameter.nbytes for parameter in model.world.parameters())


@pytest.mark.parametrize("make", [
    lambda model: gym.make("Dream-v0", model=model),
    lambda model: gym.make_vec("Dream-v0", num_envs=64, model=model),
    lambda model: gym.make_vec("Dream-v0", num_envs=4, model=model, vectorization_mode="sync"),
], ids=["one", "many", "Gymnasium's many"])  # fmt: skip
def test_a_live_world_is_never_copied(make: Callable[[Any], gym.Env]) -> None:
    model = big_model()
    before = held_bytes()
    env = make(model)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert held_bytes() - before < 0.1 * world_bytes(model)


def test_a_file_is_held_once(tmp_path: Path) -> None:
    model = big_model()
    path = str(save_world(tmp_path / "big.zip", model.world, model.starts))
    for make in (gym.make, lambda *of, **named: gym.make_vec(*of, num_envs=64, **named)):
        before = held_bytes()
        env = make("Dream-v0", model=path)
        env.reset(seed=0)
        assert held_bytes() - before == pytest.approx(world_bytes(model), rel=0.1)
        del env


_MANY = """
import resource
import numpy as np, torch
from gymnasium import spaces
from agents.dreamer_v3 import v3_world
from wmgym.dream import DreamVectorEnv, StartStates, as_model
from wmgym.worlds.rssm import RSSM

torch.set_num_threads(1)
config = v3_world(256, 0.997, 0.01, 1.0, 1.0, 0.1)  # DreamerV3's size 12m
world = RSSM(spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Box(-1, 1, (6,), np.float32), config)
world.eval().requires_grad_(False)
dreams = DreamVectorEnv(4096, as_model(world, StartStates(world.initial(4), torch.ones(4, dtype=torch.bool))))
dreams.reset(seed=0)
observation, *_ = dreams.step(dreams.action_space.sample())
assert observation.shape == (4096, 64, 64, 3)
print(sum(p.numel() for p in world.parameters()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_4096_dreams_of_a_large_world_with_pictures_fit_in_4_gib() -> None:
    run = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, text=True, check=True)
    parameters, kibibytes = map(int, run.stdout.split())
    assert parameters > 8e6  # the world of the size 12m, whose agent has 10.5 million with actor and critic
    assert kibibytes * 1024 < 4 * 2**30
