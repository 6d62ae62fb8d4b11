"""The random streams of many dreams, of which some begin anew while the others go on."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wmgym.random import StreamNoise

Seeds = int | Sequence[int | None] | None
"""What `reset` takes: `s` gives environment `i` the seed `s + i`; None goes on."""


class DreamStreams(StreamNoise):
    """One stream an environment, cut into episodes.

    The stream of an environment's n-th episode follows from its seed and n alone: not from what was drawn in the
    episodes before, and not from the neighbours.
    """

    @classmethod
    def at(cls, keys: Tensor, counters: Tensor, device: torch.device | str = "cpu") -> DreamStreams:
        """Streams `(B,)` with these keys, drawn this far; the tensors are copied."""
        streams = cls(keys, device)
        streams.keys = keys.to(device, copy=True)
        streams.counters = counters.to(device, copy=True)
        return streams

    def begin(self, rows: Tensor, seeds: list[int | None]) -> None:
        """Begin episodes in the streams `rows` `(K,)`: of the seeds `(K,)`, or the next one where that is None."""
        seeded = torch.tensor([seed is not None for seed in seeds], dtype=torch.bool, device=self.device)
        # Seeds of any size are folded into the 64 bits of a stream's seed.
        folded = np.array([seed % 2**64 for seed in seeds if seed is not None], dtype=np.uint64).astype(np.int64)
        # The complement keeps the new seed apart from the numbers of the old stream, which are hashes of its key.
        self.reseed(rows[~seeded], ~self.keys[rows[~seeded]])
        self.reseed(rows[seeded], torch.from_numpy(folded))

    def fork(self, copies: int) -> None:
        """Part streams that are each there `copies` times in a row, so that every copy goes on by itself."""
        rows = torch.arange(len(self.keys), device=self.device)
        self.reseed(rows, ~self.keys + self.counters)
        self.reseed(rows, self.keys + rows % copies)

    def borrow(self, rows: Tensor) -> DreamStreams:
        """The streams of `rows` `(K,)` as noise of their own; `give_back` makes their draws count."""
        return DreamStreams.at(self.keys[rows], self.counters[rows], self.device)

    def give_back(self, rows: Tensor, part: DreamStreams) -> None:
        """Note how far `part`, borrowed for `rows`, has been drawn."""
        self.counters[rows] = part.counters


def listed_seeds(seeds: Seeds, num_envs: int) -> list[int | None]:
    """One seed, or None, for each environment.

    Raises:
        ValueError: if there are more or fewer than environments.
    """
    if seeds is None:
        return [None] * num_envs
    if isinstance(seeds, int | np.integer):
        return [int(seeds) + i for i in range(num_envs)]
    if len(seeds) != num_envs:
        raise ValueError(f"There are {len(seeds)} seeds for {num_envs} environments.")
    return [None if seed is None else operator.index(seed) for seed in seeds]
