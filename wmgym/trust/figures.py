"""What a trust report is made of: figures that carry their definition and uncertainty, in sections."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.files import atomic_writer

Drawing = Callable[[Path], Any]
"""Writes a picture or a film to the path."""


@dataclass(frozen=True)
class Figure:
    """A number with what it means and how sure it is.

    Attributes:
        value: NaN where it is not defined.
        definition: in a sentence.
        n: how many of `of` it rests on.
        of: what was counted, and resampled for the interval.
        interval: 95 %, by bootstrap; None where there is too little to resample.
        ceiling: a value that stands for "this much or more", because nothing longer was looked at.

    Example:
        >>> print(Figure(0.93, "Pearson's correlation", n=8, of="policies", interval=(0.81, 0.98)))
        0.93 [0.81, 0.98]
        >>> print(Figure(50.0, "steps", n=80, of="windows", ceiling=50))
        ≥ 50
    """

    value: float
    definition: str
    n: int
    of: str
    interval: tuple[float, float] | None = None
    ceiling: float | None = None

    def __str__(self) -> str:
        text = self._number(self.value)
        if self.interval is None:
            return text
        return f"{text} [{self._number(self.interval[0])}, {self._number(self.interval[1])}]"

    def _number(self, value: float) -> str:
        censored = self.ceiling is not None and value >= self.ceiling
        return f"{'≥ ' if censored else ''}{number(value)}"

    def to_json(self) -> dict[str, Any]:
        """As JSON data; what is not finite is null."""
        return to_json(vars(self))


@dataclass(frozen=True)
class Table:
    """Rows of text under columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __str__(self) -> str:
        """As Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.caption}\n\n{text}" if self.caption else text


@dataclass
class Section:
    """One question that the report answers.

    Attributes:
        name: its key in the report.
        title: the question.
        definition: what was done, so that every number can be read.
        figures: by name.
        tables: of the figures by step, by policy and the like.
        notes: what is missing, or must be known to read it.
        data: the curves and rows, as JSON data.
        drawings: pictures and films by file name, drawn when the report is saved.
    """

    name: str
    title: str
    definition: str
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    drawings: dict[str, Drawing] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "title": self.title,
            "definition": self.definition,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "notes": self.notes,
            "data": to_json(self.data),
            "pictures": list(self.drawings),
        }

    def to_markdown(self) -> str:
        """Title, definition, pictures, figures, tables and notes."""
        parts = [f"## {self.title}", self.definition, *(_embedded(name) for name in self.drawings)]
        if self.figures:
            rows = [[name, str(f), f"{f.n} {f.of}", f.definition] for name, f in self.figures.items()]
            parts.append(str(Table(("figure", "value [95 % interval]", "N", "definition"), rows)))
        return "\n\n".join([*parts, *map(str, self.tables), *self.notes])


@dataclass
class TrustReport:
    """How far a dream can be trusted.

    Attributes:
        facts: what was examined: checkpoint, environment, policies, episodes, seed, versions.
        sections: the answers, by name.
        summary: them in a few sentences.

    Example:
        >>> section = Section("returns", "Dream against real", "...", {"n": Figure(8, "policies", 8, "policies")})
        >>> report = TrustReport({"environment": "CartPole-v1"}, {"returns": section})
        >>> report["returns"].figures["n"].value
        8
    """

    facts: dict[str, Any]
    sections: dict[str, Section]
    summary: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Section:
        if name not in self.sections:
            raise KeyError(f"The report has no section {name!r}; it has {', '.join(map(repr, self.sections))}.")
        return self.sections[name]

    def to_json(self) -> dict[str, Any]:
        """As JSON data; what is not finite is null."""
        sections = {name: section.to_json() for name, section in self.sections.items()}
        return {"facts": to_json(self.facts), "summary": self.summary, "sections": sections}

    def to_markdown(self) -> str:
        """As a page whose pictures stand beside it."""
        facts = "\n".join(f"- {name}: {_plain(value)}" for name, value in self.facts.items())
        summary = "\n".join(f"- {sentence}" for sentence in self.summary)
        title = f"# How far can this dream of {self.facts.get('environment', 'an environment')} be trusted?"
        return (
            "\n\n".join([title, summary, facts, *(section.to_markdown() for section in self.sections.values())]) + "\n"
        )

    def save(self, folder: str | Path) -> Path:
        """Write `report.json`, `report.md` and the pictures.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for section in self.sections.values():
            for name, draw in section.drawings.items():
                draw(folder / name)
        texts = {"report.json": json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"}
        texts["report.md"] = self.to_markdown()
        for name, text in texts.items():
            with atomic_writer(folder / name) as file:
                file.write(text.encode())
        return folder


def number(value: float) -> str:
    """A number for reading: three digits, no exponent where none is needed.

    Example:
        >>> number(0.12345), number(874.2), number(50.0), number(float("nan"))
        ('0.123', '874', '50', '-')
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if abs(value) >= 100 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def to_json(value: Any) -> Any:
    """Numbers, arrays and containers of them as strict JSON data: NaN and infinity become null.

    Floats are rounded to six significant digits, so that files stay readable.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _embedded(name: str) -> str:
    return f"![{name}]({name})" if name.endswith(".png") else f"Film: [{name}]({name})"
