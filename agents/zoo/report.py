"""A report of who got how far, as one table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Returns:
    """Returns of some episodes."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Their deviation."""
        return float(np.std(self.values))

    def __str__(self) -> str:
        return f"{self.mean:.0f} ± {self.std:.0f}"


@dataclass(frozen=True)
class Row:
    """What the table says of one agent."""

    name: str
    real: Returns
    dream: Returns
    env_steps: int
    """Real simulator steps that it learned from; 0 for one that only dreams."""
    dream_steps: int
    seconds: float
    """Wall-clock time of its training."""


_HEADER = ("agent", "real return", "dream return", "environment steps", "dream steps", "wall-clock")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table.

    Example:
        >>> print(table([Row("random", Returns((1.0, 3.0)), Returns((2.0,)), 0, 0, 0.0)]))
        | agent | real return | dream return | environment steps | dream steps | wall-clock |
        |---|---|---|---|---|---|
        | random | 2 ± 1 | 2 ± 0 | 0 | 0 | 0 s |
    """
    cells = [
        (row.name, str(row.real), str(row.dream), f"{row.env_steps:,}", f"{row.dream_steps:,}", duration(row.seconds))
        for row in rows
    ]
    lines = [_HEADER, ("---",) * len(_HEADER), *cells]
    return "\n".join("|---" * len(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(7.6), duration(127)
        ('8 s', '2 min 07 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def write_report(path: str | Path, title: str, rows: Sequence[Row], notes: Sequence[str]) -> Path:
    """Write title, table and notes, a paragraph each.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([f"# {title}", table(rows), *notes]) + "\n", encoding="utf-8")
    return path
