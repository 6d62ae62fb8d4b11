"""Small RSSMs of every kind, sequences for them, and noise that can be played twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.nets.coders import CoderConfig
from wmgym.random import TorchNoise
from wmgym.worlds.base import SequenceBatch
from wmgym.worlds.rssm import RSSM, HeadConfig, RSSMConfig

LENGTH, BATCH = 6, 3
ACTIONS = spaces.Box(-1, 1, (2,))
VECTORS = spaces.Dict({"position": spaces.Box(-np.inf, np.inf, (3,)), "height": spaces.Box(-np.inf, np.inf, ())})
PICTURES = spaces.Dict(
    {"state": spaces.Box(-np.inf, np.inf, (3,)), "camera": spaces.Box(0, 255, (16, 16, 3), np.uint8)}
)

_CODER = CoderConfig(units=8, layers=1, image="v3", depth=2, image_act="silu", image_norm="rms")
_HEAD = HeadConfig(layers=1, units=8)
GAUSSIAN = RSSMConfig(
    stoch=3, deter=8, hidden=8, encoder=_CODER, decoder=_CODER, reward=_HEAD, continues=_HEAD, free_nats=0.0
)
CATEGORICAL = replace(GAUSSIAN, latent="categorical", classes=4, cell="layernorm", act="elu")
BLOCK = replace(
    CATEGORICAL,
    cell="block",
    blocks=4,
    unimix=0.01,
    prior_layers=2,
    act="silu",
    norm="rms",
    init="v3",
    reward=replace(_HEAD, likelihood="twohot"),
    dyn_scale=1.0,
    rep_scale=0.1,
    free_per_step=True,
    continue_target=0.9,
)
KINDS = {"gaussian": GAUSSIAN, "categorical": CATEGORICAL, "block": BLOCK}


def build(config: RSSMConfig, space: spaces.Dict = VECTORS, **changes: Any) -> RSSM:
    """A world with its first weights shaken, so that no two of its parts agree by chance."""
    torch.manual_seed(0)
    world = RSSM(space, ACTIONS, replace(config, **changes))
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return world


def sequences(space: spaces.Dict = VECTORS, length: int = LENGTH, size: int = BATCH) -> SequenceBatch:
    """Random sequences; an episode begins in the middle of row 1, with an action left there that must not count."""
    generator = torch.Generator().manual_seed(1)

    def observation(box: spaces.Box) -> Tensor:
        shape = (length, size, *box.shape)
        if box.dtype == np.uint8:
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return torch.randn(shape, generator=generator)

    is_first, is_terminal = torch.zeros(2, length, size, dtype=torch.bool)
    is_first[0] = True
    if length > 3 and size > 1:
        is_first[3, 1] = is_terminal[2, 1] = True
    return SequenceBatch(
        {key: observation(box) for key, box in space.spaces.items() if isinstance(box, spaces.Box)},
        torch.rand(length, size, 2, generator=generator) * 2 - 1,
        torch.randn(length, size, generator=generator),
        is_first,
        is_terminal,
    )


def part(batch: SequenceBatch, time: slice, rows: slice | Tensor = slice(None)) -> SequenceBatch:
    """A cut of `batch`."""
    return SequenceBatch(
        {key: value[time, rows] for key, value in batch.observation.items()},
        *(x[time, rows] for x in (batch.action, batch.reward, batch.is_first, batch.is_terminal)),
    )


class Script:
    """Noise that is read off a list, one entry a draw, of whatever kind."""

    def __init__(self, draws: list[Tensor]) -> None:
        self.draws = list(draws)

    def normal(self, *shape: int) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == shape
        return draw

    uniform = gumbel = normal


def draws(world: RSSM, length: int = LENGTH, size: int = BATCH) -> list[Tensor]:
    """What a world draws while it filters `length` steps."""
    generator = torch.Generator().manual_seed(2)
    c = world.config
    if c.latent == "gaussian":
        return list(torch.randn(length, size, c.stoch, generator=generator))
    uniform = torch.rand(length, size, c.stoch, c.classes, generator=generator)
    return list(-torch.log(-torch.log(uniform.clamp(1e-6, 1 - 1e-6))))


def fitted(
    size: int, config: RSSMConfig, drawn: Callable[[int], SequenceBatch], updates: int
) -> tuple[RSSM, TorchNoise]:
    """A world of one vector, "it", of `size` numbers, after updates on `drawn(0)`, `drawn(1)`, ...; and its noise."""
    torch.manual_seed(0)
    space = spaces.Dict({"it": spaces.Box(-np.inf, np.inf, (size,))})
    world = RSSM(space, spaces.Box(-1, 1, (1,)), config)
    noise = TorchNoise(torch.Generator().manual_seed(0), torch.device("cpu"))
    optimizer = torch.optim.Adam(world.parameters(), 3e-3)
    for update in range(updates):
        optimizer.zero_grad()
        world.loss(drawn(update), noise).total.backward()
        optimizer.step()
    return world.eval(), noise
