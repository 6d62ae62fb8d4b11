"""Section 7: does the world know when it is wrong?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from wmgym.dream.convert import to_array
from wmgym.trust.figures import Figure, Section
from wmgym.trust.plots import draw_calibration
from wmgym.trust.statistics import bootstrap_groups, spearman
from wmgym.trust.windows import Dreamt, Scale, Windows, dream, observation_error, repeat_rows
from wmgym.worlds.base import State, World

_FIFTHS = 5


def calibrate(world: World, windows: Windows, scale: Scale, marks: Sequence[int], dreams: int, seed: int) -> Section:
    """Section 7: the ensemble's disagreement, and the spread of several dreams, against the error.

    Args:
        world: the world.
        windows: of real episodes.
        scale: of what was recorded.
        marks: steps ahead at which they are compared.
        dreams: of each window.
        seed: of the dreams.
    """
    reached = windows.reached(marks)
    horizon = max(reached, default=1)
    spread, error, error_of_mean = _spread_and_errors(world, windows, scale, horizon, dreams, seed)
    section = Section(
        "calibration",
        "7. Does the world know when it is wrong?",
        f"Each window is dreamt {dreams} times. Spread is the standard deviation of these dreams' observations, root "
        "mean square over dimensions in units of the data's deviations; disagreement is that of the world's ensemble, "
        "averaged over the steps of the first of the dreams. Both are compared over windows with the observation "
        "error of the first dream. Intervals resample whole episodes.",
    )
    signals = {"spread": spread}
    if world.has_ensemble:
        signals["disagreement"] = _mean_disagreement(world, windows, horizon, seed)
    else:
        section.notes.append(
            "**This world has no ensemble**, so disagreement cannot be judged; the spread of its dreams is all that it "
            "says of its doubts, and spread is chance that the world has learnt, not ignorance. Train it with an "
            "ensemble (for an RSSM, `RSSMConfig(ensemble=5)`) to have both."
        )
    fifths: dict[str, dict[str, list[float]]] = {name: {} for name in signals}
    for name, signal in signals.items():
        for mark in reached:
            pair, groups = _lasting([signal, error], windows, mark)
            section.figures[f"{name} and error at {mark}"] = _correlation(name, mark, pair, groups)
            fifths[name][str(mark)] = _by_fifths(*pair)
    for mark in reached:
        pair, groups = _lasting([spread, error_of_mean], windows, mark)
        section.figures[f"spread over skill at {mark}"] = _spread_over_skill(dreams, pair, groups)
    section.data = {"median error by fifth of the windows": fifths}
    section.drawings["calibration.png"] = partial(draw_calibration, fifths)
    return section


def _lasting(by_step: Sequence[np.ndarray], windows: Windows, mark: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The values `mark` steps ahead of the windows that last so long, and the episodes of these."""
    kept = windows.valid[mark - 1]
    return [values[mark - 1, kept] for values in by_step], windows.episode[kept]


def _correlation(name: str, mark: int, pair: Sequence[np.ndarray], groups: np.ndarray) -> Figure:
    meaning = f"rank correlation of {name} and error over windows, {mark} steps ahead"
    return Figure(spearman(*pair), meaning, len(groups), "windows", bootstrap_groups(spearman, pair, groups))


def _spread_over_skill(dreams: int, pair: Sequence[np.ndarray], groups: np.ndarray) -> Figure:
    ratio = partial(_spread_skill, dreams=dreams)
    meaning = (
        "spread of the dreams over the error of their mean, root mean squares, corrected for how many dreams there are "
        "(Fortin et al. 2014): 1 calibrated, below 1 too sure"
    )
    return Figure(ratio(*pair), meaning, len(groups), "windows", bootstrap_groups(ratio, pair, groups))


def _spread_and_errors(
    world: World, windows: Windows, scale: Scale, horizon: int, dreams: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spread of the dreams, error of the first, error of their mean: each `(horizon, N)`."""
    count = len(windows)
    state, action = repeat_rows(windows.state, dreams), windows.action[:horizon].repeat(1, dreams, 1)
    rows = []
    for k, step in enumerate(dream(world, state, action, seed)):
        true = {key: values[k] for key, values in windows.observation.items()}
        several = {
            key: value.reshape(dreams, count, *value.shape[1:]).astype(np.float32)
            for key, value in step.observation.items()
        }
        mean = {key: value.mean(0) for key, value in several.items()}
        apart = [observation_error({key: v[i] for key, v in several.items()}, mean, scale) for i in range(dreams)]
        spread = np.sqrt(np.square(apart).sum(0) / (dreams - 1))
        first = {key: value[0] for key, value in several.items()}
        rows.append((spread, observation_error(first, true, scale), observation_error(mean, true, scale)))
    return tuple(np.stack(column) for column in zip(*rows))  # type: ignore[return-value]


def _mean_disagreement(world: World, windows: Windows, horizon: int, seed: int) -> np.ndarray:
    """The ensemble's disagreement about the steps up to each, their mean, `(horizon, N)`."""
    state, values = windows.state, []
    steps: Sequence[Dreamt] = list(dream(world, windows.state, windows.action[:horizon], seed))
    for action, step in zip(windows.action, steps):
        values.append(_disagreement(world, state, action))
        state = step.state
    return np.cumsum(values, 0) / np.arange(1, horizon + 1)[:, None]


@torch.no_grad()
def _disagreement(world: World, state: State, action: torch.Tensor) -> np.ndarray:
    return to_array(world.disagreement(state, action).float())


def _spread_skill(spread: np.ndarray, error_of_mean: np.ndarray, dreams: int) -> float:
    skill = float(np.sqrt(np.square(error_of_mean).mean()))
    return float(np.sqrt((dreams + 1) / dreams) * np.sqrt(np.square(spread).mean())) / skill if skill else float("nan")


def _by_fifths(signal: np.ndarray, error: np.ndarray) -> list[float]:
    """The median error of the windows in each fifth by the signal."""
    order = np.argsort(signal, kind="stable")
    return [float(np.median(error[part])) if len(part) else float("nan") for part in np.array_split(order, _FIFTHS)]
