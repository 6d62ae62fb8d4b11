"""Pictures for worlds that have only seen states: a decoder fitted afterwards, to be looked at and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.base import WorldModelAgent
from wmgym.nets.coders import CoderConfig, Decoder
from wmgym.rendering import resize
from wmgym.worlds.base import State, World

_SIZE = 64
_IMAGE = "image"


class Painter(nn.Module):
    """Draws 64x64 pictures from the features of a world that it does not change.

    Args:
        feature_size: of the world.
        depth: channels of its widest convolutions' base.

    Example:
        >>> Painter(8, depth=2)(torch.zeros(3, 8)).shape
        torch.Size([3, 64, 64, 3])
    """

    def __init__(self, feature_size: int, depth: int = 12) -> None:
        super().__init__()
        boxes = {_IMAGE: spaces.Box(0, 255, (_SIZE, _SIZE, 3), np.uint8)}
        self.decoder = Decoder(feature_size, boxes, CoderConfig(depth=depth))

    def forward(self, features: Tensor) -> Tensor:
        """uint8 `(B, 64, 64, 3)` for features `(B, F)`."""
        return self.decoder.observation(features)[_IMAGE]

    def loss(self, features: Tensor, pictures: Tensor) -> Tensor:
        """Mean squared error of a picture, summed over its pixels."""
        return self.decoder.loss(features, {_IMAGE: pictures})[_IMAGE].mean()


class Gallery(NamedTuple):
    """What a painter learns from."""

    features: Tensor  # (N, F)
    pictures: Tensor  # (N, 64, 64, 3) uint8


def collect(agent: WorldModelAgent, env: gym.Env, frames: int, seed: int = 0) -> Gallery:
    """Features of a world and what the environment looked like, over episodes of the agent.

    Every second episode the agent draws its actions, so that more is seen than its best.

    Args:
        agent: acts, and filters with its world.
        env: the environment as the agent sees it, which renders.
        frames: how many.
        seed: of the first episode.
    """
    features: list[Tensor] = []
    pictures: list[np.ndarray] = []
    while len(pictures) < frames:
        observation, _ = env.reset(seed=seed)
        carry: Any = None
        ended = False
        while not ended and len(pictures) < frames:
            action, carry = agent.predict(observation, carry, deterministic=seed % 2 == 0)
            features.append(agent.world.features(state_of(agent, carry)))
            pictures.append(resize(rendered(env), _SIZE))
            observation, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        seed += 1
    return Gallery(torch.cat(features), torch.as_tensor(np.stack(pictures), device=agent.world.device))


def fit(painter: Painter, gallery: Gallery, updates: int, batch_size: int = 32, seed: int = 0) -> list[float]:
    """Adam on random batches; returns the loss of every update."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(painter.parameters(), 1e-3)
    losses = []
    for _ in range(updates):
        rows = torch.randint(len(gallery.features), (batch_size,), generator=generator)
        loss = painter.loss(gallery.features[rows], gallery.pictures[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def paint(
    agent: WorldModelAgent, env: gym.Env, frames: int = 2000, updates: int = 1500, depth: int = 12, seed: int = 0
) -> Painter:
    """Give an agent's world the method `render`, by which its dreams are looked at (`wmgym.dream`).

    Args:
        agent: of a world without pictures.
        env: the environment as the agent sees it, which renders.
        frames: pictures to learn from.
        updates: batches of them.
        depth: size of the painter.
        seed: of episodes, first weights and batches.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        painter = Painter(agent.world.feature_size, depth).to(agent.world.device)
    fit(painter, collect(agent, env, frames, seed), updates, seed=seed)
    attach(agent.world, painter.eval().requires_grad_(False))
    return painter


def attach(world: World, render: Callable[[Tensor], Tensor]) -> None:
    """Let a world be looked at through `render`, without making it a part of the world's parameters."""
    object.__setattr__(world, "render", render)


def state_of(agent: WorldModelAgent, carry: tuple[np.ndarray, ...]) -> State:
    """The world's state in what `predict` returned."""
    kind = type(agent.world.initial(1))  # policies that plan or have goals carry these too, after the state
    return kind(*(torch.as_tensor(leaf, device=agent.world.device) for leaf in carry[: len(kind._fields)]))


def rendered(env: gym.Env) -> np.ndarray:
    """The environment's picture.

    Raises:
        ValueError: if it was made without `render_mode="rgb_array"`.
    """
    picture = env.render()
    if not isinstance(picture, np.ndarray):
        raise ValueError("A film needs an environment made with render_mode='rgb_array'.")
    return picture
