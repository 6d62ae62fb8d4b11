"""The pictures of a trust report. Each function draws one section's data to a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LABELS = {
    "observation": "observation error [deviations]",
    "reward": "reward error",
    "continues": "error of continuing",
}


def draw_errors(errors: Mapping[str, Any], path: Path) -> Path:
    """Section 1: the world's median error by step with its 5 to 95 % band, and the medians of the baselines."""
    figure, panels = _panels(len(errors))
    for axes, (part, curves) in zip(panels, errors.items()):
        _band(axes, curves["world"], "C0", "world (5 to 95 %)")
        for name, style in (("persistence", "--"), ("mean", ":")):
            _curve(axes, curves[name]["p50"], "C7", name, style)
        axes.set(xlabel="steps dreamt", ylabel=_LABELS[part])
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    return _save(figure, path)


def draw_sensitivity(parts: Mapping[str, Any], path: Path) -> Path:
    """Section 3: errors with the true actions and with those of other episodes."""
    figure, panels = _panels(len(parts))
    for axes, (part, curves) in zip(panels, parts.items()):
        _band(axes, curves["true"], "C0", "true actions (5 to 95 %)")
        _curve(axes, curves["shuffled"]["p50"], "C3", "another episode's actions", "--")
        axes.set(xlabel="steps dreamt", ylabel=_LABELS[part])
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    return _save(figure, path)


def draw_pictures(by_step: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Section 2: PSNR, and SSIM where it was computed, by step."""
    figure, panels = _panels(len(by_step))
    for axes, (name, curves) in zip(panels, by_step.items()):
        for who, color in (("world", "C0"), ("persistence", "C7")):
            _curve(axes, curves[who], color, who, "-" if who == "world" else "--")
        axes.set(xlabel="steps dreamt", ylabel=name)
    panels[0].legend(frameon=False)
    return _save(figure, path)


def draw_returns(policies: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Section 4: dream return over real return, a point a policy with its 95 % intervals."""
    figure, (axes,) = _panels(1, width=5.5, height=5)
    for index, policy in enumerate(policies):
        _cross(axes, policy["real"], policy["dream"], f"C{index % 10}", policy["policy"])
    _diagonal(axes)
    axes.set(xlabel="real return", ylabel="dream return")
    axes.legend(frameon=False, fontsize=7)
    return _save(figure, path)


def draw_ranking(real: Any, dream: Any, correlations: Sequence[float], path: Path) -> Path:
    """Section 5: dream over real return of all action sequences, and the rank correlation of each start."""
    figure, (axes, right) = _panels(2)
    axes.plot(np.ravel(real), np.ravel(dream), ".", color="C0", alpha=0.3, markersize=4)
    _diagonal(axes)
    axes.set(xlabel="real return of a sequence", ylabel="dream return")
    defined = np.asarray(correlations)[np.isfinite(correlations)]
    right.hist(defined, bins=np.linspace(-1, 1, 21).tolist(), color="C0")
    right.set(xlabel="rank correlation at a start", ylabel="starts")
    return _save(figure, path)


def draw_exploitation(runs: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Section 6: dream and real return of agents trained in the dream, by setting."""
    figure, (axes,) = _panels(1, width=max(5.0, 1.1 * len(runs)))
    for index, run in enumerate(runs):
        for shift, who, color in ((-0.1, "dream", "C1"), (0.1, "real", "C0")):
            mean, (low, high) = run[who]["mean"], run[who]["interval"] or (run[who]["mean"],) * 2
            axes.errorbar(
                index + shift, mean, [[mean - low], [high - mean]], fmt="o", color=color, capsize=3,
                label=who if index == 0 else None,
            )  # fmt: skip
    axes.set_xticks(range(len(runs)), [run["setting"].replace(", ", "\n") for run in runs], fontsize=7)
    axes.set(ylabel="return")
    axes.legend(frameon=False)
    return _save(figure, path)


def draw_calibration(signals: Mapping[str, Any], path: Path) -> Path:
    """Section 7: the median error in each fifth of the windows, from the surest to the least sure."""
    figure, panels = _panels(len(signals))
    for axes, (name, by_step) in zip(panels, signals.items()):
        for index, (step, fifths) in enumerate(by_step.items()):
            axes.plot(range(1, len(fifths) + 1), fifths, "o-", color=f"C{index}", label=f"{step} steps")
        axes.set(xlabel=f"fifth of the windows by {name}", ylabel=_LABELS["observation"])
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    return _save(figure, path)


def _panels(count: int, width: float | None = None, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    # No pyplot: its figures are global and need a backend.
    figure = Figure(figsize=(width or 4.2 * count, height), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _steps(values: Any) -> range:
    return range(1, len(values) + 1)


def _band(axes: Axes, curve: Mapping[str, Any], color: str, label: str) -> None:
    axes.fill_between(_steps(curve["p50"]), curve["p5"], curve["p95"], color=color, alpha=0.2, linewidth=0)
    _curve(axes, curve["p50"], color, label, "-")


def _curve(axes: Axes, values: Any, color: str, label: str, style: str) -> None:
    axes.plot(_steps(values), values, style, color=color, label=label)


def _cross(axes: Axes, real: Mapping[str, Any], dream: Mapping[str, Any], color: str, label: str) -> None:
    def bars(side: Mapping[str, Any]) -> list[list[float]] | None:
        if side["interval"] is None:
            return None
        return [[max(0.0, side["mean"] - side["interval"][0])], [max(0.0, side["interval"][1] - side["mean"])]]

    axes.errorbar(real["mean"], dream["mean"], bars(dream), bars(real), fmt="o", color=color, label=label, markersize=4)


def _diagonal(axes: Axes) -> None:
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="C7", linestyle="--", linewidth=1, zorder=0)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
