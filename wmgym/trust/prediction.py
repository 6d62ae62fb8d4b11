"""Sections 1 and 3: how long predictions stay good, and whether they depend on the actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from wmgym.trust.figures import Figure, Section, Table, number
from wmgym.trust.plots import draw_errors, draw_sensitivity
from wmgym.trust.statistics import Horizons, bootstrap_groups, survival_quantile, trust_horizons
from wmgym.trust.windows import Errors, Scale, Windows, dream_errors, mean_errors, persistence_errors
from wmgym.worlds.base import World

QUANTILES = (5, 50, 95)
_MEANINGS = {
    "observation": "root mean squared error in standard deviations of each dimension",
    "reward": "absolute error of the reward of the step",
    "continues": "absolute error of the probability that the episode goes on",
}


def predict(
    world: World, windows: Windows, scale: Scale, names: Sequence[str], marks: Sequence[int], seed: int
) -> Section:
    """Section 1: errors by horizon against "nothing changes" and "as usual", and the trust horizon.

    Args:
        world: the world.
        windows: of real episodes.
        scale: of what was recorded.
        names: of the policy of each episode.
        marks: steps that the table shows.
        seed: of the dreams.
    """
    errors = {
        "world": dream_errors(world, windows, scale, seed),
        "persistence": persistence_errors(windows, scale),
        "mean": mean_errors(windows, scale),
    }
    horizon = windows.horizon
    section = Section(
        "prediction",
        "1. For how many steps does the dream follow reality?",
        f"The world watches a real episode up to a moment, then dreams up to {horizon} steps with the real actions, "
        "seeing nothing: one dream at temperature 1, as an agent would meet it. Its errors at each step are compared "
        "with those of persistence (nothing changes any more) and of the mean of all that was recorded. The trust "
        "horizon of a window is the number of steps before the world's error first exceeds persistence's (a tie is "
        "not a failure); windows that never fail are censored at their length, and quantiles over windows are Kaplan "
        "and Meier's. Intervals resample whole episodes.",
    )
    for part in _parts(windows):
        _add_trust_horizons(section, part, errors, windows)
    section.tables = [
        *(_error_table(part, errors, windows, marks) for part in _parts(windows)),
        _policy_table(errors, windows, names),
    ]
    section.data = {
        "marks": list(marks),
        "windows": windows.valid.sum(1),
        "errors": {
            part: {name: _quantiles(getattr(e, part)) for name, e in errors.items()} for part in _parts(windows)
        },
    }
    if windows.continues[windows.valid].all():
        section.notes.append(
            "No recorded episode ended, so continuation could only show false alarms; its largest error in any window "
            f"was {number(float(np.nanmax(errors['world'].continues)))}."
        )
    section.drawings["prediction.png"] = partial(draw_errors, section.data["errors"])
    return section


def sense_actions(world: World, windows: Windows, scale: Scale, marks: Sequence[int], seed: int) -> Section:
    """Section 3: errors with the true actions against errors with those of other episodes."""
    order = _strangers(windows.episode)
    swapped_windows = windows.action[:, order]
    differ = (windows.action != swapped_windows).any(0).any(-1).cpu().numpy()
    others = differ & (windows.episode != windows.episode[order])
    true = dream_errors(world, windows, scale, seed)
    shuffled = dream_errors(world, windows, scale, seed, action=swapped_windows)
    both = windows.valid & windows.valid[:, order] & others
    section = Section(
        "actions",
        "3. Does the dream depend on the actions?",
        "The same windows are dreamt again with the same random numbers and the actions of another episode's window. "
        "Sensitivity at a step is 1 - (median error with the true actions) / (median error with the others): 0 for a "
        "world that ignores its actions, 1 for a perfect one; the share counts the windows where the true actions "
        "give the smaller error (one half by chance). Intervals resample whole episodes.",
    )
    if not others.all():
        section.notes.append(
            f"{int((~others).sum())} of {len(others)} windows are left out: no other episode was there to take actions "
            "from, or it did the same. More episodes, or policies that differ, would tell more."
        )
    rows = []
    for mark in windows.reached(marks):
        for part in ("observation", "reward"):
            cells = [_row(getattr(e, part), both, mark) for e in (true, shuffled)]
            kept = np.isfinite(cells[0])
            pair = [cell[kept] for cell in cells]
            groups = windows.episode[kept]
            for name, statistic, meaning in _SENSITIVITIES:
                value = statistic(*pair) if kept.any() else float("nan")
                interval = bootstrap_groups(statistic, pair, groups) if kept.any() else None
                section.figures[f"{part} {name} at {mark}"] = Figure(
                    value, f"{meaning}, {part}, {mark} steps ahead", int(kept.sum()), "windows", interval
                )
            rows.append([part, str(mark), *(number(float(np.median(cell))) if len(cell) else "-" for cell in pair)])
    section.tables = [Table(("error of", "step", "median, true actions", "median, other actions"), rows)]
    section.data = {
        part: {
            "true": _quantiles(getattr(true, part)),
            "shuffled": _quantiles(np.where(both, getattr(shuffled, part), np.nan)),
        }
        for part in ("observation", "reward")
    }
    section.drawings["actions.png"] = partial(draw_sensitivity, section.data)
    return section


def _sensitivity(true: np.ndarray, shuffled: np.ndarray) -> float:
    other = float(np.median(shuffled))
    return 1.0 - float(np.median(true)) / other if other > 0 else float("nan")


def _share_better(true: np.ndarray, shuffled: np.ndarray) -> float:
    return float(np.mean((true < shuffled) + 0.5 * (true == shuffled)))


_SENSITIVITIES: list[tuple[str, Callable[..., float], str]] = [
    ("sensitivity", _sensitivity, "1 - median error with true actions / with other actions"),
    ("share better", _share_better, "share of windows in which the true actions give the smaller error (ties: half)"),
]


def _strangers(episode: np.ndarray) -> np.ndarray:
    """A permutation `(N,)` that gives every window one of another episode (where there are enough of them)."""
    order = np.argsort(episode, kind="stable")
    # Far along, so that neighbours, which are often of the same policy, are passed over.
    shift = max(int(np.bincount(episode).max()), len(episode) // 2)
    partner = np.empty(len(episode), np.int64)
    partner[order] = np.roll(order, shift)
    return partner


def _parts(windows: Windows) -> list[str]:
    """What is worth showing: ends only where episodes end."""
    return [part for part in Errors._fields if part != "continues" or not windows.continues[windows.valid].all()]


def _add_trust_horizons(section: Section, part: str, errors: dict[str, Errors], windows: Windows) -> None:
    for baseline in ("persistence", "mean"):
        result = trust_horizons(getattr(errors["world"], part), getattr(errors[baseline], part))
        interval = bootstrap_groups(
            lambda steps, censored: survival_quantile(Horizons(steps, censored), 0.5), result, windows.episode
        )
        ends = [number(survival_quantile(result, share / 100)) for share in (5, 95)]
        section.figures[f"{part} trust horizon, {baseline}"] = Figure(
            survival_quantile(result, 0.5),
            f"median steps before the {part} error exceeds that of {_BASELINES[baseline]}; 5th and 95th percentile "
            f"{ends[0]} and {ends[1]}; {result.censored.mean():.0%} of the windows never fail",
            len(windows),
            "windows",
            interval,
            ceiling=result.ceiling,
        )


_BASELINES = {"persistence": "persistence", "mean": "the mean of all recorded"}


def _error_table(part: str, errors: dict[str, Errors], windows: Windows, marks: Sequence[int]) -> Table:
    rows = []
    for mark in windows.reached(marks):
        world = getattr(errors["world"], part)[mark - 1]
        kept = np.isfinite(world)
        interval = bootstrap_groups(lambda e: float(np.median(e)), [world[kept]], windows.episode[kept])
        cells = [_three(getattr(errors[name], part)[mark - 1]) for name in ("world", "persistence", "mean")]
        sure = "-" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"
        rows.append([str(mark), cells[0], sure, *cells[1:], str(int(kept.sum()))])
    columns = ("step", "world", "interval of its median", "persistence", "mean", "windows")
    return Table(columns, rows, f"**{part}** ({_MEANINGS[part]}): 5th / 50th / 95th percentile over windows")


def _policy_table(errors: dict[str, Errors], windows: Windows, names: Sequence[str]) -> Table:
    """Trust horizons of each policy's own windows: a world is better where it has been."""
    owner = np.array(names)[windows.episode]
    rows = []
    for name in dict.fromkeys(names):
        mine = owner == name
        cells: list[str] = []
        for part in ("observation", "reward"):
            pair = [getattr(errors[who], part)[:, mine] for who in ("world", "persistence")]
            lasted = trust_horizons(*pair)
            cells.append(str(Figure(survival_quantile(lasted, 0.5), "", len(mine), "windows", ceiling=lasted.ceiling)))
        rows.append([name, *cells, str(int(mine.sum()))])
    return Table(
        ("policy", "observation trust horizon", "reward trust horizon", "windows"),
        rows,
        "Median trust horizon against persistence by policy:",
    )


def _quantiles(errors: np.ndarray) -> dict[str, Any]:
    """Percentiles by step, of the windows that still last."""
    lasting = np.isfinite(errors).any(1)
    values = np.full((len(QUANTILES), len(errors)), np.nan)
    values[:, lasting] = np.nanpercentile(errors[lasting], QUANTILES, axis=1)
    return {f"p{quantile}": row for quantile, row in zip(QUANTILES, values, strict=True)}


def _three(errors: np.ndarray) -> str:
    kept = errors[np.isfinite(errors)]
    return " / ".join(number(float(value)) for value in np.percentile(kept, QUANTILES)) if len(kept) else "-"


def _row(errors: np.ndarray, valid: np.ndarray, mark: int) -> np.ndarray:
    return np.where(valid, errors, np.nan)[mark - 1]
