"""64 dreams in one environment are the dreams of single environments.

A quick test compares a few of the 64 with their single environments for 60 steps, a slow one all of them for 200.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.dream import DreamEnv, DreamModel, DreamVectorEnv, StartStates, as_model
from wmgym.nets.coders import CoderConfig
from wmgym.random import StreamNoise
from wmgym.spaces import as_dict
from wmgym.worlds.rssm import RSSM, RSSMConfig

COUNT = 64
STATE = spaces.Box(-np.inf, np.inf, (5,), np.float32)
PIXELS = spaces.Box(0, 255, (16, 16, 3), np.uint8)
ACTION = spaces.Box(-1, 1, (2,), np.float32)


def model(latent: Any, space: spaces.Box) -> DreamModel:
    """A world large enough that products of matrices are summed in another order for one row than for 64."""
    torch.manual_seed(0)
    coder = CoderConfig(units=64, layers=2, image="v3", depth=2, image_act="silu", image_norm="rms")
    sizes = {"stoch": 16, "classes": 8, "deter": 96, "hidden": 64}
    world = RSSM(space, ACTION, RSSMConfig(latent=latent, encoder=coder, decoder=coder, **sizes))
    with torch.no_grad():
        for parameter in world.parameters():  # so that chance and actions matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    starts = StartStates(
        world.imagine(world.initial(7), torch.zeros(7, 2), StreamNoise(torch.arange(7))).state, torch.arange(7) < 4
    )
    return as_model(world.requires_grad_(False), starts)


def differences(latent: Any, space: spaces.Box, compared: list[int]) -> np.ndarray:
    """The largest difference of each environment `compared` in anything that a step gives.

    Pictures go from 0 to 1. Rounding may tip a pixel to the next whole number, so a difference of one counts as none.
    """
    made = model(latent, space)
    dreams = DreamVectorEnv(COUNT, made, autoreset_mode="SameStep", horizon=50, start="any")
    singles = [DreamEnv(made, horizon=50, start="any") for _ in compared]
    batch, _ = dreams.reset(seed=100)
    rows = [single.reset(seed=100 + i)[0] for i, single in zip(compared, singles, strict=True)]
    worst = _difference(batch, rows, compared)
    ACTION.seed(0)
    for _ in range(200 if len(compared) == COUNT else 60):
        actions = np.stack([ACTION.sample() for _ in range(COUNT)])
        batch, *rest = dreams.step(actions)
        steps = [single.step(action) for single, action in zip(singles, actions[compared], strict=True)]
        rows = [
            single.reset()[0] if step[2] or step[3] else step[0] for single, step in zip(singles, steps, strict=True)
        ]
        worst = np.maximum(worst, _difference(batch, rows, compared))
        for theirs, position in zip(rest[:3], (1, 2, 3), strict=True):
            own = np.array([step[position] for step in steps], np.float64)
            worst = np.maximum(worst, np.abs(own - theirs[compared]))
    return worst


def _difference(batch: Any, rows: list[Any], compared: list[int]) -> np.ndarray:
    worst = np.zeros(len(compared))
    for key, seen in as_dict(batch).items():
        own = np.stack([as_dict(row)[key] for row in rows])
        error = np.abs(own.astype(np.float64) - seen[compared])
        if seen.dtype == np.uint8:
            error = (error - 1).clip(min=0) / 255
        worst = np.maximum(worst, error.reshape(len(compared), -1).max(-1))
    return worst


BAR = 1e-3
A_FEW, ALL = [0, 63], list(range(COUNT))
HOW_MANY = [pytest.param(A_FEW, id="a few"), pytest.param(ALL, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("compared", HOW_MANY)
@pytest.mark.parametrize("space", [STATE, PIXELS], ids=["state", "pixels"])
def test_gaussian_dreams_differ_by_rounding_only(space: spaces.Box, compared: list[int]) -> None:
    assert differences("gaussian", space, compared).max() <= BAR


@pytest.mark.parametrize("compared", HOW_MANY)
@pytest.mark.parametrize("space", [STATE, PIXELS], ids=["state", "pixels"])
def test_categorical_dreams_agree_but_for_near_ties(space: spaces.Box, compared: list[int]) -> None:
    agree = differences("categorical", space, compared) <= BAR
    assert agree.mean() >= 0.98
