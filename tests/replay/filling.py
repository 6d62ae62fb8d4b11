"""A replay filled with steps that carry their number, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from wmgym.replay import SequenceReplay
from wmgym.worlds.base import SequenceBatch

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACTION = spaces.Box(-1, 1, (1,))
PICTURE = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "speed": spaces.Box(-1, 1, ())})


def make(capacity: int = 100, n_envs: int = 1, **kwargs: Any) -> SequenceReplay:
    return SequenceReplay(capacity, BOX, ACTION, n_envs, **kwargs)


def fill(replay: SequenceReplay, steps: range, episode: int = 7, terminal: bool = True) -> None:
    """Add steps that carry their number and their environment; an episode ends every `episode` steps."""
    envs = np.arange(replay.n_envs)
    for step in steps:
        replay.add(
            observation=np.stack([np.full(replay.n_envs, step), envs], 1),
            action=np.full((replay.n_envs, 1), step % 5 / 10),
            reward=np.full(replay.n_envs, step),
            is_first=np.full(replay.n_envs, step % episode == 0),
            is_terminal=np.full(replay.n_envs, terminal and step % episode == episode - 1),
        )


def numbers(batch: SequenceBatch) -> np.ndarray:
    return batch.observation["observation"][..., 0].numpy().astype(int)  # (T, B)


def assert_equal_batches(one: SequenceBatch, two: SequenceBatch) -> None:
    assert one.observation.keys() == two.observation.keys()
    for key, value in one.observation.items():
        assert torch.equal(value, two.observation[key])
    for name in ("action", "reward", "is_first", "is_terminal"):
        assert torch.equal(getattr(one, name), getattr(two, name))
