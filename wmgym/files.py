"""Files that appear whole or not at all, and how they are found and refused."""

from __future__ import annotations

import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DAMAGE = (OSError, EOFError, ValueError, MemoryError, RuntimeError, zipfile.BadZipFile, struct.error, zlib.error)
"""What reading a damaged zip raises (RuntimeError: an entry that claims to be encrypted or of an unknown method)."""


MODELS = Path(__file__).parent / "models"
"""Ready-trained checkpoints, which are opened by their name alone."""

NONSENSE = (
    *(LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError),
    *(RuntimeError, MemoryError),  # RecursionError is a RuntimeError
)
"""What building something from a description that is none raises."""


class CheckpointError(Exception):
    """A file that cannot be read or written; the message names the file and the fault."""


@contextmanager
def atomic_writer(path: str | Path, exclusive: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` complete or not at all.

    The bytes go to a temporary file in the same folder, are synced to disk, and take the final name by a rename.
    When the body raises, the temporary file is removed and whatever stood at `path` stays as it was.

    Args:
        path: the final name; its folder is made when missing.
        exclusive: whether a file that has the name already keeps it. For a moment the new one is empty.

    Yields:
        The temporary file, open for writing.

    Raises:
        FileExistsError: at the end, where `exclusive` and the name is taken.
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
        if exclusive:
            _take_name(path)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _take_name(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


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


def with_zip_suffix(path: str | Path) -> Path:
    """`path`, with ".zip" added when it has no suffix."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def existing(path: Path) -> Path | None:
    """The file that `path` names, with or without its ".zip"; None if there is none."""
    return next((candidate for candidate in (path, _longer(path)) if candidate.is_file()), None)


def _longer(path: Path) -> Path:
    return path.with_name(f"{path.name}.zip") if path.name else path


def find(path: str | Path) -> Path:
    """The file that `path` names, with or without its ".zip", or the ready-trained checkpoint of that name.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(path)
    longer = _longer(path)
    ready = MODELS / longer.name if path.name == str(path) else None
    if found := existing(path) or (ready and existing(ready)):
        return found
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint: name the file in it.")
    also = "" if path.suffix == ".zip" else f", nor {longer.name} beside it"
    raise CheckpointError(f"{path} does not exist{also}; ready-trained are {ready_models() or 'none'}.")


def ready_models() -> list[str]:
    """Names of the ready-trained checkpoints that came with the package."""
    return sorted(file.stem for file in MODELS.glob("*.zip"))
