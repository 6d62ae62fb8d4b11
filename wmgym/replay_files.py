"""The files of a replay: the JSON index of a folder, and the zip of JSON and `.npy` entries."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from gymnasium import spaces

from wmgym.checkpoint import space_from_json
from wmgym.files import CheckpointError, atomic_writer
from wmgym.replay_storage import INDEX, Field, RingStorage, observation_fields
from wmgym.replay_streams import Ranges, check_state
from wmgym.spaces import SpaceError, action_size

FORMAT = "wmgym-replay"
FORMAT_VERSION = 2
"""2: the index holds the SHA-256 of every entry, and closes the zip. 1 had none, and is still read."""

_MAX_INDEX_BYTES = 4 << 20
_MAX_CAPACITY = 2**48
_CHUNK = 16 << 20  # bytes read at a time


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a small JSON file atomically.

    Raises:
        CheckpointError: if it cannot be written; what stood at the path stays.
    """
    try:
        with atomic_writer(path) as file:
            file.write(json.dumps(data, indent=1).encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error


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
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, its JSON cannot be read: {error}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a replay: its JSON holds a {type(data).__name__}.")
    return data


def write_zip(path: Path, header: dict[str, Any], storage: RingStorage, ranges: Ranges) -> None:
    """Write one `.npy` a field, which holds the streams one after the other in order of time, and `index.json`."""
    total = _total(ranges)
    digests = {}
    with atomic_writer(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in storage.arrays.items():
            digest = hashlib.sha256()
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                _write_npy_header(entry, (total, *array.shape[2:]), array.dtype)
                for block in _all_blocks(storage, name, ranges):
                    entry.write(_bytes_of(block))
                    digest.update(_bytes_of(block))
            digests[name] = digest.hexdigest()
        archive.writestr(INDEX, json.dumps({**header, "sha256": digests}))


def check_entries(path: Path, archive: zipfile.ZipFile, fields: Mapping[str, Field], header: dict[str, Any]) -> None:
    """Check names, sizes, shapes and dtypes of a replay's entries, before memory is taken for them.

    Raises:
        CheckpointError: naming the entry that is missing, unknown, or not what the index makes it.
    """
    entries = {info.filename: info for info in archive.infolist()}
    known = {INDEX} | {f"{name}.npy" for name in fields}
    if entries.keys() != known or len(entries) != len(archive.infolist()):
        raise CheckpointError(f"{path} is damaged or tampered with: it holds {sorted(entries)}, not {sorted(known)}.")
    total = _total(zip(header["oldest"], header["state"]["count"]))
    for name, field in fields.items():
        info = entries[f"{name}.npy"]
        with archive.open(info) as entry:
            _check_npy_header(path, name, entry, (total, *field.shape), field.dtype)
            expected = entry.tell() + total * math.prod(field.shape) * field.dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size == expected:
            raise CheckpointError(
                f"{path} is damaged or tampered with: {name!r} has not the size that its header says."
            )


def read_zip(
    path: Path, archive: zipfile.ZipFile, storage: RingStorage, ranges: Ranges, digests: Mapping[str, str] | None
) -> None:
    """The inverse of `write_zip`: fill the streams' steps with what the archive, once checked, holds.

    Raises:
        CheckpointError: if an entry is damaged.
    """
    for name in storage.arrays:
        digest = hashlib.sha256()
        with archive.open(f"{name}.npy") as entry:
            _skip_npy_header(entry)
            for block in _all_blocks(storage, name, ranges):
                _read_into(entry, _bytes_of(block))
                digest.update(_bytes_of(block))
            entry.read(1)  # where the zip's own checksum is compared
        if digests is not None and digests.get(name) != digest.hexdigest():
            raise CheckpointError(f"{path} is damaged: the checksum of its {name!r} is wrong.")
    for env, (start, stop) in enumerate(ranges):
        storage.mark(env, start, stop, whole=True)


def _total(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


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
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} is damaged: {version!r} is no version.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has replay format {version}, this wmgym reads up to {FORMAT_VERSION}: update wmgym."
        )
    try:
        _check_counters(header)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its index lacks or misstates {error}.") from error


def _check_counters(header: dict[str, Any]) -> None:
    n_envs, capacity, oldest, state = (header[name] for name in ("n_envs", "capacity", "oldest", "state"))
    if type(n_envs) is not int or type(capacity) is not int or not 1 <= n_envs <= capacity <= _MAX_CAPACITY:
        raise ValueError(f"its capacity ({capacity!r}) or number of environments ({n_envs!r})")
    check_state(state, n_envs)
    if not isinstance(oldest, list) or len(oldest) != n_envs or any(type(step) is not int for step in oldest):
        raise ValueError("its oldest steps")
    if not all(0 <= count - old <= capacity // n_envs and old >= 0 for old, count in zip(oldest, state["count"])):
        raise ValueError("how many steps it holds")
    if type(header.get("spare", 0)) is not int or not 0 <= header.get("spare", 0) <= capacity:
        raise ValueError("its spare rows")
    digests = header.get("sha256")
    if not (digests is None or isinstance(digests, dict)):
        raise ValueError("its checksums")
    for name in ("observation_space", "action_space"):
        space_from_json(header[name])


def require_same_spaces(
    path: Path, header: dict[str, Any], observation_space: spaces.Space | None, action_space: spaces.Space | None
) -> None:
    """Compare a replay's spaces with the wanted ones (None wants nothing).

    Raises:
        CheckpointError: if they differ in keys, shapes, or kind of action; the message names both.
    """
    for kind, wanted in (("observation", observation_space), ("action", action_space)):
        try:
            found = _signature(space_from_json(header[f"{kind}_space"]), kind)
        except SpaceError as error:
            raise CheckpointError(f"{path} is damaged: its {kind}s are none that a replay can hold. {error}") from error
        if wanted is not None and found != _signature(wanted, kind):
            raise CheckpointError(f"{path} holds the {kind}s {found}, but {_signature(wanted, kind)} are wanted.")


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
        found_shape, fortran_order, found_dtype = _skip_npy_header(entry)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {name!r} has no readable header ({error}).") from error
    if (found_shape, found_dtype, fortran_order) != (shape, dtype, False):
        raise CheckpointError(f"{path} holds {name!r} as {found_dtype} {found_shape}, expected {dtype} {shape}.")


def _skip_npy_header(entry: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype that stand before an array; what follows is its bytes."""
    if np.lib.format.read_magic(entry) != (1, 0):
        raise ValueError("another version of NumPy's format")
    return np.lib.format.read_array_header_1_0(entry)


def _read_into(entry: IO[bytes], target: memoryview) -> None:
    done = 0
    while done < len(target):
        data = entry.read(min(len(target) - done, _CHUNK))
        if not data:
            raise EOFError("it ends too early")
        target[done : done + len(data)] = data
        done += len(data)
