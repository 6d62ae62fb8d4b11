"""Suites: which agents on which tasks with which seeds, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import yaml

from agents.zoo.hyperparams import DEFAULT


class Run(NamedTuple):
    """One training run of a suite."""

    algo: str
    preset: str
    env_id: str
    seed: int


@dataclass(frozen=True)
class Suite:
    """A named set of runs."""

    name: str
    about: str
    agents: tuple[str, ...]
    """Each `algo` or `algo/preset`."""
    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    env_steps: int
    """Simulator steps of each run."""
    observation: str = "state"

    def runs(self) -> list[Run]:
        """All runs, a seed of every task before the next seed."""
        agents = [(algo, preset or DEFAULT) for algo, _, preset in (agent.partition("/") for agent in self.agents)]
        return [Run(*agent, env_id, seed) for seed in self.seeds for agent in agents for env_id in self.envs]


def read_suites(file: str | Path | None = None) -> dict[str, Suite]:
    """The suites of a YAML file by name; None: those of `zoo_configs/suites.yml`.

    Raises:
        ValueError: for an entry that is no suite.

    Example:
        >>> len(read_suites()["nine"].runs())
        27
    """
    source = Path(file) if file else files("zoo_configs") / "suites.yml"
    suites = {}
    for name, entry in yaml.safe_load(source.read_text()).items():
        try:
            lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
            suites[name] = Suite(**{"name": name, **entry, **lists})
        except TypeError as error:
            raise ValueError(f"{source.name}: the suite {name!r} is not right: {error}") from error
    return suites
