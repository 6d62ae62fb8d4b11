"""The report in a few sentences: what to believe, for how long, and what not to do."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from wmgym.trust.figures import Figure, Section

_GOOD_CORRELATION = 0.9
_USUAL_MARK = 15


def summarise(sections: Mapping[str, Section]) -> list[str]:
    """One sentence for each question that was answered.

    Args:
        sections: of a report, by name.
    """
    answers = (_prediction, _actions, _returns, _ranking, _exploitation, _calibration)
    return [sentence for answer in answers if (sentence := answer(sections))]


def _figure(sections: Mapping[str, Section], section: str, name: str) -> Figure | None:
    return sections[section].figures.get(name) if section in sections else None


def _mark(sections: Mapping[str, Section], section: str, name: str) -> int | None:
    """The steps ahead of which to speak: 15, or the largest mark below it, or the smallest that there is."""
    figures = sections[section].figures if section in sections else {}
    marks = sorted(int(figure.removeprefix(f"{name} at ")) for figure in figures if figure.startswith(f"{name} at "))
    return max((mark for mark in marks if mark <= _USUAL_MARK), default=min(marks, default=None))


def _prediction(sections: Mapping[str, Section]) -> str:
    parts = []
    for part in ("observation", "reward"):
        still, usual = (
            _figure(sections, "prediction", f"{part} trust horizon, {baseline}") for baseline in ("persistence", "mean")
        )
        if still and usual:
            parts.append(f"{part}s beat persistence for {still} steps and the mean for {usual} (medians over windows)")
    return f"**How long:** dreamt {'; '.join(parts)}." if parts else ""


def _actions(sections: Mapping[str, Section]) -> str:
    mark = _mark(sections, "actions", "observation share better")
    share = _figure(sections, "actions", f"observation share better at {mark}")
    if share is None or not isfinite(share.value):
        return ""
    return (
        f"**Actions:** after {mark} steps the true actions give the smaller error in a share of {share} (chance: 0.5)."
    )


def _returns(sections: Mapping[str, Section]) -> str:
    scores = [_figure(sections, "returns", name) for name in ("Pearson", "Spearman", "mean gap")]
    if any(score is None for score in scores):
        return ""
    pearson, spearman, gap = scores
    assert pearson is not None
    verdict = "reached" if pearson.value >= _GOOD_CORRELATION else "not reached"
    return (
        f"**Policies:** over {pearson.n} of them Pearson {pearson} (0.9 is {verdict}), Spearman {spearman}; dream "
        f"minus real return is {gap} on average."
    )


def _ranking(sections: Mapping[str, Section]) -> str:
    correlation, regret, chance = (
        _figure(sections, "ranking", name)
        for name in ("rank correlation", "relative regret", "relative regret by chance")
    )
    if correlation is None or regret is None or chance is None:
        return ""
    return (
        f"**Plans:** sequences of actions are ranked with correlation {correlation}; the one it finds best loses "
        f"{regret} of the range, one at random {chance}."
    )


def _exploitation(sections: Mapping[str, Section]) -> str:
    runs = sections["exploitation"].data.get("runs", []) if "exploitation" in sections else []
    if not runs:
        return ""
    gaps = {run["setting"]: run["dream"]["mean"] - run["real"]["mean"] for run in runs}
    worst = max(gaps, key=lambda setting: gaps[setting])
    best = max(runs, key=lambda run: run["real"]["mean"])
    return (
        f"**Exploitation:** agents trained in the dream alone overrate themselves most at {worst}, by "
        f"{gaps[worst]:.0f}; worth most in reality is the one of {best['setting']}, {best['real']['mean']:.0f} (it "
        f"dreamt {best['dream']['mean']:.0f})."
    )


def _calibration(sections: Mapping[str, Section]) -> str:
    mark = _mark(sections, "calibration", "spread and error")
    found = {
        name: figure
        for name in ("spread", "disagreement")
        if (figure := _figure(sections, "calibration", f"{name} and error at {mark}")) and isfinite(figure.value)
    }
    if not found:
        return ""
    told = " and ".join(f"{name} foretells the error with rank correlation {figure}" for name, figure in found.items())
    return f"**Doubt:** after {mark} steps {told}."
