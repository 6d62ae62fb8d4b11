"""Tables of results, made from the result files and the published scores and from nothing else."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.zoo.hyperparams import in_words, read_preset
from agents.zoo.published import Published, methods, published_mean
from agents.zoo.suites import Suite

BEGIN, END = "<!-- results: made by python -m agents.zoo benchmark --table -->", "<!-- end of results -->"
_MARKS = (50_000, 100_000)  # environment steps at which the literature is compared

Result = dict[str, Any]
"""A result file."""


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    env_id: str
    algo: str
    preset: str
    """And what a run was told to do otherwise, as in "default with temperature=1.15"."""

    @property
    def agent(self) -> str:
        """Algorithm and preset, in words."""
        return f"{self.algo}, {self.preset}"


Groups = Mapping[Group, Sequence[Result]]


def read_files(root: str | Path) -> dict[Path, Result]:
    """Every result file below `root`, by its path from there."""
    return {path.relative_to(root): json.loads(path.read_text()) for path in sorted(Path(root).glob("*/*/*.json"))}


def group(results: Iterable[Result]) -> dict[Group, list[Result]]:
    """Results by group; runs that failed are left out of the groups' means."""
    groups: dict[Group, list[Result]] = defaultdict(list)
    for run in results:
        if "error" not in run and run["env_steps"]:
            groups[Group(run["env_id"], run["algo"], _preset(run))].append(run)
    return dict(sorted(groups.items()))


def _preset(run: Result) -> str:
    """Name of a run's preset, with what it overrode there, except for what the preset says too by now."""
    if not run.get("overrides"):
        return str(run["preset"])
    try:
        now = read_preset(run["algo"], run["env_id"], run["preset"])
    except KeyError:  # of a file of the user's own, or given up since
        now = {}
    return run["preset"] + in_words({name: value for name, value in run["overrides"].items() if now.get(name) != value})


def at_step(run: Result, step: int) -> float | None:
    """The evaluation return of a run at `step` environment steps, or None if it has none there.

    Example:
        >>> at_step({"env_steps": [0, 10_000], "return_mean": [5.0, 50.0]}, 10_000)
        50.0
    """
    return dict(zip(run["env_steps"], run["return_mean"], strict=True)).get(step)


def task_name(env_id: str) -> str:
    """A task as tables and plots call it.

    Example:
        >>> task_name("dm_control/walker-walk-v0")
        'walker-walk'
    """
    return env_id.removeprefix("dm_control/").removesuffix("-v0")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"|{'|'.join(cells)}|" for cells in [_padded(header), ["---"] * len(header), *map(_padded, rows)])


def _padded(cells: Sequence[str]) -> list[str]:
    return [f" {cell} " for cell in cells]


# -- a short one, for the README ------------------------------------------------------------------------------


def overview(groups: Groups) -> str:
    """A line a group: mean over seeds of the evaluation return at each mark, and of the last."""
    header = ["task", "agent, preset", "seeds", "50k steps", "100k steps", "last evaluation", "minutes a run"]
    return markdown(header, [_overview_row(key, runs) for key, runs in groups.items()])


def _overview_row(key: Group, runs: Sequence[Result]) -> list[str]:
    last = ", ".join(f"{run['return_mean'][-1]:.0f} at {run['env_steps'][-1] // 1000}k" for run in runs)
    marks = [_mean(at_step(run, mark) for run in runs) for mark in _MARKS]
    minutes = _mean(run["wall_clock_s"] / 60 for run in runs)
    return [task_name(key.env_id), key.agent, ", ".join(str(run["seed"]) for run in runs), *marks, last, minutes]


def _mean(values: Iterable[float | None]) -> str:
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.0f}" + ("" if len(known) == len(numbers) else f" ({len(known)} of {len(numbers)} seeds)")


# -- suites beside what others have published -----------------------------------------------------------------


def suite_table(suite: Suite, groups: Groups, published: list[Published]) -> str:
    """Tasks down, agents and published methods across: means at the suite's last step, and their mean over tasks."""
    agents = _agents_on(suite, groups)
    others = [method for method in methods(published, suite.observation) if _has_any(suite, method, published)]
    rows = [[task_name(env_id)] for env_id in suite.envs]
    columns = [_own_column(suite, agent, groups) for agent in agents]
    columns += [_published_column(suite, method, published) for method in others]
    for column in columns:
        for row, (mean, note) in zip(rows, column, strict=True):
            row.append("-" if mean is None else f"{mean:.0f}{note}")
    mean_row = [f"mean of {len(suite.envs)}", *(_column_mean(column) for column in columns)]
    header = ["task", *(f"**{algo}**, {preset}" for algo, preset in agents), *others]
    return markdown(header, [*rows, mean_row])


def _has_any(suite: Suite, method: str, published: list[Published]) -> bool:
    return any(mean is not None for mean, _ in _published_column(suite, method, published))


def _agents_on(suite: Suite, groups: Groups) -> list[tuple[str, str]]:
    """Agents with results on tasks of the suite from the same kind of observation."""
    return sorted(
        {
            (key.algo, key.preset)
            for key, runs in groups.items()
            if key.env_id in suite.envs and runs[0]["observation"] == suite.observation
        }
    )


Cell = tuple[float | None, str]


def _own_column(suite: Suite, agent: tuple[str, str], groups: Groups) -> list[Cell]:
    return [_own_cell(groups.get(Group(env_id, *agent), ()), suite.env_steps) for env_id in suite.envs]


def _own_cell(runs: Sequence[Result], step: int) -> Cell:
    known = [value for value in (at_step(run, step) for run in runs) if value is not None]
    if not known:
        return None, ""
    spread = f" ± {np.std(known):.0f}" if len(known) > 1 else ""
    return float(np.mean(known)), f"{spread} ({len(known)})"


def _published_column(suite: Suite, method: str, published: list[Published]) -> list[Cell]:
    step, seen = suite.env_steps, suite.observation
    return [(published_mean(published, seen, method, env_id, step), "") for env_id in suite.envs]


def _column_mean(column: Sequence[Cell]) -> str:
    """The mean over all tasks; where some are missing there is none, so that it compares with the others'."""
    means = [mean for mean, _ in column if mean is not None]
    return f"{np.mean(means):.0f}" if len(means) == len(column) else f"- ({len(means)} of {len(column)} tasks)"


# -- the whole page -------------------------------------------------------------------------------------------

_INTRO = """# Benchmark

Made by `python -m agents.zoo benchmark --table` from the files in `results/` and `published.csv`; not edited by hand.

**Ours.** Mean over seeds ± their deviation (number of seeds): each is the mean return of the deterministic evaluation
episodes at that step that its result file names (10 where it says nothing else), always the same episodes, in a fresh
environment. Steps are simulator steps, action repeat included. Nothing is a best or a smoothed value. Runs that
stopped with an error are left out of the means and stand under "All runs". `sac` is Stable-Baselines3's, run here.

**Others'.** Numbers of their own files, read at the same count of steps; their rules stand below. Rules differ, and the
same algorithm differs between implementations: read gaps of a few points as none."""


def benchmark_page(files: Mapping[Path, Result], suites: Iterable[Suite], published: list[Published]) -> str:
    """`BENCHMARK.md`.

    Args:
        files: result files, by path.
        suites: a table each; those that ask for the same tasks, steps and observation as an earlier one share its.
        published: what others have published.
    """
    groups = group(files.values())
    shown: set[tuple[Any, ...]] = set()
    parts = [_INTRO]
    for suite in suites:
        key = (suite.envs, suite.env_steps, suite.observation)
        if key not in shown:
            shown.add(key)
            title = f"## {suite.name}: {suite.about}, at {suite.env_steps // 1000}k steps"
            parts += [title, suite_table(suite, groups, published)]
    parts += ["## Sources of the published scores", _sources(published), "## All runs", _all_runs(files)]
    return "\n\n".join(parts) + "\n"


def _sources(published: list[Published]) -> str:
    rows = dict.fromkeys((row.method, row.observation, row.source, row.rule) for row in published)
    return markdown(["method", "observation", "source", "episodes averaged"], rows)


def _all_runs(files: Mapping[Path, Result]) -> str:
    header = ["result file", "last evaluation", "minutes", "commit", "machine", "state"]
    return markdown(header, [_run_row(path, run) for path, run in files.items()])


def _run_row(path: Path, run: Result) -> list[str]:
    last = f"{run['return_mean'][-1]:.0f} at {run['env_steps'][-1] // 1000}k" if run["env_steps"] else "-"
    minutes = f"{run['wall_clock_s'] / 60:.0f}"
    return [f"`{path.as_posix()}`", last, minutes, run["commit"], run["machine"], _state(run)]


def _state(run: Result) -> str:
    if "error" in run:
        return run["error"].strip().splitlines()[-1].replace("|", "/")
    return "complete" if run["complete"] else "not complete"


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
