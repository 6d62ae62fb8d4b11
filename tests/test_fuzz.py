"""Damaged and hostile files load as they were, or are refused. `benchmarks.reliability.fuzz` opens 10 000 of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.reliability.fuzz import Target, fuzz, judge, targets
from benchmarks.reliability.mutations import MUTATIONS, _entries, _zipped, bomb


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return targets(tmp_path_factory.mktemp("targets"))


def test_no_mutated_file_does_harm(tmp_path: Path) -> None:
    result = fuzz(cases=10 * len(MUTATIONS), folder=tmp_path, seed=1)
    assert result["bad"] == []
    assert not result["exploded"]
    assert {name.split(" / ")[1] for name in result["outcomes"]} == set(MUTATIONS)


@pytest.mark.parametrize("number", [0, 1], ids=["checkpoint", "replay"])
def test_the_judge_sees_what_it_must(kinds: list[Target], number: int, tmp_path: Path) -> None:
    kind, path = kinds[number], tmp_path / "file.zip"
    path.write_bytes(kind.data)
    good = kind.read(path)
    assert judge(kind, _zipped(_entries(kind.data)), path, good) == "equal"
    other = {name: value + 1 if value.dtype.kind == "f" else value for name, value in good.items()}
    assert judge(kind, kind.data, path, other) == "changed"

    def broken(_: Path) -> dict[str, np.ndarray]:
        raise KeyError("index")

    assert judge(kind._replace(read=broken), kind.data, path, good) == "raised KeyError"
    assert judge(kind, kind.data[:100], path, good) == "refused"


def test_the_pickle_would_leave_a_mark(tmp_path: Path) -> None:
    pickle.loads(bomb(tmp_path / "mark"))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_every_mutation_changes_the_file(kinds: list[Target], name: str) -> None:
    rng: Any = np.random.default_rng(0)
    for kind in kinds:
        assert MUTATIONS[name](kind.data, rng, b"pickle") != kind.data
