"""A real environment that is simple enough to be known exactly, and worlds that know it, or do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.worlds.base import Noise, Observation, Outcome, SequenceBatch, World, WorldLoss

SIZE = 16
POINT = spaces.Box(-10, 10, (2,), np.float32)
PUSH = spaces.Box(-1, 1, (1,), np.float32)


def move(place: Tensor, action: Tensor) -> Tensor:
    """Position and speed `(B, 2)` after a push `(B, 1)`."""
    speed = 0.9 * place[:, 1:] + 0.1 * action
    return torch.cat([place[:, :1] + speed, speed], -1)


def pay(place: Tensor) -> Tensor:
    """Reward `(B,)`: being near 0.5."""
    return 1 - (place[:, 0] - 0.5).abs()


def draw(place: Tensor) -> Tensor:
    """Grey pictures `(B, 16, 16, 1)`: a white column where the point is."""
    columns = torch.linspace(-2, 2, SIZE)
    near = (1 - 3 * (columns - place[..., :1]).abs()).clamp(min=0)
    return (255 * near).to(torch.uint8)[..., None, :, None].expand(*near.shape[:-1], SIZE, SIZE, 1)


class Point(gym.Env):
    """Pushed along a line; cut after 40 steps, and ended beyond `edge`."""

    action_space = PUSH

    def __init__(self, pictures: bool = False, edge: float = np.inf) -> None:
        self.pictures, self.edge = pictures, edge
        self.observation_space: spaces.Space = POINT
        if pictures:
            self.observation_space = spaces.Dict(image=spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8), point=POINT)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = torch.tensor(self.np_random.uniform(-1, 1, (1, 2)).astype(np.float32))
        self.time = 0
        return self._see(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = move(self.place, torch.as_tensor(action, dtype=torch.float32)[None])
        self.time += 1
        ended = bool(self.place[0, 0].abs() > self.edge)
        return self._see(), float(pay(self.place)[0]), ended, self.time >= 40, {}

    def _see(self) -> Any:
        point = self.place[0].numpy().copy()
        return {"image": draw(self.place)[0].numpy().copy(), "point": point} if self.pictures else point


class PointState(NamedTuple):
    place: Tensor


@dataclass(frozen=True)
class PointConfig:
    fault: str = ""
    """"deaf" to actions, "upside down" about rewards, "drifting" with the distance from 0, "noisy"."""


class PointWorld(World):
    """Knows `Point`, but for its fault."""

    def __init__(self, observation_space: Any = POINT, fault: str = "", ensemble: bool = False) -> None:
        super().__init__()
        self.observation_space, self.action_space, self.config = observation_space, PUSH, PointConfig(fault)
        self.feature_size, self.ensemble = 2, ensemble
        self.unused = nn.Parameter(torch.zeros(1))

    def initial(self, batch_size: int) -> PointState:
        return PointState(torch.zeros(batch_size, 2))

    def observe(
        self, state: PointState, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> PointState:
        return PointState(observation["point"] if "point" in observation else observation["observation"])

    def transition(self, state: PointState, action: Tensor, noise: Noise, temperature: float = 1.0) -> PointState:
        fault = self.config.fault
        place = move(state.place, 0 * action if fault == "deaf" else action)
        if fault == "drifting":
            place = place + 0.3 * state.place[:, :1].abs() * noise.normal(len(place), 2)
        if fault == "noisy":
            place = place + 0.3 * temperature * noise.normal(len(place), 2)
        return PointState(place)

    def outcome(self, previous: PointState, action: Tensor, state: PointState) -> Outcome:
        sign = -1 if self.config.fault == "upside down" else 1
        return Outcome(sign * pay(state.place), torch.ones(len(state.place)))

    def features(self, state: PointState) -> Tensor:
        return state.place

    def decode(self, features: Tensor) -> Observation:
        if isinstance(self.observation_space, spaces.Dict):
            return {"image": draw(features), "point": features}
        return {"observation": features}

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        raise NotImplementedError("It knows all that it ever will.")

    @property
    def has_ensemble(self) -> bool:
        return self.ensemble

    def disagreement(self, state: PointState, action: Tensor) -> Tensor:
        return state.place[:, 0].abs()
