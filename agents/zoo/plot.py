"""Draw the result files: learning curves of every task, and aggregates over a suite's tasks.

    python -m agents.zoo plot                       # everything, to docs/images, as PNG and SVG

Intervals are rliable's (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"):
the interquartile mean over tasks and seeds with a stratified bootstrap.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from rliable import library, metrics

from agents.zoo.published import Published, methods, published_mean, read_published
from agents.zoo.suites import Suite, read_suites
from agents.zoo.tables import Group, Groups, at_step, group, read_files, task_name

_HIGHEST = 1000.0  # what a dm_control episode can bring, by which aggregates are scaled
_REPLICATIONS = 2000
_COLUMNS = 3


class Scores(NamedTuple):
    """What one agent has reached on the tasks of a suite."""

    steps: list[int]
    values: np.ndarray  # (seeds, tasks, steps), 1 is the highest return


# -- a panel a task -------------------------------------------------------------------------------------------


def plot_curves(path: str | Path, groups: Groups, published: Sequence[Published] = ()) -> list[Path]:
    """One panel a task: each agent's mean over seeds as a line, its range as a band, others' means as short lines.

    Returns:
        The PNG and the SVG.
    """
    tasks = sorted({key.env_id for key in groups})
    rows = max(1, -(-len(tasks) // _COLUMNS))
    figure = Figure(figsize=(4 * _COLUMNS, 2.8 * rows + 1), layout="constrained")  # no pyplot: no global figures
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    colours = {agent: _colour(index) for index, agent in enumerate(agents_of(groups))}
    for axis, task in zip(axes, tasks, strict=False):
        _draw_task(axis, task, groups, published, colours)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    labelled = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return save(figure, path)


def _colour(index: int) -> Any:
    """Of twenty colours that differ: ten strong ones, then their pale halves, then again."""
    return colormaps["tab20"](2 * (index % 10) + index // 10 % 2)


def _draw_task(
    axis: Any, task: str, groups: Groups, published: Sequence[Published], colours: Mapping[str, Any]
) -> None:
    here = {key.agent: runs for key, runs in groups.items() if key.env_id == task}
    for agent, runs in here.items():
        _draw_runs(axis, agent, runs, colours[agent])
    seen = {run["observation"] for runs in here.values() for run in runs}
    last = max(run["env_steps"][-1] for runs in here.values() for run in runs)
    _draw_published(axis, published, task, seen, last)
    axis.set(title=task_name(task), xlabel="thousand environment steps", ylabel="return", xlim=(0, 1.03 * last / 1000))
    if axis.dataLim.y0 >= 0:  # returns of Pendulum are all below
        axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_runs(axis: Any, agent: str, runs: Sequence[dict[str, Any]], colour: Any) -> None:
    shared = sorted(set.intersection(*(set(run["env_steps"]) for run in runs)))
    returns = np.array([[at_step(run, step) for step in shared] for run in runs], float)
    thousands = np.array(shared) / 1000
    axis.plot(thousands, returns.mean(0), color=colour, label=agent)
    axis.fill_between(thousands, returns.min(0), returns.max(0), color=colour, alpha=0.2)
    axis.text(thousands[-1], returns[:, -1].mean(), f"{len(runs)} ", fontsize=7, ha="right", va="bottom", color=colour)


def _draw_published(axis: Any, published: Sequence[Published], task: str, seen: Collection[str], last: int) -> None:
    """A short line for each method's mean, at the count of steps that it was reached with."""
    names = dict.fromkeys((row.observation, row.method) for row in published if row.observation in seen)
    for index, (observation, method) in enumerate(names):
        points = [
            (row.env_steps / 1000, row.mean)
            for row in published
            if (row.observation, row.method, row.env_id) == (observation, method, task) and row.env_steps <= last
        ]
        if points:
            style = {"marker": "_", "markersize": 16, "markeredgewidth": 1.5, "linestyle": ""}
            colour = colormaps["Dark2"](index % 8)
            axis.plot(*zip(*points, strict=True), color=colour, label=f"{method}, {observation}, published", **style)


# -- over a suite's tasks -------------------------------------------------------------------------------------


def plot_suite(path: str | Path, suite: Suite, groups: Groups, published: list[Published]) -> list[Path]:
    """Interquartile mean with its 95% interval over the tasks of a suite, along the run and at its end.

    Agents that have not run every task are left out.

    Returns:
        The PNG and the SVG; nothing if no agent has run every task.
    """
    scores = {agent: found for agent in agents_of(groups) if (found := scores_of(agent, suite, groups)) is not None}
    if not scores:
        return []
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    along, end = figure.subplots(1, 2, width_ratios=(3, 2))
    for colour, (agent, found) in zip(map(_colour, range(len(scores))), scores.items(), strict=True):
        estimate, interval = interquartile_mean(found.values)
        label = f"{agent} ({len(found.values)} seed{'s' if len(found.values) > 1 else ''})"
        along.plot(found.steps, estimate, color=colour, label=label)
        along.fill_between(found.steps, *interval, color=colour, alpha=0.2)
        end.barh(label, interval[1, -1] - interval[0, -1], left=interval[0, -1], color=colour, alpha=0.3)
        end.plot([estimate[-1]], [label], "|", color=colour, markersize=18, markeredgewidth=2)
    for name, value in published_iqm(suite, published).items():
        end.plot([value], [f"{name}, published"], "k|", markersize=18)
    along.set(title=f"{suite.name}: {len(suite.envs)} tasks", xlabel="environment steps", ylabel="IQM of return / 1000")
    along.legend(frameon=False, fontsize=7)
    end.set(title=f"at {suite.env_steps // 1000}k steps", xlabel="IQM of return / 1000", xlim=(0, 1))
    end.tick_params(axis="y", labelsize=6)
    for axis in (along, end):
        axis.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def agents_of(groups: Groups) -> list[str]:
    """The agents there are, in words."""
    return sorted({key.agent for key in groups})


def scores_of(agent: str, suite: Suite, groups: Groups) -> Scores | None:
    """Scores of an agent on every task of a suite, with as many seeds as all tasks have; None if a task is missing."""
    algo, _, preset = agent.partition(", ")
    runs = [groups.get(Group(env_id, algo, preset), ()) for env_id in suite.envs]
    seeds = min(map(len, runs))
    if not seeds or runs[0][0]["observation"] != suite.observation:
        return None
    steps = set.intersection(*(set(run["env_steps"]) for task in runs for run in task[:seeds]))
    shared = sorted(step for step in steps if step <= suite.env_steps)
    if suite.env_steps not in shared:
        return None
    values = [[[at_step(task[seed], step) for step in shared] for task in runs] for seed in range(seeds)]
    return Scores(shared, np.array(values, float) / _HIGHEST)


def interquartile_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rliable's interquartile mean over seeds and tasks at each step.

    Args:
        values: `(seeds, tasks, steps)`.

    Returns:
        The means `(steps,)` and the bounds of their 95% intervals `(2, steps)`.

    Example:
        >>> mean, interval = interquartile_mean(np.full((2, 4, 3), 0.5))
        >>> mean.tolist(), interval.shape
        ([0.5, 0.5, 0.5], (2, 3))
    """

    def at_each_step(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(scores[..., step]) for step in range(scores.shape[-1])])

    means, intervals = library.get_interval_estimates(
        {"agent": values}, at_each_step, reps=_REPLICATIONS, random_state=np.random.RandomState(0)
    )
    return means["agent"], intervals["agent"]


def published_iqm(suite: Suite, published: list[Published]) -> dict[str, float]:
    """The interquartile mean over tasks of what others have published, where they have all tasks of a suite."""
    found = {}
    for method in methods(published, suite.observation):
        means = [published_mean(published, suite.observation, method, env_id, suite.env_steps) for env_id in suite.envs]
        if None not in means:
            found[method] = float(metrics.aggregate_iqm(np.array([means], float) / _HIGHEST))
    return found


# -- files ----------------------------------------------------------------------------------------------------


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes whenever it is drawn anew."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(written[0], dpi=110)
    with mpl.rc_context({"svg.hashsalt": "wmgym"}):
        figure.savefig(written[1], metadata={"Date": None})
    return written


def main(arguments: list[str] | None = None) -> int:
    """Draw everything; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="zoo_configs/results", help="folder of result files")
    parser.add_argument("--out", default="docs/images", help="folder of the pictures")
    parser.add_argument("--suites", nargs="*", default=["planet-6", "nine", "pixels"], help="suites to aggregate")
    parser.add_argument("--suites-file", help="another file than zoo_configs/suites.yml")
    args = parser.parse_args(arguments)
    groups, published = group(read_files(args.results).values()), read_published()
    suites = read_suites(args.suites_file)
    if unknown := sorted(set(args.suites) - suites.keys()):
        parser.error(f"there is no suite {unknown[0]!r}: choose among {', '.join(suites)}.")
    written = plot_curves(Path(args.out) / "learning_curves", groups, published)
    for name in args.suites:
        written += plot_suite(Path(args.out) / f"suite_{name}", suites[name], groups, published)
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
