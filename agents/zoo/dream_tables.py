"""The table of agents that were trained in a frozen dream alone, made from their result files and nothing else."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
    for run in files.values():
        if run["complete"] and "error" not in run:
            shows = run["settings"]["dream"].get("observation", "decoded")
            groups[Dreamt(run["env_id"], run["preset"], shows, run["algo"])].append(run)
    header = ["task", "world of", "it shows", "agent", "dreamt steps", "episodes", "real return", "dream return"]
    header += ["judge's return", "world's own agent", "share of it", "minutes a run"]
    return f"{INTRO}\n\n{markdown(header, [_row(key, runs) for key, runs in sorted(groups.items())])}"


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
