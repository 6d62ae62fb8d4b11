"""Sequence replay: what many environments saw, as one stream each, sampled as `(T, B)` sequences.

Nothing is stored twice, cut or padded. A sequence starts anywhere in a stream and runs on across the borders of
episodes, which `is_first` marks; a world resets its state there. So short episodes are kept and sampled too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from wmgym.checkpoint import space_from_json, space_to_json
from wmgym.files import DAMAGE, CheckpointError, find, with_zip_suffix
from wmgym.replay_files import (
    FORMAT,
    FORMAT_VERSION,
    archive_header,
    check_entries,
    check_header,
    read_json,
    read_zip,
    require_same_spaces,
    write_json,
    write_zip,
)
from wmgym.replay_storage import FLAGS, INDEX, OBSERVATION_PREFIX, RingStorage, checked, grouped, step_fields
from wmgym.replay_streams import Streams, begin_stretch, check_state
from wmgym.spaces import as_dict
from wmgym.worlds.base import SequenceBatch

_SPARE = 8  # in a folder, one row for so many is spare: `set_state` finds what was overwritten since
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
        folder: keep the steps in memory-mapped files there instead of in RAM, with an eighth in reserve for
            `set_state`. A folder that holds a replay is reopened with all its complete steps; after a crash of the
            machine only what `flush` wrote is certain.
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
        self._streams = Streams(n_envs, capacity // n_envs, seed)
        self._folder = None if folder is None else Path(folder)
        index = self._read_index()
        spare = 0 if folder is None else self._streams.rows // _SPARE if index is None else index.get("spare", 0)
        self._storage = RingStorage(self._fields, self._streams.rows + spare, n_envs, self._folder)
        if index is not None:
            self._streams.ranges = [self._held_until(env) for env in range(n_envs)]
            self._streams.restore(index["state"])
        elif self._folder is not None:
            write_json(self._folder / INDEX, self._header())

    def __len__(self) -> int:
        """Steps stored, all environments together."""
        return int(self._streams.held.sum())

    @property
    def step_bytes(self) -> int:
        """Bytes that one step of one environment takes."""
        return self._storage.step_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the stored steps."""
        return len(self) * self.step_bytes

    def add(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        is_first: Any,
        is_terminal: Any,
        envs: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Store one step of K environments.

        Args:
            observation: `(K, ...)`, or a dictionary of these by key.
            action: `(K, A)` float32, the action that led to `observation`; one-hot for `Discrete`.
            reward: `(K,)` received on reaching `observation`.
            is_first: `(K,)` bool.
            is_terminal: `(K,)` bool.
            envs: `(K,)` the environments that the rows belong to, none twice; None means all in order. Streams
                may grow at different speeds, for example when an environment resets within a step.

        Raises:
            ValueError: for a wrong shape or key, NaN or infinity; nothing is stored then.
        """
        rows = self._streams.all if envs is None else self._streams.checked(envs)
        values = {OBSERVATION_PREFIX + key: value for key, value in as_dict(observation).items()}
        values |= {"action": action, "reward": reward, "is_first": is_first, "is_terminal": is_terminal}
        if values.keys() != self._fields.keys():
            wanted, got = self._fields.keys() - values.keys(), values.keys() - self._fields.keys()
            raise ValueError(f"The observation lacks {sorted(wanted)} and has unknown {sorted(got)} (keys).")
        values = {name: checked(name, self._fields[name], value, rows) for name, value in values.items()}
        if self._streams.cut.any():
            begin_stretch(values, self._streams.cut[rows])
        self._storage.write(rows, self._streams.count[rows], values)
        self._streams.advance(rows)

    def mark_cut(self, env_index: int | None = None) -> None:
        """Let the next step begin a new stretch, because it does not follow from the last one stored.

        For a run that was resumed without its environments. The next step gets `is_first`, and action and reward
        zero, as every first step has.

        Args:
            env_index: the stream that was cut; None means all.
        """
        self._streams.cut[slice(None) if env_index is None else env_index] = True

    def can_sample(self, length: int) -> bool:
        """Whether some stream holds a sequence of `length` steps."""
        return int(self._streams.held.max()) >= length

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
            ValueError: if no stream holds `length` steps.
        """
        self._streams.require(length)
        envs, steps = self._streams.new_chunks(batch_size, length) if newest_first else _NOTHING
        if len(steps) < batch_size:
            drawn_envs, drawn_steps = self._streams.uniform(batch_size - len(steps), length)
            envs, steps = np.concatenate([envs, drawn_envs]), np.concatenate([steps, drawn_steps])
        arrays = self._storage.gather(envs, steps + np.arange(length)[:, None])
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return SequenceBatch(**grouped(tensors))

    def first_steps(self, limit: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The first observations of the newest episodes held, at most `limit`, from all streams alike.

        Returns:
            By key, `(K, ...)`; K may be 0.
        """
        parts, share = [], -(-limit // self.n_envs)
        for env in range(self.n_envs):
            steps = np.arange(self._streams.oldest[env], self._streams.count[env])
            is_first = self._storage.arrays["is_first"][env, steps % self._storage.rows]
            parts.append(self._storage.gather(np.array(env), steps[is_first][::-1][:share][::-1]))
        joined = {name: np.concatenate([part[name] for part in parts])[:limit] for name in parts[0]}
        observation = grouped(joined)["observation"]
        return {key: torch.from_numpy(value).to(device) for key, value in observation.items()}

    def episodes(self, env: int | None = None) -> Iterator[Episode]:
        """The complete episodes held, stream by stream and in order of time.

        An episode is complete when its first step is still held and either the next episode has begun or it ended
        in `is_terminal`. Nothing may be added while iterating.

        Args:
            env: only this stream; None means all.
        """
        before = self._streams.count.copy()
        for stream in range(self.n_envs) if env is None else (env,):
            for start, stop in self._episode_bounds(stream):
                if not np.array_equal(before, self._streams.count):
                    raise RuntimeError("The replay changed while its episodes were read: list them first.")
                arrays = self._storage.gather(np.array(stream), np.arange(start, stop))
                yield Episode(env=stream, **grouped(arrays))

    def steps(self, env: int, size: int, begun: bool = False) -> Iterator[dict[str, Any]]:
        """Steps of a stream, `size` at once, by the names of `add`: all, or, `begun`, from the first `is_first` on."""
        held = np.arange(*self._streams.ranges[env])
        if begun and len(held):
            held = held[self._storage.arrays["is_first"][env, held % self._storage.rows].argmax() :]
        for start in range(0, len(held), size):
            yield grouped(self._storage.gather(np.array(env), held[start : start + size]))

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

        Raises:
            CheckpointError: if it cannot be written; what stood at the path stays.
        """
        self.flush()
        path = with_zip_suffix(path)
        try:
            write_zip(path, self._header(), self._storage, self._streams.ranges)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error}.") from error
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
        path = find(path)
        try:
            with zipfile.ZipFile(path) as archive:
                return cls._from_archive(path, archive, observation_space, action_space, folder)
        except (KeyError, *DAMAGE) as error:
            raise CheckpointError(f"{path} cannot be read as a replay: {error}.") from error

    def get_state(self) -> dict[str, Any]:
        """Counters and random state as JSON data; with the stored steps, all that sampling depends on."""
        return self._streams.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to where `get_state` was called; steps added since are dropped.

        Steps overwritten since stay lost, but a replay in a folder keeps an eighth of its capacity in reserve: it is
        exactly what it was, if no more steps than that were added.

        Raises:
            ValueError: if the state belongs to a replay with more steps, or its steps are no longer held.
        """
        check_state(state, self.n_envs)
        kept = [self._storage.held(env) for env in range(self.n_envs)]
        if not all(oldest <= count <= newest for count, (oldest, newest) in zip(state["count"], kept)):
            raise ValueError(
                f"The state belongs to a replay after {state['count']} steps by stream; this one holds the steps "
                f"{kept}."
            )
        for env, (count, (_, newest)) in enumerate(zip(state["count"], kept)):
            self._storage.mark(env, count, newest, whole=False)
        self._streams.ranges = [self._held_until(env, count) for env, count in enumerate(state["count"])]
        self._streams.restore(state)

    def _held_until(self, env: int, stop: int | None = None) -> tuple[int, int]:
        """Which steps of a stream the replay counts as held, up to `stop`; None: the newest."""
        oldest, newest = self._storage.held(env)
        stop = newest if stop is None else stop
        return max(oldest, stop - self._streams.rows), stop

    def _episode_bounds(self, env: int) -> Iterator[tuple[int, int]]:
        steps = np.arange(*self._streams.ranges[env])
        flags = {name: self._storage.arrays[name][env, steps % self._storage.rows] for name in FLAGS}
        starts = steps[flags["is_first"]].tolist()
        yield from pairwise(starts)
        if starts and flags["is_terminal"][-1]:
            yield starts[-1], int(steps[-1]) + 1

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "capacity": self.capacity,
            "n_envs": self.n_envs,
            "spare": self._storage.rows - self._streams.rows,
            "oldest": self._streams.oldest.tolist(),
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
        own_spaces = [space_from_json(header[name]) for name in ("observation_space", "action_space")]
        check_entries(path, archive, step_fields(*own_spaces), header)
        if folder is not None and (Path(folder) / INDEX).exists():
            raise CheckpointError(f"{folder} already holds a replay: give an empty folder to load {path} into.")
        replay = cls(
            header["capacity"],
            observation_space or own_spaces[0],
            action_space or own_spaces[1],
            header["n_envs"],
            folder,
        )
        replay._streams.ranges = list(zip(header["oldest"], header["state"]["count"]))
        replay._streams.restore(header["state"])
        read_zip(path, archive, replay._storage, replay._streams.ranges, header.get("sha256"))
        replay.flush()
        return replay
