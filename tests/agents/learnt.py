"""All that an agent has learnt, to be compared."""

from __future__ import annotations

import torch

from agents.base import WorldModelAgent


def learnt(agent: WorldModelAgent) -> dict[str, torch.Tensor]:
    """Its networks and its optimisers' moments, by name."""
    tensors = {f"policy/{name}": value for name, value in agent.policy.state_dict().items()}
    for name, optimizer in agent.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    return tensors


def assert_learnt_the_same(one: WorldModelAgent, two: WorldModelAgent) -> None:
    """To the last bit, chance included."""
    left, right = learnt(one), learnt(two)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert torch.equal(one.generator.get_state(), two.generator.get_state())
