"""Recording for worlds that learn with no agent: what the mixture must have seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import wmgym
from agents.zoo.offline import record_mixture

WALKER = "dm_control/walker-walk-v0"


def at_rest(folder: Path) -> float:
    """Share of the decisions after which nothing moved, though something pushed."""
    shares = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as episode:
            moved = np.abs(np.diff(episode["observation"], axis=0)).max(-1)
            pushed = np.abs(episode["action"][1:]).max(-1) > 0.1
            shares.append((moved < 0.02) & pushed)
    return float(np.concatenate(shares).mean())


def test_a_mixture_shows_bodies_at_rest_that_random_actions_never_show(tmp_path: Path) -> None:
    record_mixture(tmp_path / "mixture", WALKER, None, 2500, seed=0)
    wmgym.record(WALKER, None, 500, tmp_path / "random", seed=0)
    assert at_rest(tmp_path / "random") < 0.02
    assert at_rest(tmp_path / "mixture") > 0.15
