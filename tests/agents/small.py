"""A small World Models, and all that a run of it leaves behind."""

from __future__ import annotations

from typing import Any

import torch

from agents import WorldModels

TINY: dict[str, Any] = {
    "latent": 3, "hidden": 8, "vision_updates": 6, "vision_batch": 8, "memory_updates": 6, "batch_size": 4,
    "batch_length": 8, "generations": 6, "population": 4, "rollouts": 2, "evaluate_every": 3, "evaluate_rollouts": 4,
    "dream_horizon": 10, "seed": 0, "device": "cpu",
}  # fmt: skip


def tiny(env: Any = "test/Reach-v0", **changes: Any) -> WorldModels:
    return WorldModels(env, **{**TINY, **changes})


def learnt(agent: WorldModels) -> dict[str, Any]:
    """All that a run leaves behind, as far as it can be compared."""
    optimizers = {
        f"{name}/{index}/{key}": value
        for name, optimizer in agent.optimizers.items()
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }
    return {**agent.policy.state_dict(), **optimizers, "generator": agent.generator.get_state()}


def assert_same(one: WorldModels, two: WorldModels) -> None:
    left, right = learnt(one), learnt(two)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert one.history == two.history
    assert (one.num_timesteps, one._n_updates) == (two.num_timesteps, two._n_updates)
