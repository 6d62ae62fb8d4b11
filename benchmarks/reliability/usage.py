"""What a program and its children use, read from Linux's /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What this process and all its descendants use now.

    Attributes:
        memory_mb: anonymous memory of all, shared pages once: what they took, without libraries and other files, whose
            share depends on which other programs map them.
        own_memory_mb: of this process alone.
        descriptors: open ones of this process.
        processes: how many, this one included.
        own_processor_s: processor time of this process alone.
    """

    memory_mb: float
    own_memory_mb: float
    descriptors: int
    processes: int
    own_processor_s: float


def usage() -> Usage:
    """Read it; a process that ends meanwhile counts nothing."""
    own = os.getpid()
    everyone = [own, *descendants(own)]
    memory = {pid: _anonymous_mb(pid) for pid in everyone}
    return Usage(
        memory_mb=round(sum(memory.values()), 2),
        own_memory_mb=round(memory[own], 2),
        descriptors=len(list(Path(f"/proc/{own}/fd").iterdir())),
        processes=len(everyone),
        own_processor_s=round(time.process_time(), 2),
    )


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found = []
    try:
        children = [int(c) for file in Path(f"/proc/{pid}/task").glob("*/children") for c in file.read_text().split()]
    except OSError:
        return []
    for child in children:
        found += [child, *descendants(child)]
    return found


def _anonymous_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024
