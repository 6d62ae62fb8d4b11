"""Pictures of learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def plot_learning_curve(
    path: str | Path,
    env_steps: Sequence[float],
    returns: Sequence[float],
    title: str = "",
    levels: Mapping[str, float] | None = None,
    window: int = 3,
) -> Path:
    """Draw the return of every training episode over environment steps.

    Args:
        path: of the PNG.
        env_steps: simulator steps at the end of each episode.
        returns: of the episodes.
        title: above the picture.
        levels: returns to mark by a horizontal line, by name.
        window: episodes that the running mean covers.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(7, 4), layout="constrained")  # no pyplot: its figures are global and need a backend
    axes = figure.subplots()
    if len(returns):
        axes.plot(env_steps, returns, "o", color="C0", alpha=0.4, markersize=4, label="training episode")
        axes.plot(env_steps, running_mean(returns, window), color="C0", label=f"mean of the last {window}")
    for index, (name, level) in enumerate((levels or {}).items(), start=1):
        axes.axhline(level, color=f"C{index}", linestyle="--", label=name)
    axes.set(title=title, xlabel="environment steps", ylabel="return")
    axes.set_ylim(bottom=min(0.0, *returns, *(levels or {}).values(), 0.0))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each, of fewer at the beginning.

    Example:
        >>> running_mean([0.0, 2.0, 4.0, 6.0], 2)
        [0.0, 1.0, 3.0, 5.0]
    """
    return [float(np.mean(values[max(0, i + 1 - window) : i + 1])) for i in range(len(values))]
