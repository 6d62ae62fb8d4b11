"""Random numbers for worlds: a generator for training, one independent stream per dream for dreaming.

A dream is a function of (checkpoint, seed, actions). `StreamNoise` therefore draws from counters instead of
from one shared generator: number `k` of the stream with seed `s` is a hash of `(s, k)`, whatever the neighbours
in the batch do, and however many there are.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64, the increment of SplitMix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Noise(Protocol):
    """Where a world's random numbers come from. The leading dimension is the batch."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32."""

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel numbers, float32."""


class TorchNoise:
    """Noise from a torch generator (training, acting).

    Args:
        generator: the generator; None takes torch's global one.
        device: where the numbers are wanted.
    """

    def __init__(self, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> None:
        self.generator = generator
        self.device = torch.device(device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel numbers, float32."""
        return _gumbel(self.uniform(*shape))


class ModeNoise:
    """No noise: Gaussian draws become their mean, categorical draws their mode. For deterministic acting."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def normal(self, *shape: int) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """One half everywhere."""
        return torch.full(shape, 0.5, device=self.device)

    def gumbel(self, *shape: int) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, device=self.device)


class StreamNoise:
    """One independent counter-based stream per row of the batch (SplitMix64 over seed and position).

    Args:
        seeds: `(B,)` int64, one seed a row.
        device: where the numbers are wanted.

    Row `b` of every draw depends on `seeds[b]` and on how much row `b` has drawn so far, and on nothing else.
    """

    def __init__(self, seeds: Tensor, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.keys = _mix(seeds.to(self.device, torch.int64) + _GOLDEN)
        self.counters = torch.zeros_like(self.keys)

    def reseed(self, rows: Tensor, seeds: Tensor) -> None:
        """Restart the streams of `rows` `(K,)` with `seeds` `(K,)`."""
        self.keys[rows] = _mix(seeds.to(self.device, torch.int64) + _GOLDEN)
        self.counters[rows] = 0

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32; `shape[0]` is the number of streams."""
        return (self._bits(shape) >> 40).bitwise_and(0xFFFFFF).to(torch.float32) * 2.0**-24

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 (Box-Muller)."""
        bits = self._bits(shape)
        radius = ((bits >> 40).bitwise_and(0xFFFFFF).to(torch.float32) + 0.5) * 2.0**-24
        angle = bits.bitwise_and(0xFFFFFF).to(torch.float32) * (2.0**-24 * 2 * math.pi)
        return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel numbers, float32."""
        return _gumbel(self.uniform(*shape))

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape[1:])
        if shape[0] != self.keys.shape[0]:
            raise ValueError(f"{self.keys.shape[0]} streams cannot fill a batch of {shape[0]}.")
        positions = self.counters[:, None] + torch.arange(count, device=self.device)
        self.counters += count
        return _mix(self.keys[:, None] + positions * _GOLDEN).reshape(shape)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 tensors; shifts are made logical by masking the sign."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and((1 << (64 - bits)) - 1)


def _gumbel(uniform: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log(-torch.log(uniform.clamp(tiny, 1.0 - 2.0**-24)))
