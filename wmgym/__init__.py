"""Learned world models as Gymnasium environments.

Importing the package registers `Dream-v0`::

    import gymnasium as gym
    import wmgym

    dream = gym.make("Dream-v0", model="walker.zip")
    dreams = gym.make_vec("Dream-v0", num_envs=1024, model="walker.zip")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from wmgym.checkpoint import CheckpointError
    from wmgym.dataset import load_dataset, record
    from wmgym.dream.env import DreamEnv
    from wmgym.dream.latent import LatentObservation
    from wmgym.dream.model import DreamModel, as_model, load_model
    from wmgym.dream.sb3 import DreamVecEnv
    from wmgym.dream.starts import StartStates
    from wmgym.dream.vector import DreamVectorEnv
    from wmgym.fit import fit_world
    from wmgym.real import make_env, make_vec
    from wmgym.replayable import Replayable
    from wmgym.worlds.base import World
    from wmgym.worlds.store import load_world, register_world, save_world

# Names are imported on first use: torch, stable-baselines3 and MuJoCo take seconds that `import wmgym` need not cost.
_HOMES = {
    "CheckpointError": "wmgym.checkpoint",
    "DreamEnv": "wmgym.dream.env",
    "DreamModel": "wmgym.dream.model",
    "DreamVecEnv": "wmgym.dream.sb3",
    "DreamVectorEnv": "wmgym.dream.vector",
    "LatentObservation": "wmgym.dream.latent",
    "Replayable": "wmgym.replayable",
    "StartStates": "wmgym.dream.starts",
    "World": "wmgym.worlds.base",
    "as_model": "wmgym.dream.model",
    "fit_world": "wmgym.fit",
    "load_dataset": "wmgym.dataset",
    "load_model": "wmgym.dream.model",
    "load_world": "wmgym.worlds.store",
    "make_env": "wmgym.real",
    "make_vec": "wmgym.real",
    "record": "wmgym.dataset",
    "register_world": "wmgym.worlds.store",
    "save_world": "wmgym.worlds.store",
}

__all__ = [
    "CheckpointError",
    "DreamEnv",
    "DreamModel",
    "DreamVecEnv",
    "DreamVectorEnv",
    "LatentObservation",
    "Replayable",
    "StartStates",
    "World",
    "as_model",
    "fit_world",
    "load_dataset",
    "load_model",
    "load_world",
    "make_env",
    "make_vec",
    "record",
    "register_world",
    "save_world",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Names of entry points, not classes: so that an `EnvSpec` can be written as JSON.
for _id in ("Dream-v0", "wmgym/Dream-v0"):
    gym.register(
        id=_id,
        entry_point="wmgym.dream.env:DreamEnv",
        vector_entry_point="wmgym.dream.vector:DreamVectorEnv",
    )
