"""Compare the worlds of several agents of one task: how far each foretells the same real episodes.

python -m agents.zoo compare cpu.zip cpu-ssm.zip cpu-rnn.zip --env dm_control/cartpole-swingup-v0

All agents act, and one at random; every world is judged by the episodes of all (`wmgym.trust`, section 1).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from agents.zoo.agent_files import load_agent
from agents.zoo.plot import save
from agents.zoo.tables import markdown
from wmgym.checkpoint import CheckpointError
from wmgym.dream.model import load_model
from wmgym.facts import episode_limit
from wmgym.files import atomic_writer
from wmgym.trust import TrustSettings, simple_policies
from wmgym.trust.episodes import LivedEpisode, record_episodes
from wmgym.trust.report import open_real
from wmgym.trust.statistics import survival_quantile, trust_horizons
from wmgym.trust.windows import Errors, choose_starts, cut_windows, dream_errors, measure_scale, persistence_errors
from wmgym.worlds.base import World

_AS_IN_REPORTS = TrustSettings()
_LONGEST = 1000
_PARTS = ("observation", "reward")
PERSISTENCE = "persistence"


def compare(
    worlds: Mapping[str, World], episodes: Sequence[LivedEpisode], horizon: int = 50, seed: int = 0
) -> dict[str, Any]:
    """Open-loop errors of several worlds on the same windows of real episodes.

    Args:
        worlds: by name, all of the spaces that the episodes were recorded in.
        episodes: of any policies.
        horizon: steps of the longest prediction.
        seed: of the dreams.

    Returns:
        By name, and for persistence ("nothing changes"): the median error of `observation` (in deviations) and of
        `reward` at each step `(H,)`, and of the worlds the median `trust_horizon`: steps until the error of the
        observation exceeds that of persistence, the longest window's where half of the windows never do.
    """
    chosen, times = choose_starts(episodes, _AS_IN_REPORTS.windows, _AS_IN_REPORTS.context, horizon)
    scale = measure_scale(next(iter(worlds.values())), episodes)  # of their spaces, which are one
    found: dict[str, Any] = {}
    for name, world in worlds.items():
        windows = cut_windows(world, episodes, chosen, times, horizon, seed)
        errors, still = dream_errors(world, windows, scale, seed), persistence_errors(windows, scale)
        lasted = trust_horizons(errors.observation, still.observation)
        found[name] = {**_medians(errors), "trust_horizon": survival_quantile(lasted, 0.5)}
    found[PERSISTENCE] = _medians(still)  # which world the windows were cut for makes no difference to it
    return found


def _medians(errors: Errors) -> dict[str, list[float]]:
    return {part: np.nanmedian(getattr(errors, part), axis=1).round(4).tolist() for part in _PARTS}


def table(found: Mapping[str, Any]) -> str:
    """Median errors at some steps, as Markdown."""
    longest = int(np.isfinite(found[PERSISTENCE]["observation"]).sum())  # errors are NaN where no window lasts
    marks = [mark for mark in _AS_IN_REPORTS.marks if mark <= longest]
    header = ["world", *(f"{part}, {mark}" for part in _PARTS for mark in marks), "trust horizon"]
    rows = []
    for name, curves in found.items():
        cells = [f"{curves[part][mark - 1]:.2f}" for part in _PARTS for mark in marks]
        steps = curves.get("trust_horizon")
        rows.append([name, *cells, "-" if steps is None else f"{'≥ ' if steps >= longest else ''}{steps:.0f}"])
    return markdown(header, rows)


def draw(found: Mapping[str, Any], path: Path) -> list[Path]:
    """Median errors over the steps dreamt, a line a world; returns the PNG and the SVG."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, part in zip(figure.subplots(1, 2), _PARTS, strict=True):
        for name, curves in found.items():
            style = {"color": "C7", "linestyle": "--"} if name == PERSISTENCE else {}
            axis.plot(range(1, len(curves[part]) + 1), curves[part], label=name, **style)
        unit = " [deviations]" if part == "observation" else ""
        axis.set(xlabel="steps dreamt", ylabel=f"median {part} error{unit}", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return save(figure, path)


def _record(paths: Sequence[str], args: argparse.Namespace) -> tuple[dict[str, World], list[LivedEpisode], str]:
    """The worlds, `episodes` of each agent and of random actions, and the id of the environment they are of."""
    agents = {Path(path).stem: load_agent(path) for path in paths}
    if len(agents) < len(paths):
        raise ValueError(f"Two files have one name: {', '.join(map(str, paths))}. Names are how worlds are told apart.")
    model = load_model(paths[0])
    real = open_real(args.env, model)
    for name, agent in agents.items():
        if agent.observation_space != real.observation_space or agent.action_space != real.action_space:
            raise ValueError(f"{name} was trained on other spaces than {Path(paths[0]).stem}: they cannot be compared.")
    policies = {**agents, "random": simple_policies(real.action_space, args.seed)["random"]}
    steps = args.max_steps or episode_limit(model.env) or _LONGEST
    episodes = record_episodes(real, policies, args.episodes, args.seed, steps)
    return {name: agent.world for name, agent in agents.items()}, episodes, args.env or model.env["id"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("agents", nargs="+", metavar="AGENT.zip")
    parser.add_argument("--env", help="id of the real environment; default: the first agent's")
    parser.add_argument("--episodes", type=int, default=3, help="real episodes of each agent")
    parser.add_argument("--horizon", type=int, default=50, help="steps of the longest prediction")
    parser.add_argument("--max-steps", type=int, help="decisions after which an episode is cut")
    parser.add_argument("--seed", type=int, default=1000, help="of the episodes and the dreams")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder to write to")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Compare; returns the exit status."""
    args = build_parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        worlds, episodes, env = _record(args.agents, args)
        found = compare(worlds, episodes, args.horizon, args.seed)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    returns = {name: [round(e.total, 1) for e in episodes if e.policy == name] for name in {e.policy for e in episodes}}
    facts = {"env": env, "episodes": args.episodes, "horizon": args.horizon, "seed": args.seed}
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_writer(args.out / "worlds.json") as file:
        file.write(json.dumps({**facts, "returns": dict(sorted(returns.items())), "worlds": found}, indent=1).encode())
    print(table(found), "", *draw(found, args.out / "worlds"), args.out / "worlds.json", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
