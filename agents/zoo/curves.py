"""Learning curves and the table of results, made from the result files and from nothing else.

    python -m agents.zoo.curves

writes `docs/images/learning_curves.png` and the table between the markers in README.md and docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

BEGIN, END = "<!-- results: made by python -m agents.zoo.curves -->", "<!-- end of results -->"
_MARKS = (50_000, 100_000)  # environment steps at which the literature is compared


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    env_id: str
    algo: str
    preset: str


def read_results(root: str | Path) -> dict[Group, list[dict[str, Any]]]:
    """Every result file below `root`, grouped; runs that failed are left out of the groups' means."""
    groups: dict[Group, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(Path(root).glob("*/*/*.json")):
        run = json.loads(path.read_text())
        if "error" not in run and run["env_steps"]:
            groups[Group(run["env_id"], run["algo"], run["preset"])].append(run)
    return dict(sorted(groups.items()))


def at_step(run: dict[str, Any], step: int) -> float | None:
    """The evaluation return of a run at `step` environment steps, or None if it has none there.

    Example:
        >>> at_step({"env_steps": [0, 10_000], "return_mean": [5.0, 50.0]}, 10_000)
        50.0
    """
    return dict(zip(run["env_steps"], run["return_mean"], strict=True)).get(step)


def table(groups: dict[Group, list[dict[str, Any]]]) -> str:
    """A Markdown table: mean over seeds of the evaluation return at each mark, and of the best-known last step."""
    lines = [
        "| task | agent, preset | seeds | 50k steps | 100k steps | last evaluation | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, runs in groups.items():
        marks = [_mean(at_step(run, mark) for run in runs) for mark in _MARKS]
        last = ", ".join(f"{run['return_mean'][-1]:.0f} at {run['env_steps'][-1] // 1000}k" for run in runs)
        minutes = _mean(run["wall_clock_s"] / 60 for run in runs)
        seeds = ", ".join(str(run["seed"]) for run in runs)
        name = group.env_id.removeprefix("dm_control/").removesuffix("-v0")
        cells = [name, f"{group.algo}, {group.preset}", seeds, *marks, last, minutes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> str:
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.0f}" + ("" if len(known) == len(numbers) else f" ({len(known)} of {len(numbers)} seeds)")


def plot_curves(path: str | Path, groups: dict[Group, list[dict[str, Any]]]) -> Path:
    """One panel a task; each agent's mean over seeds as a line, its range as a band."""
    tasks = sorted({group.env_id for group in groups})
    columns = min(3, max(1, len(tasks)))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).flatten()
    for axis, task in zip(axes, tasks, strict=False):
        for group, runs in groups.items():
            if group.env_id == task:
                _draw(axis, f"{group.algo}, {group.preset}", runs)
        axis.set(title=task.removeprefix("dm_control/").removesuffix("-v0"), xlabel="environment steps")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _draw(axis: Any, label: str, runs: list[dict[str, Any]]) -> None:
    shared = sorted(set.intersection(*(set(run["env_steps"]) for run in runs)))
    returns = np.array([[at_step(run, step) for step in shared] for run in runs], float)
    axis.plot(shared, returns.mean(0), label=f"{label} ({len(runs)} seed{'s' if len(runs) > 1 else ''})")
    axis.fill_between(shared, returns.min(0), returns.max(0), alpha=0.2)


def put_between_markers(path: str | Path, text: str) -> None:
    """Replace what stands between the markers in a file.

    Raises:
        ValueError: if the markers are not there.
    """
    path = Path(path)
    before, found, rest = path.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{path} lacks the lines {BEGIN!r} and {END!r}, between which the table belongs.")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main(arguments: list[str] | None = None) -> None:
    """Make the picture and the tables."""
    parser = argparse.ArgumentParser(prog="python -m agents.zoo.curves", description=__doc__)
    parser.add_argument("--results", default="zoo_configs/results")
    parser.add_argument("--picture", default="docs/images/learning_curves.png")
    parser.add_argument("--tables", nargs="*", default=["README.md", "docs/results.md"])
    args = parser.parse_args(arguments)
    groups = read_results(args.results)
    plot_curves(args.picture, groups)
    for path in args.tables:
        put_between_markers(path, table(groups))


if __name__ == "__main__":
    main()
