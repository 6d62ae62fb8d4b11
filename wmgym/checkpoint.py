"""One safe file format: a zip that holds JSON and safetensors, and nothing that could run when it is opened."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from gymnasium import spaces


class CheckpointError(Exception):
    """A file that cannot be read or written; the message names the file and the fault."""


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` complete or not at all.

    The bytes go to a temporary file in the same folder, are synced to disk, and take the final name by a rename.
    When the body raises, the temporary file is removed and whatever stood at `path` stays as it was.

    Args:
        path: the final name; its folder is made when missing.

    Yields:
        The temporary file, open for writing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    # The mask can only be read by setting it; mkstemp made the file private, a checkpoint should not be.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A `Box`, `Discrete` or `Dict` of these as JSON data; infinite bounds become the strings "inf" and "-inf".

    Raises:
        CheckpointError: for any other space.

    Example:
        >>> space_to_json(spaces.Box(-np.inf, np.inf, (3,)))
        {'type': 'Box', 'dtype': 'float32', 'shape': [3], 'low': '-inf', 'high': 'inf'}
    """
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_to_json(value)] for key, value in space.spaces.items()]}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        low = "-inf" if not space.bounded_below.any() else _bound_to_json(space.low)
        high = "inf" if not space.bounded_above.any() else _bound_to_json(space.high)
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": low, "high": high}
    raise CheckpointError(f"Spaces of type {type(space).__name__} cannot be saved: use Box, Discrete or Dict.")


def _bound_to_json(bound: np.ndarray) -> Any:
    values = bound.ravel().tolist()
    values = [str(value) if isinstance(value, float) and math.isinf(value) else value for value in values]
    return values[0] if len(set(values)) == 1 else values


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `space_to_json`.

    Raises:
        CheckpointError: if `data` does not describe a space.
    """
    try:
        return _space_from_json(data)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
        raise CheckpointError(f"This is not the description of a space: {str(data)[:200]} ({error}).") from error


def _space_from_json(data: dict[str, Any]) -> spaces.Space:
    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict([(key, _space_from_json(value)) for key, value in data["spaces"]])
    if kind == "Discrete":
        # Only newer Gymnasium takes a dtype, and int64 is the default in all of them.
        other = {} if data["dtype"] == "int64" else {"dtype": np.dtype(data["dtype"]).type}
        return spaces.Discrete(data["n"], start=data["start"], **other)
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bound_from_json(data[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    raise ValueError(f"unknown type {kind!r}")


def _bound_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    if isinstance(value, list):
        return np.array([float(entry) if isinstance(entry, str) else entry for entry in value], dtype).reshape(shape)
    return float(value) if isinstance(value, str) else value
