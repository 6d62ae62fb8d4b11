"""The random streams of many dreams, of which some begin anew while the others go on."""

from __future__ import annotations

from torch import Tensor

from wmgym.random import StreamNoise


class DreamStreams(StreamNoise):
    """One stream an environment, cut into episodes.

    The stream of an environment's n-th episode follows from its seed and n alone: not from what was drawn in the
    episodes before, and not from the neighbours.
    """

    def next_episode(self, rows: Tensor) -> None:
        """Begin the next episode of the streams `rows` `(K,)`."""
        # The complement keeps the new seed apart from the numbers of the old stream, which are hashes of its key.
        self.reseed(rows, ~self.keys[rows])

    def borrow(self, rows: Tensor) -> StreamNoise:
        """The streams of `rows` `(K,)` as noise of their own; `give_back` makes their draws count."""
        part = StreamNoise(self.keys[rows], self.device)
        part.keys, part.counters = self.keys[rows], self.counters[rows]
        return part

    def give_back(self, rows: Tensor, part: StreamNoise) -> None:
        """Note how far `part`, borrowed for `rows`, has been drawn."""
        self.counters[rows] = part.counters
