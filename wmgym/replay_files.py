"""The files of a replay: the JSON index of a folder, and the zip of JSON and `.npy` entries."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from gymnasium import spaces

from wmgym.checkpoint import space_from_json
from wmgym.files import DAMAGE, CheckpointError, atomic_writer
from wmgym.replay_storage import INDEX, RingStorage, observation_fields
from wmgym.replay_streams import Ranges
from wmgym.spaces import action_size

FORMAT = "wmgym-replay"
FORMAT_VERSION = 1
_MAX_INDEX_BYTES = 64 << 20
_CHUNK = 16 << 20  # bytes read at a time


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a small JSON file atomically."""
    with atomic_writer(path) as file:
        file.write(json.dumps(data, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no object.
    """
    try:
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from `text`, which came from the file `path`."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, its JSON cannot be read: {error}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a replay: its JSON holds a {type(data).__name__}.")
    return data


def write_zip(path: Path, header: dict[str, Any], storage: RingStorage, ranges: Ranges) -> None:
    """Write `index.json` and one `.npy` a field, which holds the streams one after the other in order of time."""
    total = sum(stop - start for start, stop in ranges)
    with atomic_writer(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(INDEX, json.dumps(header))
        for name, array in storage.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                _write_npy_header(entry, (total, *array.shape[2:]), array.dtype)
                for block in _all_blocks(storage, name, ranges):
                    entry.write(_bytes_of(block))


def read_zip(path: Path, archive: zipfile.ZipFile, storage: RingStorage, ranges: Ranges) -> None:
    """The inverse of `write_zip`: fill the streams' steps with what the archive holds.

    Raises:
        CheckpointError: if an entry is missing, damaged, or of another shape or type.
    """
    total = sum(stop - start for start, stop in ranges)
    for name, array in storage.arrays.items():
        try:
            with archive.open(f"{name}.npy") as entry:
                _check_npy_header(path, name, entry, (total, *array.shape[2:]), array.dtype)
                for block in _all_blocks(storage, name, ranges):
                    _read_into(entry, _bytes_of(block))
                if entry.read(1):
                    raise CheckpointError(f"{path} is damaged: {name!r} is longer than its header says.")
        except (KeyError, *DAMAGE) as error:
            raise CheckpointError(f"{path} is damaged: its entry {name!r} cannot be read ({error}).") from error
    for env, (start, stop) in enumerate(ranges):
        storage.mark(env, start, stop, whole=True)


def _all_blocks(storage: RingStorage, name: str, ranges: Ranges) -> Iterator[np.ndarray]:
    for env, (start, stop) in enumerate(ranges):
        yield from storage.blocks(name, env, start, stop)


def archive_header(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """The checked index of a replay's zip."""
    try:
        size = archive.getinfo(INDEX).file_size
        text = archive.read(INDEX) if size <= _MAX_INDEX_BYTES else b""
    except KeyError:
        raise CheckpointError(f"{path} is no replay: it is a zip without {INDEX}.") from None
    header = parse_json(text, path)
    check_header(path, header)
    return header


def check_header(path: Path, header: dict[str, Any]) -> None:
    """Check that this version can read what the header announces.

    Raises:
        CheckpointError: if it is no replay's, is newer than this code, or contradicts itself.
    """
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no replay: its index does not say {FORMAT!r}.")
    version = header.get("version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has replay format {version}, this wmgym reads up to {FORMAT_VERSION}: update wmgym."
        )
    try:
        sound = _is_sound(header["n_envs"], header["capacity"], header["oldest"], header["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its index lacks or misstates {error}.") from error
    if not sound:
        raise CheckpointError(f"{path} is damaged: the counters in its index contradict each other.")


def _is_sound(n_envs: int, capacity: int, oldest: list[int], state: dict[str, Any]) -> bool:
    held = [stop - start for start, stop in zip(oldest, state["count"], strict=True)]
    return (
        capacity >= n_envs >= 1
        and n_envs == len(held) == len(state["served"]) == len(state["cut"])
        and min(oldest) >= 0
        and all(0 <= length <= capacity // n_envs for length in held)
        and "rng" in state
    )


def require_same_spaces(
    path: Path, header: dict[str, Any], observation_space: spaces.Space | None, action_space: spaces.Space | None
) -> None:
    """Compare a replay's spaces with the wanted ones (None wants nothing).

    Raises:
        CheckpointError: if they differ in keys, shapes, or kind of action; the message names both.
    """
    for kind, wanted in (("observation", observation_space), ("action", action_space)):
        found = space_from_json(header[f"{kind}_space"])
        if wanted is not None and _signature(found, kind) != _signature(wanted, kind):
            raise CheckpointError(
                f"{path} holds the {kind}s {_signature(found, kind)}, but {_signature(wanted, kind)} are wanted."
            )


def _signature(space: spaces.Space, kind: str) -> str:
    if kind == "action":
        return f"{type(space).__name__}({action_size(space)})"
    fields = observation_fields(space)
    return ", ".join(f"{key}: {field.dtype}{list(field.shape)}" for key, field in sorted(fields.items()))


def _bytes_of(block: np.ndarray) -> memoryview:
    return block.reshape(-1).view(np.uint8).data


def _write_npy_header(entry: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(entry, {"descr": descr, "fortran_order": False, "shape": shape})


def _check_npy_header(path: Path, name: str, entry: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    try:
        np.lib.format.read_magic(entry)
        found_shape, fortran_order, found_dtype = np.lib.format.read_array_header_1_0(entry)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {name!r} has no readable header ({error}).") from error
    if (found_shape, found_dtype, fortran_order) != (shape, dtype, False):
        raise CheckpointError(f"{path} holds {name!r} as {found_dtype} {found_shape}, expected {dtype} {shape}.")


def _read_into(entry: IO[bytes], target: memoryview) -> None:
    done = 0
    while done < len(target):
        data = entry.read(min(len(target) - done, _CHUNK))
        if not data:
            raise EOFError("it ends too early")
        target[done : done + len(data)] = data
        done += len(data)
