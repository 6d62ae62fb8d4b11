"""One safe file format: a zip that holds JSON and safetensors, and nothing that could run when it is opened.

The zip has an entry `manifest.json` and, for each group of tensors, `<group>.safetensors`; a tensor's group is the
first part of its name (`world/encoder.weight` is in `world`), so a group is read without the others. Entries are
stored, not compressed. The manifest entry holds the versions and each group's size and SHA-256, by which a file is
judged before its content is looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from torch import Tensor

from wmgym.files import DAMAGE, NONSENSE, CheckpointError, atomic_writer, find, with_zip_suffix

__all__ = ["CheckpointError", "load", "read_manifest", "save", "space_from_json", "space_to_json"]

FORMAT = "wmgym-checkpoint"
FORMAT_VERSION = 1

_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}
_MANIFEST = "manifest.json"
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MAX_MANIFEST_BYTES = 16 << 20  # JSON grows when it is parsed, twentyfold at worst
_MAX_BOX_SIZE = 1 << 22


def save(path: str | Path, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor | np.ndarray]) -> Path:
    """Write a checkpoint; it appears complete or not at all.

    Args:
        path: ".zip" is added when it has no suffix.
        manifest: JSON data. Floats and integers of any size come back exactly; tuples come back as lists.
        tensors: by name, `<group>/<rest>`; from any device.

    Returns:
        The path written.

    Raises:
        CheckpointError: if the manifest or a tensor cannot be represented, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> path = save(f"{folder}/walker", {"steps": 7}, {"world/bias": torch.ones(2), "agent/bias": torch.zeros(2)})
        >>> manifest, tensors = load(path, prefix="world")
        >>> path.name, manifest["steps"], list(tensors)
        ('walker.zip', 7, ['world/bias'])
    """
    path = with_zip_suffix(path)
    manifest = dict(manifest)
    _check_json(manifest, "manifest")
    groups = _grouped(tensors)
    written: dict[str, Any] = {}
    header = {"format": FORMAT, "version": FORMAT_VERSION, "wmgym": _own_version(), "groups": written}
    try:
        with atomic_writer(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for group, members in groups.items():
                data = safetensors.torch.save(_independent(members))
                written[group] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                _write_entry(archive, f"{group}.safetensors", data)
            _write_entry(archive, _MANIFEST, json.dumps(header | {"manifest": manifest}).encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    return path


def load(
    path: str | Path, prefix: str | Sequence[str] | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint. Nothing in it is unpickled or run.

    Args:
        path: ".zip" may be left out.
        prefix: the groups to read; None reads all. One that the file lacks brings no tensors.
        device: where the tensors are wanted.

    Returns:
        The manifest and the tensors by full name, `<group>/<rest>`.

    Raises:
        CheckpointError: naming the file and the fault, if it is missing, damaged, foreign or too new.
    """
    wanted = [prefix] if isinstance(prefix, str) else prefix
    path = find(path)
    try:
        with zipfile.ZipFile(path) as archive:
            header = _header(path, archive)
            groups = [group for group in header["groups"] if wanted is None or group in wanted]
            tensors: dict[str, Tensor] = {}
            for group in groups:
                tensors |= _read_group(path, archive, group, header["groups"][group])
    except DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_said(error)}.") from error
    return header["manifest"], {name: tensor.to(device) for name, tensor in tensors.items()}


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest alone; see `load`."""
    return load(path, prefix=())[0]


# -- writing --------------------------------------------------------------------------------------------------


def _own_version() -> str:
    try:
        return metadata.version("wmgym")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _check_json(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}; JSON has only strings for keys.")
            _check_json(entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value):
            _check_json(entry, f"{where}[{position}]")
    elif value is not None and not isinstance(value, int | float | str):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise CheckpointError(f"{where} is a {kind}, which JSON cannot hold: convert it, or save it as a tensor.")


def _grouped(tensors: Mapping[str, Tensor | np.ndarray]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if not rest or not _GROUP.fullmatch(group):
            raise CheckpointError(f"The tensor name {name!r} is not <group>/<name> with a group of letters and digits.")
        groups.setdefault(group, {})[rest] = _as_tensor(name, value)
    return groups


def _as_tensor(name: str, value: Tensor | np.ndarray) -> Tensor:
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        raise CheckpointError(f"Tensor {name!r} cannot be saved: {error}.") from error
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        raise CheckpointError(f"Tensor {name!r} cannot be saved: it is {tensor.layout} of {tensor.dtype}.")
    return tensor


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each in memory of its own, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as entry:
        entry.write(data)


# -- reading --------------------------------------------------------------------------------------------------


def _header(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    entries = _entries(path, archive)
    header = _parse_header(path, archive.read(_checked_entry(path, entries, _MANIFEST, None)))
    known = {_MANIFEST} | {f"{group}.safetensors" for group in header["groups"]}
    if entries.keys() != known:
        raise CheckpointError(
            f"{path} is damaged or tampered with: it holds {sorted(entries)}, expected {sorted(known)}."
        )
    for group, description in header["groups"].items():
        _checked_entry(path, entries, f"{group}.safetensors", description["size"])
    return header


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise CheckpointError(f"{path} is damaged or tampered with: it holds an entry twice.")
    if _MANIFEST in entries:
        return entries
    if "data" in entries and any(name.endswith(".pth") for name in entries):
        raise CheckpointError(
            f"{path} is a Stable-Baselines3 checkpoint, not one of wmgym's: open it with the SB3 class that saved it, "
            "for example PPO.load(path)."
        )
    raise CheckpointError(f"{path} is a zip, but not a checkpoint of wmgym: it has no {_MANIFEST}.")


def _checked_entry(path: Path, entries: dict[str, zipfile.ZipInfo], name: str, size: int | None) -> zipfile.ZipInfo:
    """Refuse an entry before any memory is taken for it: compressed, encrypted, or of another size than promised."""
    info = entries[name]
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    allowed = info.file_size <= _MAX_MANIFEST_BYTES if size is None else info.file_size == size
    if not stored or info.flag_bits & 1 or not allowed or info.file_size > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged or tampered with: its entry {name!r} has not the form it must have.")
    return info


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its {_MANIFEST} cannot be read ({error}).") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of wmgym: its {_MANIFEST} does not say {FORMAT!r}.")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} is damaged: its {_MANIFEST} has {version!r} where its version should be.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version} (written by wmgym {header.get('wmgym')}), this wmgym reads up to "
            f"{FORMAT_VERSION}: update wmgym."
        )
    groups = header.get("groups")
    if (
        not isinstance(header.get("manifest"), dict)
        or not isinstance(groups, dict)
        or not all(
            _GROUP.fullmatch(group)
            and isinstance(description, dict)
            and type(description.get("size")) is int
            and isinstance(description.get("sha256"), str)
            for group, description in groups.items()
        )
    ):
        raise CheckpointError(f"{path} is damaged or tampered with: its {_MANIFEST} lacks what it must have.")
    return header


def _read_group(path: Path, archive: zipfile.ZipFile, group: str, description: dict[str, Any]) -> dict[str, Tensor]:
    data = archive.read(f"{group}.safetensors")
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise CheckpointError(f"{path} is damaged: the checksum of its {group!r} tensors is wrong.")
    try:
        return {f"{group}/{name}": tensor for name, tensor in safetensors.torch.load(data).items()}
    except (SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its {group!r} tensors cannot be read ({error}).") from error


def _said(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


# -- spaces ---------------------------------------------------------------------------------------------------


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
    return values[0] if len({repr(value) for value in values}) == 1 else values


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `space_to_json`.

    Raises:
        CheckpointError: if `data` does not describe a space.
    """
    try:
        return _space_from_json(data)
    except NONSENSE as error:
        raise CheckpointError(f"This is not the description of a space: {reprlib.repr(data)} ({error}).") from error


def _space_from_json(data: dict[str, Any]) -> spaces.Space:
    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict([(key, _space_from_json(value)) for key, value in data["spaces"]])
    if kind == "Discrete":
        # Only newer Gymnasium takes a dtype, and int64 is the default in all of them.
        other = {} if data["dtype"] == "int64" else {"dtype": np.dtype(data["dtype"]).type}
        return spaces.Discrete(data["n"], start=data["start"], **other)
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(str(data["dtype"]))
        if dtype.kind not in "biuf" or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError("its shape or dtype is none of a Box")
        if math.prod(shape) > _MAX_BOX_SIZE:
            raise ValueError("it is too large")
        low, high = (_bound_from_json(data[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    raise ValueError(f"unknown type {kind!r}")


def _bound_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    if isinstance(value, list):
        return np.array([float(entry) if isinstance(entry, str) else entry for entry in value], dtype).reshape(shape)
    return float(value) if isinstance(value, str | float) else int(value)  # int: Box takes no Python bool
