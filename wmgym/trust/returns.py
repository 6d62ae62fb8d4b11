"""Section 4: does the dream score policies as reality does?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from wmgym.dream import DreamVectorEnv, StartStates, as_model
from wmgym.spaces import from_dict
from wmgym.trust.episodes import LivedEpisode, by_policy
from wmgym.trust.figures import Figure, Section, Table, number
from wmgym.trust.plots import draw_returns
from wmgym.trust.policies import Policy
from wmgym.trust.statistics import bootstrap, mean_gap, mmrv, pearson, regret_at_1, spearman
from wmgym.worlds.base import World

_FEWEST_POLICIES = 3

_SCORES: list[tuple[str, Callable[..., float], str]] = [
    ("Pearson", pearson, "linear correlation of mean dream and mean real return over policies"),
    ("Spearman", spearman, "rank correlation of the same"),
    ("regret@1", regret_at_1, "real return lost by choosing the policy that the dream finds best"),
    (
        "MMRV",
        mmrv,
        "mean over policies of the largest real gap to one that the dream ranks wrongly (SIMPLER); both orders are "
        "strict: a tie in reality costs nothing, a tie in the dream alone counts for the worse of the two",
    ),
    ("mean gap", mean_gap, "mean over policies of dream minus real return"),
    ("mean size of gap", lambda dream, real: float(np.mean(np.abs(dream - real))), "mean of its absolute value"),
]


def dream_returns(
    world: World, policy: Policy, first: Mapping[str, np.ndarray], steps: int, seed: int, temperature: float = 1.0
) -> np.ndarray:
    """Returns `(N,)` of one dreamt episode from each first observation `(N, ...)`.

    An episode ends by the world's own prediction (drawn), or after `steps`.
    """
    count = len(next(iter(first.values())))
    # Dreams that end while others last must begin anew somewhere; what they do then does not count.
    anywhere = StartStates(world.initial(1), torch.ones(1, dtype=torch.bool, device=world.device))
    dreams = DreamVectorEnv(count, as_model(world, anywhere), horizon=steps, temperature=temperature)
    start = from_dict(dict(first), world.observation_space)
    observation, _ = dreams.reset(seed=seed, options={"observation": start})
    state, is_first, alive, total = None, np.ones(count, bool), np.ones(count, bool), np.zeros(count)
    for _ in range(steps):
        action, state = policy.predict(observation, state, is_first, deterministic=True)
        observation, reward, terminated, truncated, _ = dreams.step(action)
        total += reward * alive
        alive &= ~(terminated | truncated)
        is_first = np.zeros(count, bool)
        if not alive.any():
            break
    return total


def first_observations(episodes: Sequence[LivedEpisode]) -> dict[str, np.ndarray]:
    """What each episode showed first, by key, `(N, ...)`."""
    return {key: np.stack([e.observation[key][0] for e in episodes]) for key in episodes[0].observation}


def describe(returns: np.ndarray) -> dict[str, Any]:
    """Mean and interval of some returns, as JSON data."""
    return {
        "mean": float(returns.mean()),
        "interval": bootstrap(np.mean, returns),
        "returns": returns.tolist(),
    }


def compare_returns(
    world: World, policies: Mapping[str, Policy], episodes: Sequence[LivedEpisode], steps: int, seed: int
) -> Section:
    """Section 4: returns of each policy in reality and in dreams that begin as the same real episodes did.

    Args:
        world: the world.
        policies: by the names that `episodes` carry.
        episodes: real ones, of all policies.
        steps: after which a dreamt episode is cut, as real ones are.
        seed: of the dreams.
    """
    rows = []
    for name, recorded in by_policy(episodes).items():
        dreamt = dream_returns(world, policies[name], first_observations(recorded), steps, seed)
        real = np.array([episode.total for episode in recorded])
        gap = bootstrap(mean_gap, dreamt, real)
        rows.append({"policy": name, "real": describe(real), "dream": describe(dreamt), "gap interval": gap})
    section = Section(
        "returns",
        "4. Does the dream score policies as reality does?",
        f"Each policy acts for whole episodes (at most {steps} steps) in the real environment, and in dreams at "
        "temperature 1 that begin from the first observations of these real episodes. Intervals of a policy's mean "
        "resample its episodes; those of scores over policies resample policies.",
    )
    section.figures = _scores(rows)
    section.tables = [_table(rows)]
    section.data = {"policies": rows}
    if len(rows) < _FEWEST_POLICIES:
        section.notes.append(f"{len(rows)} policies cannot show a correlation: give 8 or more of differing skill.")
    section.drawings["returns.png"] = partial(draw_returns, rows)
    return section


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    dream, real = (np.array([row[side]["mean"] for row in rows]) for side in ("dream", "real"))
    return {
        name: Figure(
            float(statistic(dream, real)),
            meaning,
            len(rows),
            "policies",
            bootstrap(statistic, dream, real, paired=True),
        )
        for name, statistic, meaning in _SCORES
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    def cell(side: Mapping[str, Any]) -> str:
        return str(Figure(side["mean"], "", len(side["returns"]), "episodes", side["interval"]))

    lines = []
    for row in sorted(rows, key=lambda row: -row["real"]["mean"]):
        gap = Figure(row["dream"]["mean"] - row["real"]["mean"], "", 0, "", row["gap interval"])
        lines.append(
            [row["policy"], cell(row["real"]), cell(row["dream"]), str(gap), number(len(row["real"]["returns"]))]
        )
    return Table(("policy", "real return", "dream return", "dream - real", "episodes"), lines)
