"""A small World Models, and how two runs of it are compared."""

from __future__ import annotations

from typing import Any

from agents import WorldModels
from tests.agents.learnt import assert_learnt_the_same

TINY: dict[str, Any] = {
    "latent": 3, "hidden": 8, "vision_updates": 6, "vision_batch": 8, "memory_updates": 6, "batch_size": 4,
    "batch_length": 8, "generations": 6, "population": 4, "rollouts": 2, "evaluate_every": 3, "evaluate_rollouts": 4,
    "dream_horizon": 10, "seed": 0, "device": "cpu",
}  # fmt: skip


def tiny(env: Any = "test/Reach-v0", **changes: Any) -> WorldModels:
    return WorldModels(env, **{**TINY, **changes})


def assert_same(one: WorldModels, two: WorldModels) -> None:
    assert_learnt_the_same(one, two)
    assert one.history == two.history
    assert (one.num_timesteps, one._n_updates) == (two.num_timesteps, two._n_updates)
