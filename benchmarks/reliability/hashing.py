"""One number for all that an agent has learnt."""

from __future__ import annotations

import hashlib

import torch

from agents.base import WorldModelAgent


def parameter_hash(agent: WorldModelAgent) -> str:
    """SHA-256 of parameters, normalisers, optimisers' moments, random states and counters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(agent.policy.state_dict().items()):
        digest.update(name.encode() + _bytes(tensor))
    for name, optimizer in sorted(agent.optimizers.items()):
        for index, moments in sorted(optimizer.state_dict()["state"].items()):
            for key, value in sorted(moments.items()):
                digest.update(f"{name}/{index}/{key}".encode() + _bytes(torch.as_tensor(value)))
    digest.update(_bytes(agent.generator.get_state()) + _bytes(agent.policy.generator.get_state()))
    digest.update(f"{agent.num_timesteps} {agent._n_updates} {agent._episode_num}".encode())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
