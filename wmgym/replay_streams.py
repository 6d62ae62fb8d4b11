"""Which steps of which streams a replay holds, and which of them a batch takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wmgym.replay import SequenceReplay

_MOST = 2**48  # steps of a stream; more than a machine sees in a lifetime

Ranges = Sequence[tuple[int, int]]
"""The steps held of each stream: (oldest, newest + 1)."""


class Streams:
    """The counters of a replay's streams, and the choice of where sequences start.

    The steps of a stream are numbered from the first one ever added.

    Args:
        n_envs: number of streams.
        rows: how many steps each keeps.
        seed: of the choice.
    """

    def __init__(self, n_envs: int, rows: int, seed: int) -> None:
        self.rows = rows
        self.all = np.arange(n_envs)
        self.cut = np.zeros(n_envs, bool)  # the next step begins a new stretch
        # By stream: the oldest step held, the next one to come, the next one that the online queue has not served.
        self.oldest, self.count, self.served = np.zeros((3, n_envs), np.int64)
        self._rng = np.random.default_rng(seed)

    @property
    def held(self) -> np.ndarray:
        """How many steps each stream holds."""
        return self.count - self.oldest

    @property
    def ranges(self) -> Ranges:
        """The steps held of each stream."""
        return list(zip(self.oldest.tolist(), self.count.tolist()))

    @ranges.setter
    def ranges(self, ranges: Ranges) -> None:
        self.oldest, self.count = np.array(ranges, np.int64).T.copy()

    def checked(self, envs: Sequence[int] | np.ndarray) -> np.ndarray:
        """`envs` as an array.

        Raises:
            ValueError: if a number stands twice or belongs to no stream.
        """
        rows = np.asarray(envs, np.int64)
        if len(np.unique(rows)) != len(rows) or not np.isin(rows, self.all).all():
            raise ValueError(f"envs must be distinct numbers from 0 to {len(self.all) - 1}, not {rows.tolist()}.")
        return rows

    def advance(self, envs: np.ndarray) -> None:
        """One step was added to each of `envs`."""
        self.count[envs] += 1
        self.oldest[envs] = np.maximum(self.oldest[envs], self.count[envs] - self.rows)
        self.cut[envs] = False

    def require(self, length: int) -> None:
        """Raise a ValueError that says what is missing, if no stream holds `length` steps."""
        if length < 1:
            raise ValueError(f"A sequence of {length} steps cannot be sampled: length must be 1 or more.")
        if length > self.rows:
            raise ValueError(
                f"Sequences of {length} steps never fit: the replay keeps {self.rows} steps of each of "
                f"{len(self.all)} streams. Raise its capacity."
            )
        longest = int(self.held.max())
        if length > longest:
            raise ValueError(
                f"The longest stream holds {longest} steps, a sequence needs {length}: collect more first."
            )

    def uniform(self, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first steps of sequences, `(size,)`, uniform over all places where one can start."""
        starts = np.maximum(self.held - length + 1, 0)  # (n_envs,)
        ends = np.cumsum(starts)
        drawn = self._rng.integers(0, ends[-1], size)
        envs = np.searchsorted(ends, drawn, side="right")
        return envs, self.oldest[envs] + drawn - (ends - starts)[envs]

    def new_chunks(self, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first steps of at most `size` chunks of `length` that were never served before, oldest first."""
        np.maximum(self.served, self.oldest, out=self.served)
        waiting = np.minimum((self.count - self.served) // length, size)  # (n_envs,)
        envs = np.repeat(self.all, waiting)
        chunk = np.arange(len(envs)) - np.repeat(np.cumsum(waiting) - waiting, waiting)  # 0, 1, ... in each stream
        steps = self.served[envs] + chunk * length
        order = np.argsort(steps, kind="stable")[:size]
        self.served += length * np.bincount(envs[order], minlength=len(self.all))
        return envs[order], steps[order]

    def get_state(self) -> dict[str, Any]:
        """Everything but the oldest steps, as JSON data."""
        return {
            "rng": self._rng.bit_generator.state,
            "count": self.count.tolist(),
            "served": self.served.tolist(),
            "cut": self.cut.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` gave, except for the counts; `check_state` first where it came from a file."""
        self._rng.bit_generator.state = state["rng"]
        self.served[:] = state["served"]
        self.cut[:] = state["cut"]


@contextmanager
def drawing(replay: SequenceReplay, seed: int | None = None) -> Iterator[None]:
    """What is drawn from `replay` within leaves no trace; with a `seed` it is the same every time."""
    before = replay.get_state()
    if seed is not None:
        replay.set_state({**before, "rng": np.random.default_rng(seed).bit_generator.state})
    try:
        yield
    finally:
        replay.set_state(before)


def check_state(state: Any, n_envs: int) -> None:
    """Check that `state` is what `Streams.get_state` gives for `n_envs` streams.

    Raises:
        ValueError: naming what is wrong.
    """
    if not isinstance(state, dict) or not {"rng", "count", "served", "cut"} <= state.keys():
        raise ValueError("the state of the replay is incomplete")
    for name, kind in (("count", int), ("served", int), ("cut", bool)):
        values = state[name]
        if not isinstance(values, list) or len(values) != n_envs or any(type(value) is not kind for value in values):
            raise ValueError(f"{name!r} must be a list of {n_envs} values of type {kind.__name__}")
    if not all(0 <= served <= count <= _MOST for served, count in zip(state["served"], state["count"])):
        raise ValueError("'count' and 'served' contradict each other")
    try:
        np.random.PCG64().state = state["rng"]
    except (TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"'rng' is no state of PCG64 ({error!r})") from error


def begin_stretch(values: dict[str, np.ndarray], cut: np.ndarray) -> None:
    """Let the steps `values` `(K, ...)` by name be first ones where `cut` `(K,)` says so."""
    for name, start in (("is_first", True), ("action", 0), ("reward", 0)):
        values[name] = values[name].copy()  # it may be the caller's own array
        values[name][cut] = start
