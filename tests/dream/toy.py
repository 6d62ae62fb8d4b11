"""The smallest world there is: a noisy linear system. Whatever a dream does must work with it too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.dream import DreamModel, StartStates, as_model
from wmgym.spaces import action_size, as_dict_space, is_image
from wmgym.worlds.base import Noise, Observation, Outcome, SequenceBatch, World, WorldLoss

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
PICTURE = spaces.Box(0, 255, (40, 36, 3), np.uint8)
BOTH = spaces.Dict({"image": PICTURE, "speed": spaces.Box(-0.1, 0.1, (2,), np.float32)})
PUSH = spaces.Box(-1, 1, (2,), np.float32)


class ToyState(NamedTuple):
    x: Tensor
    age: Tensor


@dataclass(frozen=True)
class ToyConfig:
    size: int = 4
    continue_logit: float = 4.0


class ToyWorld(World):
    """`x' = tanh(A x + B a + 0.3 noise)`; the reward is the mean of `x'`."""

    def __init__(self, observation_space: Any, action_space: Any, config: ToyConfig) -> None:
        super().__init__()
        self.observation_space, self.action_space, self.config = observation_space, action_space, config
        self.feature_size = config.size
        self.boxes = as_dict_space(observation_space)
        sizes = {key: math.prod(box.shape) for key, box in self.boxes.items()}
        self.drift = nn.Linear(config.size + action_size(action_space), config.size)
        self.encoder = nn.Linear(sum(sizes.values()), config.size)
        self.decoders = nn.ModuleDict({key: nn.Linear(config.size, size) for key, size in sizes.items()})

    def initial(self, batch_size: int) -> ToyState:
        return ToyState(torch.zeros(batch_size, self.config.size), torch.zeros(batch_size))

    def observe(
        self, state: ToyState, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> ToyState:
        seen = torch.cat([(o / 255 if o.dtype == torch.uint8 else o).flatten(1) for o in observation.values()], -1)
        prior = self.drift(torch.cat([state.x, action], -1)) * (~is_first)[:, None]
        x = torch.tanh(self.encoder(seen) + 0.1 * prior + 0.01 * noise.normal(*state.x.shape))
        return ToyState(x, torch.where(is_first, 0.0, state.age + 1))

    def transition(self, state: ToyState, action: Tensor, noise: Noise, temperature: float = 1.0) -> ToyState:
        x = self.drift(torch.cat([state.x, action], -1)) + 0.3 * temperature * noise.normal(*state.x.shape)
        return ToyState(torch.tanh(x), state.age + 1)

    def outcome(self, previous: ToyState, action: Tensor, state: ToyState) -> Outcome:
        return Outcome(state.x.mean(-1), torch.sigmoid(state.x.sum(-1) + self.config.continue_logit))

    def features(self, state: ToyState) -> Tensor:
        return state.x

    def decode(self, features: Tensor) -> Observation:
        out = {}
        for key, box in self.boxes.items():
            flat = self.decoders[key](features).unflatten(-1, box.shape)
            out[key] = (torch.sigmoid(flat) * 255).to(torch.uint8) if is_image(box) else flat
        return out

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        raise NotImplementedError("The toy learns nothing.")


def toy_world(observation: Any = VECTOR, action: Any = PUSH, **config: Any) -> ToyWorld:
    """A toy with fixed parameters."""
    torch.manual_seed(0)
    return ToyWorld(observation, action, ToyConfig(**config))


def toy_model(observation: Any = VECTOR, action: Any = PUSH, **config: Any) -> DreamModel:
    """A toy with six start states, of which the first three are first steps, told by `x[0]`."""
    world = toy_world(observation, action, **config)
    states = ToyState(torch.linspace(-0.6, 0.4, 6)[:, None].repeat(1, world.config.size), torch.zeros(6))
    return as_model(world, StartStates(states, torch.tensor([True, True, True, False, False, False])))
