"""The table of agents that were trained in a frozen dream alone, made from their result files and nothing else."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from agents.zoo.registry import register_algorithms
from agents.zoo.tables import Result, markdown, task_name

INTRO = """## Trained in a frozen dream

By `python -m agents.zoo.dream_training`: no real step is taken but to evaluate. Mean over seeds ± their deviation
(number of seeds) of the last evaluation; the world's own agent is evaluated in the same episodes. The dream's return
is what the world predicts for the same agents: by what it exceeds the real one, they fool themselves. Where another
world was the judge, it stands for the evaluation that was best in the judge's dream, and for its return there."""


class Dreamt(NamedTuple):
    """What stands in one row."""

    env_id: str
    world: str
    shows: str
    algo: str


def read_dreams(root: str | Path) -> dict[Path, Result]:
    """Every result of training in a dream below `root`, by its path from there."""
    paths = sorted(Path(root).glob("dream/*/*/*.json"))
    return {path.relative_to(root): json.loads(path.read_text()) for path in paths}


def dream_section(files: Mapping[Path, Result]) -> str:
    """A line a task, world and agent; runs that failed or are not complete are left out.

    Args:
        files: result files, by path.
    """
    groups: dict[Dreamt, list[Result]] = defaultdict(list)
    for run in filter(_is_whole, files.values()):
        shows = run["settings"]["dream"].get("observation", "decoded")
        groups[Dreamt(run["env_id"], run["preset"], shows, run["algo"])].append(run)
    header = ["task", "world of", "it shows", "agent", "dreamt steps", "episodes", "real return", "dream return"]
    header += ["judge's return", "world's own agent", "share of it", "minutes a run"]
    return f"{INTRO}\n\n{markdown(header, [_row(key, runs) for key, runs in sorted(groups.items())])}"


def read_dream_rows() -> dict[str, Any]:
    """What `dream_overview` shows, by task: `zoo_configs/dream_rows.yml`."""
    rows: dict[str, Any] = yaml.safe_load((files("zoo_configs") / "dream_rows.yml").read_text())
    return rows


def dream_overview(runs: Mapping[Path, Result], tasks: Mapping[str, Any]) -> str:
    """A line a row, with what the agent of each seed is worth and believed: for docs/dream.md.

    Args:
        runs: result files, by path.
        tasks: the rows of each task (`read_dream_rows`).

    Raises:
        ValueError: for a row without result files.
    """
    header = ["task", "worlds", "agent", "dreamt steps", "worth", "believed", "of the Dreamer"]
    rows = []
    for env_id, task in tasks.items():
        teacher = _seeds_of(runs, env_id, task["teacher"])[0]["teacher_return_mean"]
        for number, row in enumerate(task["rows"]):
            name = "" if number else task_name(env_id)
            rows.append([name, row["worlds"], *_overview_cells(_seeds_of(runs, env_id, row["runs"]), teacher)])
    return markdown(header, rows)


def _seeds_of(runs: Mapping[Path, Result], env_id: str, which: str) -> list[Result]:
    """The whole runs of a task in the files `<algo>/<task>/<name>-seed<k>.json`, by seed."""
    algo, _, name = which.partition("/")
    found = [
        run
        for path, run in runs.items()
        if (run["env_id"], run["algo"], path.stem.rpartition("-seed")[0]) == (env_id, algo, name) and _is_whole(run)
    ]
    if not found:
        raise ValueError(f"dream_rows.yml names {which} of {env_id}, and no complete result file is of it.")
    return sorted(found, key=lambda run: run["seed"])


def _is_whole(run: Result) -> bool:
    """Whether a run reached its end."""
    return bool(run["complete"]) and "error" not in run


def _overview_cells(runs: Sequence[Result], teacher: float) -> list[str]:
    teacher = runs[0].get("teacher_return_mean", teacher)  # the one that their world is from, where it is known
    real, dreamt = ([_kept(run, f"{kind}return_mean") for run in runs] for kind in ("", "dream_"))
    worth, believed = (", ".join(f"{value:.0f}" for value in values) for values in (real, dreamt))
    agent, steps = register_algorithms()[runs[0]["algo"]].__name__, f"{runs[0]['dream_steps'][-1]:,}"
    return [agent, steps, worth, believed, f"{np.mean(real) / teacher:.0%}"]


def _row(key: Dreamt, runs: Sequence[Result]) -> list[str]:
    real, dreamt = (_over_seeds([_kept(run, f"{kind}return_mean") for run in runs]) for kind in ("", "dream_"))
    judged = all("judge_return_mean" in run for run in runs)
    judge = _over_seeds([_kept(run, "judge_return_mean") for run in runs]) if judged else "-"
    steps = ", ".join(f"{steps:,}" for steps in sorted({run["dream_steps"][-1] for run in runs}))
    episodes = ", ".join(map(str, sorted({run["eval_episodes"] for run in runs})))
    minutes = f"{np.mean([run['wall_clock_s'] for run in runs]) / 60:.0f}"
    who = [task_name(key.env_id), key.world, key.shows, key.algo, steps, episodes]
    return [*who, real, dreamt, judge, *_beside_teacher(runs), minutes]


def _kept(run: Result, curve: str) -> float:
    """Of the agent that was kept: the last, or the one that a judge liked best."""
    return float(run[curve][run.get("kept", -1)])


def _over_seeds(returns: Sequence[float]) -> str:
    spread = f" ± {np.std(returns):.0f}" if len(returns) > 1 else ""
    return f"{np.mean(returns):.0f}{spread} ({len(returns)})"


def _beside_teacher(runs: Sequence[Result]) -> list[str]:
    """The return of the agent that the world is from, and the share of it that these have; a world alone has none."""
    if any("teacher_return_mean" not in run for run in runs):
        return ["-", "-"]
    teacher = np.mean([run["teacher_return_mean"] for run in runs])
    share = np.mean([_kept(run, "return_mean") for run in runs]) / teacher
    return [f"{teacher:.0f}", f"{share:.0%}"]
