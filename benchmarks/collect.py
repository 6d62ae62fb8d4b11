"""How fast the real environment is stepped: from states, and from pictures rendered in each way.

    python -m benchmarks.collect              # prints the table, writes benchmarks/results/collect.json
    python -m benchmarks.collect --envs 1 2 4 --seconds 5

`make_env` and `make_vec` beside the plain way: dm_control's own environment, its actions repeated in Python, its
picture rendered as it comes. Everything is timed by the wall clock, because processes share the work; all ways are
measured in turn, several times, and the median counts. One decision is two simulator steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import report
from wmgym.real import make_vec
from wmgym.rendering import RenderingError, choose_backend

ENV = "dm_control/walker-walk-v0"
REPEAT = 2


class Plain:
    """dm_control's walker, stepped and seen as its own documentation does it."""

    def __init__(self, pictures: bool) -> None:
        choose_backend()
        from dm_control import suite  # it chooses how to render when it is imported

        self.env = suite.load("walker", "walk", task_kwargs={"random": 0})
        self.pictures = pictures
        self.action = np.zeros(self.env.action_spec().shape)
        self.env.reset()

    def step(self) -> None:
        """One decision."""
        for _ in range(REPEAT):
            if self.env.step(self.action).last():
                self.env.reset()
        if self.pictures:
            self.env.physics.render(64, 64, camera_id=0)

    def close(self) -> None:
        """Free what renders."""
        self.env.close()


class Ours:
    """`make_vec`'s environments, stepped together."""

    def __init__(self, count: int, processes: bool, **options: Any) -> None:
        self.env = make_vec(ENV, count, subprocess=processes, seed=0, action_repeat=REPEAT, **options)
        self.env.reset()
        self.actions = np.zeros((count, *self.env.action_space.shape))  # type: ignore[misc]

    def step(self) -> None:
        """One decision of each."""
        self.env.step(self.actions)

    def close(self) -> None:
        """End the processes."""
        self.env.close()


Way = tuple[str, int, int, Callable[[], Ours | Plain]]


def ways(counts: list[int]) -> list[Way]:
    """Name, environments at once, processes, and how to make them."""
    found: list[Way] = [
        ("state, dm_control itself", 1, 1, lambda: Plain(False)),
        ("pixels, dm_control itself", 1, 1, lambda: Plain(True)),
    ]
    rendered: list[tuple[str, dict[str, Any]]] = [
        ("state", {"observation": "state"}),
        ("pixels, fast rendering", {"observation": "pixels"}),
        ("pixels, reference rendering", {"observation": "pixels", "fast_render": False}),
        ("state and pixels, fast rendering", {"observation": "both"}),
    ]
    for name, options in rendered:
        for count in counts:
            found.append((name, count, 1, lambda n=count, o=options: Ours(n, False, **o)))
            if count > 1:
                found.append((name, count, count, lambda n=count, o=options: Ours(n, True, **o)))
    return found


def rate(stepped: Ours | Plain, envs: int, seconds: float) -> float:
    """Decisions a second, all environments together."""
    stepped.step()
    begun, decisions = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        stepped.step()
        decisions += envs
    return decisions / (time.perf_counter() - begun)


def measure(chosen: list[Way], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """The median rate of each way, over rounds in turn."""
    made = [(name, envs, processes, make()) for name, envs, processes, make in chosen]
    try:
        rates: list[list[float]] = [[] for _ in made]
        for _ in range(rounds):
            for found, (_, envs, _, stepped) in zip(rates, made, strict=True):
                found.append(rate(stepped, envs, seconds))
    finally:
        for *_, stepped in made:
            stepped.close()
    return [
        {"way": name, "envs": envs, "processes": processes, "rate": statistics.median(found)}
        for (name, envs, processes, _), found in zip(made, rates, strict=True)
    ]


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    plain = {row["way"].split(",")[0]: row["rate"] for row in result["rows"] if "dm_control" in row["way"]}
    rows = []
    for row in result["rows"]:
        beside = plain["pixels" if "pixels" in row["way"] else "state"]
        rows.append([row["way"], row["envs"], row["processes"], f"{row['rate']:,.0f}", f"{row['rate'] / beside:.2f}"])
    columns = ["walker-walk, action repeat 2", "environments", "processes", "decisions a second", "dm_control = 1"]
    return report.markdown(columns, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collect", description=__doc__.split("\n")[0])
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 2], help="environments at once")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="ways whose name contains this")
    args = parser.parse_args(arguments)
    chosen = [way for way in ways(args.envs) if args.only in way[0] or "itself" in way[0]]
    result: dict[str, Any] = report.facts()
    try:
        result["rows"] = measure(chosen, args.seconds, args.rounds)
    except RenderingError as error:
        parser.exit(1, f"No pixels here: {error}\n")
    report.save("collect", "Collecting from the real environment", result, table(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
