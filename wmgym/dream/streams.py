"""The random streams of many dreams, of which some begin anew while the others go on."""

from __future__ import annotations

import torch
from torch import Tensor

from wmgym.random import StreamNoise


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

    def next_episode(self, rows: Tensor) -> None:
        """Begin the next episode of the streams `rows` `(K,)`."""
        # The complement keeps the new seed apart from the numbers of the old stream, which are hashes of its key.
        self.reseed(rows, ~self.keys[rows])

    def borrow(self, rows: Tensor) -> DreamStreams:
        """The streams of `rows` `(K,)` as noise of their own; `give_back` makes their draws count."""
        return DreamStreams.at(self.keys[rows], self.counters[rows], self.device)

    def give_back(self, rows: Tensor, part: DreamStreams) -> None:
        """Note how far `part`, borrowed for `rows`, has been drawn."""
        self.counters[rows] = part.counters
