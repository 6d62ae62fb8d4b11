"""World models as environments: one dream, many dreams, and many dreams for stable-baselines3, of several worlds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wmgym.dream.env import DreamEnv
from wmgym.dream.latent import LatentObservation
from wmgym.dream.model import DreamModel, as_model, load_model
from wmgym.dream.starts import StartStates
from wmgym.dream.vector import DreamState, DreamVectorEnv

if TYPE_CHECKING:
    from wmgym.dream.joined import JoinedVecEnv
    from wmgym.dream.sb3 import DreamVecEnv

__all__ = [
    "DreamEnv",
    "DreamModel",
    "DreamState",
    "DreamVecEnv",
    "DreamVectorEnv",
    "JoinedVecEnv",
    "LatentObservation",
    "StartStates",
    "as_model",
    "load_model",
]

_OF_SB3 = {"DreamVecEnv": "wmgym.dream.sb3", "JoinedVecEnv": "wmgym.dream.joined"}


def __getattr__(name: str) -> Any:
    # stable-baselines3 takes a second to import: only those who use it wait.
    if name in _OF_SB3:
        return getattr(importlib.import_module(_OF_SB3[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
