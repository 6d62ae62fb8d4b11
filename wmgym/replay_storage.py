"""Where replay keeps its steps: rings of arrays in RAM or in a folder of memory maps."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from wmgym.files import CheckpointError
from wmgym.spaces import action_size, as_dict_space, is_image

INDEX = "index.json"
OBSERVATION_PREFIX = "observation/"
FLAGS = ("is_first", "is_terminal")
_STEP = "step"
_BLOCK = 16 << 20  # bytes


class Field(NamedTuple):
    """One array of the replay: what a single step of a single environment holds."""

    shape: tuple[int, ...]
    dtype: np.dtype


def observation_fields(space: spaces.Space) -> dict[str, Field]:
    """How observations are stored, by key: pictures as uint8, every other number as float32."""
    boxes = as_dict_space(space)
    return {key: Field(box.shape, np.dtype(np.uint8 if is_image(box) else np.float32)) for key, box in boxes.items()}


def step_fields(observation_space: spaces.Space, action_space: spaces.Space) -> dict[str, Field]:
    """What one step of one environment holds."""
    fields = {OBSERVATION_PREFIX + key: field for key, field in observation_fields(observation_space).items()}
    fields["action"] = Field((action_size(action_space),), np.dtype(np.float32))
    fields["reward"] = Field((), np.dtype(np.float32))
    return fields | {name: Field((), np.dtype(bool)) for name in FLAGS}


def grouped(values: dict[str, Any]) -> dict[str, Any]:
    """Values by field as the arguments of a `SequenceBatch`: the observation becomes a dictionary by key."""
    prefix = OBSERVATION_PREFIX
    observation = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
    return {"observation": observation, **{name: values[name] for name in ("action", "reward", *FLAGS)}}


def checked(name: str, field: Field, value: Any, envs: np.ndarray) -> np.ndarray:
    """`value` as the array `(K, ...)` that the field `name` of the environments `envs` `(K,)` stores.

    Raises:
        ValueError: for a wrong shape or dtype, NaN or infinity; it names the field and the environment.
    """
    array = np.asarray(value)
    if array.shape != (len(envs), *field.shape):
        raise ValueError(f"{name!r} has shape {array.shape}, expected {(len(envs), *field.shape)}.")
    if array.dtype == field.dtype and field.dtype != np.float32:
        return array
    if field.dtype == np.uint8:
        raise ValueError(f"{name!r} is a picture and must be uint8, but its dtype is {array.dtype}.")
    array = array.astype(field.dtype, copy=False)
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(f"{name!r} of environment {envs[row]} is NaN or infinite: {array[row]}. Nothing was stored.")
    return array


class RingStorage:
    """Arrays `(n_envs, rows, ...)`, one ring an environment; step `t` of a stream lies in row `t % rows`.

    Pages are taken from the machine as steps arrive, not when the storage is made. Beside each step lies its
    number, put there after the rest, so that a reopened folder finds which rows are whole, also those written
    after the last flush.

    Args:
        fields: what a step holds, by name; a name may contain one "/".
        rows: how many steps each stream keeps.
        n_envs: number of streams.
        folder: where the memory maps go; None keeps the steps in RAM.

    Raises:
        CheckpointError: if the folder's disk has too little room, or what lies in the folder has another shape.
    """

    def __init__(self, fields: dict[str, Field], rows: int, n_envs: int, folder: Path | None) -> None:
        self.rows = rows
        self.n_envs = n_envs
        self._maps: list[np.memmap] = []
        stored = fields | {_STEP: Field((), np.dtype(np.int64))}
        self.step_bytes = sum(math.prod(field.shape) * field.dtype.itemsize for field in stored.values())
        arrays = self._allocate(stored) if folder is None else self._open(folder, stored)
        self._flat = {name: array.reshape(n_envs * rows, *array.shape[2:]) for name, array in arrays.items()}
        self._steps = self._flat.pop(_STEP)  # number of the step + 1; 0 where the row is not whole
        self.arrays = {name: arrays[name] for name in fields}

    def write(self, envs: np.ndarray, steps: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Put one step of some streams, `(K, ...)` by name, into their rows; `envs` and `steps` are `(K,)`."""
        index = envs * self.rows + steps % self.rows
        self._steps[index] = 0
        for name, value in values.items():
            self._flat[name][index] = value
        self._steps[index] = steps + 1

    def mark(self, env: int, start: int, stop: int, whole: bool) -> None:
        """Declare steps `start` to `stop` of one stream written, or never written."""
        steps = np.arange(start, stop)
        self._steps[env * self.rows + steps % self.rows] = steps + 1 if whole else 0

    def gather(self, envs: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of steps `(T, B)` of environments `(B,)`: `(T, B, ...)` by name."""
        index = envs * self.rows + steps % self.rows
        return {name: flat.take(index, axis=0) for name, flat in self._flat.items()}

    def held(self, env: int) -> tuple[int, int]:
        """The unbroken range of steps that ends with a stream's newest whole row: (oldest, newest + 1)."""
        steps = self._steps[env * self.rows : (env + 1) * self.rows]
        stop = int(steps.max())
        expected = np.arange(stop, max(stop - self.rows, 0), -1)
        broken = np.flatnonzero(steps[(expected - 1) % self.rows] != expected)
        length = int(broken[0]) if len(broken) else len(expected)
        return stop - length, stop

    def blocks(self, name: str, env: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """Views of one field of a stream's steps `start` to `stop` in order of time, contiguous, some megabytes."""
        stream = self.arrays[name][env]
        most = max(1, _BLOCK // stream[0].nbytes)
        while start < stop:
            row = start % self.rows
            count = min(stop - start, self.rows - row, most)
            yield stream[row : row + count]
            start += count

    def flush(self) -> None:
        """Bring the memory maps to disk; in RAM there is nothing to do."""
        for array in self._maps:
            array.flush()

    def _shape(self, field: Field) -> tuple[int, ...]:
        return (self.n_envs, self.rows, *field.shape)

    def _allocate(self, fields: dict[str, Field]) -> dict[str, np.ndarray]:
        return {name: np.zeros(self._shape(field), field.dtype) for name, field in fields.items()}

    def _open(self, folder: Path, fields: dict[str, Field]) -> dict[str, np.ndarray]:
        reopened = (folder / INDEX).is_file()
        if not reopened:
            _require_room(folder, self.step_bytes * self.rows * self.n_envs)
        for name, field in fields.items():
            path, shape = folder / f"{name.replace('/', '.')}.npy", self._shape(field)
            self._maps.append(_reopen_map(path, shape, field.dtype) if reopened else _new_map(path, shape, field.dtype))
        # Plain views, because every slice of a np.memmap is a costly object of its own.
        return {name: np.asarray(array) for name, array in zip(fields, self._maps, strict=True)}


def _require_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:  # a map without room on its disk ends the process with a bus error
        raise CheckpointError(
            f"Replay in {folder} needs {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB left. "
            "Choose another folder or a smaller capacity."
        )


def _new_map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    array: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # the disk's room is taken now: later it could be missing
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _reopen_map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Map a file, once its header and its size are what they should be: NumPy would make a short file longer."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found_shape, _, found_dtype = np.lib.format.read_array_header_1_0(file)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} of the replay folder is missing or damaged: {error}.") from error
    if (found_shape, found_dtype) != (shape, dtype):
        raise CheckpointError(f"{path} holds {found_dtype} {found_shape}, but the replay needs {dtype} {shape}.")
    if path.stat().st_size != expected:
        raise CheckpointError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {expected}.")
    array: np.memmap = np.lib.format.open_memmap(path, mode="r+")
    return array
