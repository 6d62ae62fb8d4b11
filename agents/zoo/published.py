"""What others have published, from `zoo_configs/published.csv`: every number with its source and its rule."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """A mean over seeds that somebody has published."""

    observation: str
    method: str
    env_id: str
    env_steps: int
    """Simulator steps, action repeat included."""
    mean: float
    std_over_seeds: float | None
    seeds: int | None
    source: str
    """Repository and file that the number is from."""
    rule: str
    """Which episodes were averaged."""


def read_published(file: str | Path | None = None) -> list[Published]:
    """All rows of the file; None: of `zoo_configs/published.csv`.

    Example:
        >>> rows = read_published()
        >>> {row.observation for row in rows} == {"state", "pixels"}
        True
    """
    source = Path(file) if file else files("zoo_configs") / "published.csv"
    rows = csv.DictReader(source.read_text().splitlines())
    return [
        Published(
            row["observation"],
            row["method"],
            row["env_id"],
            int(row["env_steps"]),
            float(row["mean"]),
            float(row["std_over_seeds"]) if row["std_over_seeds"] else None,
            int(row["seeds"]) if row["seeds"] else None,
            row["source"],
            row["rule"],
        )
        for row in rows
    ]


def methods(rows: list[Published], observation: str) -> list[str]:
    """Names of the methods that see `observation`, in the file's order."""
    return list(dict.fromkeys(row.method for row in rows if row.observation == observation))


def published_mean(rows: list[Published], observation: str, method: str, env_id: str, env_steps: int) -> float | None:
    """The mean that a method has there, or None."""
    key = (observation, method, env_id, env_steps)
    return next((row.mean for row in rows if (row.observation, row.method, row.env_id, row.env_steps) == key), None)
