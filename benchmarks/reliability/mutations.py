"""Ways to damage a zip of ours, by accident or with intent."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng, bytes], bytes]
"""From the bytes of a good file, random numbers and a pickle, the bytes of a bad one."""

_MANIFEST, _INDEX = "manifest.json", "index.json"
_WILD: list[Any] = [
    *(-1, 0, 1, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"), float("inf"), True, None, "", "x", "a" * 10_000),
    *([], {}, [[]], {"a": {}}, [0] * 1000, "float64", "object", "../../etc/passwd", 10**9, 10**6, 4096, -5, 0.5),
]


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def bomb(path: Path) -> bytes:
    """A pickle that leaves the file `path` behind when it is opened."""
    return pickle.dumps(_Bomb(path))


# -- accidents ------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """One to eight bits are others."""
    changed = bytearray(data)
    for position in rng.integers(0, len(data), rng.integers(1, 9)):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_in_directory(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """A bit in the zip's directory at its end, which says where the entries are and how large."""
    start = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x05\x06"))
    return data[:start] + flip_bits(data[start:], rng, pickled)


def truncate(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(0, len(data)))]


def replace_block(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """A block is zero, noise, or a copy of another one, as a failing disk leaves it."""
    length = int(rng.integers(1, min(4096, len(data))))
    start, source = (int(place) for place in rng.integers(0, len(data) - length + 1, 2))
    block = [bytes(length), rng.bytes(length), data[source : source + length]][rng.integers(3)]
    return data[:start] + block + data[start + length :]


def insert_or_cut(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """Some bytes too many or too few in the middle."""
    place, length = int(rng.integers(0, len(data))), int(rng.integers(1, 64))
    return data[:place] + (rng.bytes(length) + data[place:] if rng.random() < 0.5 else data[place + length :])


# -- intent ---------------------------------------------------------------------------------------------------


def swap_entries(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """Two entries have each other's name."""
    entries = _entries(data)
    one, two = (str(name) for name in rng.choice(sorted(entries), 2, replace=False))
    return _zipped(entries | {one: entries[two], two: entries[one]})


def lose_or_add_entry(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """An entry is missing, or there is another one: a pickle, perhaps with a path for a name."""
    entries = _entries(data)
    if rng.random() < 0.3:
        del entries[str(rng.choice(sorted(entries)))]
        return _zipped(entries)
    name = rng.choice(["data.pkl", "../../evil.py", "/etc/evil", "world.pkl", "observation/x.npy", "a" * 5000])
    return _zipped(entries | {str(name): pickled})


def pickle_entry(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """An entry is a pickle, with the size and checksum that the index then needs."""
    entries = _entries(data)
    name = str(rng.choice(sorted(set(entries) - {_MANIFEST, _INDEX})))
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return _resigned(entries | {name: (header if name.endswith(".npy") else b"") + pickled}, name)


def deflate_bomb(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """An entry of zeros that unpacks to a thousand times its size."""
    entries = _entries(data)
    entries[str(rng.choice(sorted(entries)))] = bytes(int(rng.integers(1, 65)) << 20)
    return _zipped(entries, zipfile.ZIP_DEFLATED)


def wild_header(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """Some values in the JSON are others, of any kind and size."""
    entries = _entries(data)
    name = _MANIFEST if _MANIFEST in entries else _INDEX
    header = json.loads(entries[name])
    for _ in range(int(rng.integers(1, 4))):
        _change_somewhere(header, rng)
    return _zipped(entries | {name: json.dumps(header).encode()})


def wild_array(data: bytes, rng: Rng, pickled: bytes) -> bytes:
    """The header of an array or of a group of tensors promises another shape, place or type."""
    entries = _entries(data)
    name = str(rng.choice(sorted(set(entries) - {_MANIFEST, _INDEX})))
    old = entries[name]
    numbers = list(re.finditer(rb"\d+", old[: min(len(old), 2000)]))
    if not numbers:
        return flip_bits(data, rng, pickled)
    found = numbers[int(rng.integers(len(numbers)))]
    length = len(found.group())
    new = rng.choice([b"9" * length, b"0" * length, str(int(rng.integers(10**length))).encode().rjust(length, b"0")])
    return _resigned(entries | {name: old[: found.start()] + bytes(new)[:length] + old[found.end() :]}, name)


def _change_somewhere(value: Any, rng: Rng) -> None:
    """Walk into JSON data and replace, drop or add something."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.85:
            value = value[key]
            continue
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = _WILD[int(rng.integers(len(_WILD)))]
        return


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _resigned(entries: dict[str, bytes], name: str) -> bytes:
    """A zip in which the index has the size and checksum of the entry that was changed."""
    digest = hashlib.sha256(entries[name]).hexdigest()
    if _MANIFEST in entries:
        header = json.loads(entries[_MANIFEST])
        header["groups"][name.removesuffix(".safetensors")] = {"size": len(entries[name]), "sha256": digest}
        return _zipped(entries | {_MANIFEST: json.dumps(header).encode()})
    header = json.loads(entries[_INDEX])
    header["sha256"][name.removesuffix(".npy")] = digest
    return _zipped(entries | {_INDEX: json.dumps(header).encode()})


MUTATIONS: dict[str, Mutation] = {
    "flipped bits": flip_bits,
    "flipped directory": flip_in_directory,
    "truncated": truncate,
    "block replaced": replace_block,
    "inserted or cut": insert_or_cut,
    "swapped entries": swap_entries,
    "entry lost or added": lose_or_add_entry,
    "pickle for an entry": pickle_entry,
    "deflate bomb": deflate_bomb,
    "wild header": wild_header,
    "wild array": wild_array,
}
