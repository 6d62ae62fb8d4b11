"""Sequence replay: what many environments saw, as one stream each, sampled as `(T, B)` sequences.

Nothing is stored twice, cut or padded. A sequence starts anywhere in a stream and runs on across the borders of
episodes, which `is_first` marks; a world resets its state there. So short episodes are kept and sampled too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from wmgym.checkpoint import CheckpointError, space_from_json, space_to_json
from wmgym.replay_files import (
    DAMAGE,
    FORMAT,
    FORMAT_VERSION,
    archive_header,
    check_header,
    read_json,
    read_zip,
    require_same_spaces,
    with_suffix,
    write_json,
    write_zip,
)
from wmgym.replay_storage import FLAGS, INDEX, OBSERVATION_PREFIX, RingStorage, grouped, step_fields
from wmgym.spaces import as_dict
from wmgym.worlds.base import SequenceBatch

_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Episode:
    """One complete episode as NumPy arrays, time first; aligned as `wmgym.worlds.base` shows.

    Attributes:
        env: the stream it is from.
        observation: by key, `(T, ...)`; pictures uint8 HWC, vectors float32.
        action: `(T, A)` float32.
        reward: `(T,)` float32.
        is_first: `(T,)` bool, True at 0 only.
        is_terminal: `(T,)` bool; all False when the episode was truncated.
    """

    env: int
    observation: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_terminal: np.ndarray

    def __len__(self) -> int:
        return len(self.reward)


class SequenceReplay:
    """The newest steps of `n_envs` environments, for sampling sequences.

    Args:
        capacity: how many steps are kept, all environments together; the oldest go first.
        observation_space: a `Box` or a `Dict` of boxes (`wmgym.spaces.as_dict_space`). Pictures are stored as
            uint8, everything else as float32.
        action_space: `Box` or `Discrete`; it fixes the width of the actions (`wmgym.spaces.action_size`).
        n_envs: number of environments, each a stream of its own of `capacity // n_envs` steps.
        folder: keep the steps in memory-mapped files there instead of in RAM. A folder that holds a replay is
            reopened with all its complete steps; after a crash of the machine only what `flush` wrote is certain.
        seed: of the sampling.

    Raises:
        ValueError: if the capacity is smaller than one step an environment.
        CheckpointError: if the folder holds a replay of other spaces or sizes, or its disk is too full.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = SequenceReplay(1000, spaces.Box(-1, 1, (3,)), spaces.Discrete(2), n_envs=2)
        >>> for step in range(10):
        ...     replay.add(np.zeros((2, 3)), np.eye(2), np.ones(2), np.full(2, step == 0), np.zeros(2, bool))
        >>> len(replay), replay.sample(batch_size=4, length=8).reward.shape
        (20, torch.Size([8, 4]))
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        n_envs: int = 1,
        folder: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if n_envs < 1 or capacity < n_envs:
            raise ValueError(f"A replay of {capacity} steps has no room for {n_envs} environments: raise capacity.")
        self.observation_space = observation_space
        self.action_space = action_space
        self.n_envs = n_envs
        self.capacity = capacity // n_envs * n_envs
        self._fields = step_fields(observation_space, action_space)
        self._rng = np.random.default_rng(seed)
        self._oldest = 0  # steps are numbered from the first one ever added; all streams stand at the same number
        self._count = 0
        self._served = np.zeros(n_envs, np.int64)  # up to which step the online queue has handed out each stream
        self._cut = np.zeros(n_envs, bool)
        self._folder = None if folder is None else Path(folder)
        index = self._read_index()
        self._storage = RingStorage(self._fields, capacity // n_envs, n_envs, self._folder)
        if index is not None:
            self._oldest, self._count = self._storage.held()
            self._restore(index["state"])
        elif self._folder is not None:
            write_json(self._folder / INDEX, self._header())

    def __len__(self) -> int:
        """Steps stored, all environments together."""
        return (self._count - self._oldest) * self.n_envs

    @property
    def step_bytes(self) -> int:
        """Bytes that one step of one environment takes."""
        return self._storage.step_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the stored steps."""
        return len(self) * self.step_bytes

    def add(self, observation: Any, action: Any, reward: Any, is_first: Any, is_terminal: Any) -> None:
        """Store one step of every environment.

        Args:
            observation: `(n_envs, ...)`, or a dictionary of these by key.
            action: `(n_envs, A)` float32, the action that led to `observation`; one-hot for `Discrete`.
            reward: `(n_envs,)` received on reaching `observation`.
            is_first: `(n_envs,)` bool.
            is_terminal: `(n_envs,)` bool.

        Raises:
            ValueError: for a wrong shape or key, NaN or infinity; nothing is stored then.
        """
        values = {OBSERVATION_PREFIX + key: value for key, value in as_dict(observation).items()}
        values |= {"action": action, "reward": reward, "is_first": is_first, "is_terminal": is_terminal}
        if values.keys() != self._fields.keys():
            wanted, got = self._fields.keys() - values.keys(), values.keys() - self._fields.keys()
            raise ValueError(f"The observation lacks {sorted(wanted)} and has unknown {sorted(got)} (keys).")
        values = {name: self._checked(name, value) for name, value in values.items()}
        if self._cut.any():
            self._begin_stretch(values)
        self._oldest = max(self._oldest, self._count + 1 - self._storage.rows)
        self._storage.write(self._count, values)
        self._count += 1

    def mark_cut(self, env_index: int | None = None) -> None:
        """Let the next step begin a new stretch, because it does not follow from the last one stored.

        For a run that was resumed without its environments. The next step gets `is_first`, and action and reward
        zero, as every first step has.

        Args:
            env_index: the stream that was cut; None means all.
        """
        self._cut[slice(None) if env_index is None else env_index] = True

    def can_sample(self, length: int) -> bool:
        """Whether every stream holds a sequence of `length` steps."""
        return self._count - self._oldest >= length

    def sample(
        self, batch_size: int, length: int, newest_first: bool = False, device: torch.device | str = "cpu"
    ) -> SequenceBatch:
        """Draw sequences, uniformly over all places where one can start.

        Args:
            batch_size: B.
            length: T.
            newest_first: serve first what no such call has served yet, as DreamerV3's online queue does (Hafner et
                al. 2023, appendix): each stream's new steps in chunks of `length`, every chunk once, in order of
                time; the rest of the batch is uniform.
            device: where the tensors are wanted.

        Returns:
            Tensors `(T, B, ...)`, copies; pictures uint8 HWC.

        Raises:
            ValueError: if the streams hold fewer than `length` steps.
        """
        self._require(length)
        steps, envs = self._new_chunks(batch_size, length) if newest_first else _NOTHING
        starts = (self._count - self._oldest - length + 1) * self.n_envs
        drawn = self._rng.integers(0, starts, batch_size - len(steps))
        steps = np.concatenate([steps, self._oldest + drawn // self.n_envs])
        envs = np.concatenate([envs, drawn % self.n_envs])
        arrays = self._storage.gather(steps + np.arange(length)[:, None], envs)
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return SequenceBatch(**grouped(tensors))

    def episodes(self, env: int | None = None) -> Iterator[Episode]:
        """The complete episodes held, stream by stream and in order of time.

        An episode is complete when its first step is still held and either the next episode has begun or it ended
        in `is_terminal`. Nothing may be added while iterating.

        Args:
            env: only this stream; None means all.
        """
        count = self._count
        for stream in range(self.n_envs) if env is None else (env,):
            for start, stop in self._episode_bounds(stream):
                if self._count != count:
                    raise RuntimeError("The replay changed while its episodes were read: list them first.")
                arrays = self._storage.gather(np.arange(start, stop), np.array(stream))
                yield Episode(env=stream, **grouped(arrays))

    def flush(self) -> None:
        """Bring a memory-mapped replay and its counters to disk; in RAM this does nothing."""
        if self._folder is not None:
            self._storage.flush()
            write_json(self._folder / INDEX, self._header())

    def save(self, path: str | Path) -> Path:
        """Write everything, counters and random state included, to a zip of JSON and `.npy` entries, atomically.

        Args:
            path: ".zip" is added when it has no suffix.

        Returns:
            The path written.
        """
        self.flush()
        path = with_suffix(path)
        write_zip(path, self._header(), self._storage, self._oldest, self._count)
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        folder: str | Path | None = None,
    ) -> SequenceReplay:
        """Read what `save` wrote; it samples on as the saved one would have. Nothing is unpickled.

        Args:
            path: the file; ".zip" may be left out.
            observation_space: what the file must hold; None takes the file's own.
            action_space: likewise.
            folder: an empty folder for memory maps; None keeps the steps in RAM.

        Raises:
            CheckpointError: if the file is missing, damaged, no replay, or of other spaces.
        """
        path = with_suffix(path)
        try:
            with zipfile.ZipFile(path) as archive:
                return cls._from_archive(path, archive, observation_space, action_space, folder)
        except DAMAGE as error:
            raise CheckpointError(f"{path} cannot be read as a replay: {error}.") from error

    def get_state(self) -> dict[str, Any]:
        """Counters and random state as JSON data; with the stored steps, all that sampling depends on."""
        return {
            "rng": self._rng.bit_generator.state,
            "count": self._count,
            "served": self._served.tolist(),
            "cut": self._cut.tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to where `get_state` was called; steps added since are dropped, overwritten ones stay lost.

        Raises:
            ValueError: if the state belongs to a replay with more steps, or its steps are no longer held.
        """
        count = int(state["count"])
        if not self._oldest <= count <= self._count:
            raise ValueError(
                f"The state belongs to a replay after {count} steps a stream; this one holds steps {self._oldest} "
                f"to {self._count}."
            )
        self._storage.mark(count, self._count, whole=False)
        self._count = count
        self._restore(state)

    def _checked(self, name: str, value: Any) -> np.ndarray:
        field = self._fields[name]
        array = np.asarray(value)
        if array.shape != (self.n_envs, *field.shape):
            raise ValueError(f"{name!r} has shape {array.shape}, expected {(self.n_envs, *field.shape)}.")
        if array.dtype == field.dtype and field.dtype != np.float32:
            return array
        if field.dtype == np.uint8:
            raise ValueError(f"{name!r} is a picture and must be uint8, but its dtype is {array.dtype}.")
        array = array.astype(field.dtype, copy=False)
        if not np.isfinite(array).all():
            env = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(f"{name!r} of environment {env} is NaN or infinite: {array[env]}. Nothing was stored.")
        return array

    def _begin_stretch(self, values: dict[str, np.ndarray]) -> None:
        for name, start in (("is_first", True), ("action", 0), ("reward", 0)):
            values[name] = values[name].copy()
            values[name][self._cut] = start
        self._cut[:] = False

    def _require(self, length: int) -> None:
        held = self._count - self._oldest
        if length < 1:
            raise ValueError(f"A sequence of {length} steps cannot be sampled: length must be 1 or more.")
        if length > self._storage.rows:
            raise ValueError(
                f"Sequences of {length} steps never fit: the capacity of {self.capacity} leaves each of "
                f"{self.n_envs} streams {self._storage.rows} steps. Raise the capacity."
            )
        if length > held:
            raise ValueError(f"Each stream holds {held} steps, a sequence needs {length}: collect more first.")

    def _new_chunks(self, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        np.maximum(self._served, self._oldest, out=self._served)
        waiting = np.minimum((self._count - self._served) // length, batch_size)  # (n_envs,)
        envs = np.repeat(np.arange(self.n_envs), waiting)
        chunk = np.arange(len(envs)) - np.repeat(np.cumsum(waiting) - waiting, waiting)  # 0, 1, ... in each stream
        steps = self._served[envs] + chunk * length
        order = np.argsort(steps, kind="stable")[:batch_size]
        self._served += length * np.bincount(envs[order], minlength=self.n_envs)
        return steps[order], envs[order]

    def _episode_bounds(self, env: int) -> Iterator[tuple[int, int]]:
        steps = np.arange(self._oldest, self._count)
        flags = {name: self._storage.arrays[name][steps % self._storage.rows, env] for name in FLAGS}
        starts = steps[flags["is_first"]].tolist()
        yield from pairwise(starts)
        if starts and flags["is_terminal"][-1]:
            yield starts[-1], self._count

    def _restore(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._served[:] = state["served"]
        self._cut[:] = state["cut"]

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "capacity": self.capacity,
            "n_envs": self.n_envs,
            "oldest": self._oldest,
            "state": self.get_state(),
        }

    def _read_index(self) -> dict[str, Any] | None:
        if self._folder is None or not (self._folder / INDEX).is_file():
            return None
        index = read_json(self._folder / INDEX)
        check_header(self._folder, index)
        require_same_spaces(self._folder, index, self.observation_space, self.action_space)
        if (index["capacity"], index["n_envs"]) != (self.capacity, self.n_envs):
            raise CheckpointError(
                f"{self._folder} holds a replay of capacity {index['capacity']} and {index['n_envs']} environments, "
                f"but capacity {self.capacity} and {self.n_envs} environments were asked for."
            )
        return index

    @classmethod
    def _from_archive(
        cls,
        path: Path,
        archive: zipfile.ZipFile,
        observation_space: spaces.Space | None,
        action_space: spaces.Space | None,
        folder: str | Path | None,
    ) -> SequenceReplay:
        header = archive_header(path, archive)
        require_same_spaces(path, header, observation_space, action_space)
        if folder is not None and (Path(folder) / INDEX).exists():
            raise CheckpointError(f"{folder} already holds a replay: give an empty folder to load {path} into.")
        replay = cls(
            header["capacity"],
            observation_space or space_from_json(header["observation_space"]),
            action_space or space_from_json(header["action_space"]),
            header["n_envs"],
            folder,
        )
        read_zip(path, archive, replay._storage, header["oldest"], header["state"]["count"])
        replay._oldest, replay._count = header["oldest"], header["state"]["count"]
        replay._restore(header["state"])
        replay.flush()
        return replay
