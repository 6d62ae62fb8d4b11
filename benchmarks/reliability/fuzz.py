"""Opens thousands of damaged and hostile files: each must load as it was, or be refused by our error.

    python -m benchmarks.reliability.fuzz --cases 10000

Half are checkpoints of an agent, half are replays. None may raise anything else, take more than a few seconds of the
processor, or take more memory than twice what the file has (and a fixed slack for Python itself). Some carry a pickle
that would leave a mark if anything unpickled it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

from agents import Dreamer
from agents.zoo.results import describe_commit, describe_machine
from benchmarks.reliability.mutations import MUTATIONS, bomb
from wmgym.files import CheckpointError
from wmgym.replay import SequenceReplay

TINY: dict[str, Any] = {
    "deter": 8, "stoch": 4, "units": 8, "depth": 2, "batch_size": 2, "batch_length": 4, "horizon": 2,
    "imagine_starts": 4, "learning_starts": 16, "train_ratio": 1.0, "buffer_size": 64, "seed": 0, "device": "cpu",
}  # fmt: skip
SECONDS = 20.0  # of the processor; the clock also counts what other programs do
SLACK_MB = 24.0  # a damaged file may make Python import a codec or grow its heap by an arena
_ADDRESS_SPACE = 8 << 30  # what no small file may ask for, even without using it


class Target(NamedTuple):
    """A kind of file: a good one, how it is opened, and what it then holds."""

    name: str
    data: bytes
    read: Callable[[Path], dict[str, np.ndarray]]


class HangError(Exception):
    """Opening a file took too long."""


def targets(folder: Path) -> list[Target]:
    """A trained agent's checkpoint and its replay, both small."""
    agent = Dreamer("CartPole-v1", **TINY).learn(40)
    path = agent.save(folder / "agent", include=["replay_buffer"])
    return [
        Target("checkpoint", path.read_bytes(), read_agent),
        Target("replay", path.with_name("agent-replay.zip").read_bytes(), read_replay),
    ]


def read_agent(path: Path) -> dict[str, np.ndarray]:
    """The parameters of the agent in a file."""
    state = Dreamer.load(path, device="cpu").policy.state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def read_replay(path: Path) -> dict[str, np.ndarray]:
    """The steps of the replay in a file."""
    replay = SequenceReplay.load(path)
    ranges = replay._streams.ranges
    return {
        f"{name}/{env}": np.concatenate([*replay._storage.blocks(name, env, *held), np.zeros((0, *array.shape[2:]))])
        for name, array in replay._storage.arrays.items()
        for env, held in enumerate(ranges)
    }


def judge(target: Target, mutated: bytes, path: Path, good: dict[str, np.ndarray]) -> str:
    """What opening a mutated file comes to: "refused", "equal", "changed", or the name of what it raised."""
    path.write_bytes(mutated)
    try:
        with _limited(SECONDS):
            found = target.read(path)
    except CheckpointError:
        return "refused"
    except HangError:
        return "hang"
    except BaseException as error:
        logging.exception("%s: %r", target.name, error)
        return f"raised {type(error).__name__}"
    equal = found.keys() == good.keys() and all(np.array_equal(found[name], good[name]) for name in good)
    return "equal" if equal else "changed"


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def alarm(number: int, frame: FrameType | None) -> None:
        raise HangError

    previous = signal.signal(signal.SIGVTALRM, alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


class Memory:
    """The largest resident memory since the last look, from Linux's /proc."""

    def start(self) -> None:
        """Begin anew."""
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")

    def taken_mb(self) -> float:
        """How much more than at the start was ever in use."""
        return (self._read("VmHWM") - self.before) / 1024

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def fuzz(cases: int, folder: Path, seed: int = 0, progress: Callable[[dict[str, Any]], None] = lambda _: None) -> Any:
    """Open so many mutated files and count what came of them.

    Returns:
        `outcomes` by kind of file, mutation and outcome; `most_memory_mb` taken beyond twice the file; `bad`: the
        cases (number, kind, mutation, outcome) that broke a promise; `exploded`: whether a pickle was opened.
    """
    kinds = targets(folder)
    good = {kind.name: kind.read(_written(folder / "good.zip", kind.data)) for kind in kinds}
    mark, memory = folder / "exploded", Memory()
    outcomes: Counter[str] = Counter()
    result: dict[str, Any] = {"cases": 0, "most_memory_mb": 0.0, "bad": []}
    names = sorted(MUTATIONS)
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        kind, mutation = kinds[case % len(kinds)], names[case // len(kinds) % len(names)]
        mutated = MUTATIONS[mutation](kind.data, rng, bomb(mark))
        memory.start()
        outcome = judge(kind, mutated, folder / "case.zip", good[kind.name])
        extra = memory.taken_mb() - 2 * len(mutated) / 2**20
        outcomes[f"{kind.name} / {mutation} / {outcome}"] += 1
        allowed = {"refused", "equal"} | ({"changed"} if mutation == "wild header" and kind.name == "replay" else set())
        if outcome not in allowed or extra > SLACK_MB or mark.exists():
            result["bad"].append([case, kind.name, mutation, outcome, round(extra, 1)])
        result["cases"], result["most_memory_mb"] = case + 1, round(max(result["most_memory_mb"], extra), 1)
        if case % 500 == 499:
            progress(result | {"outcomes": dict(sorted(outcomes.items()))})
    return result | {"exploded": mark.exists(), "outcomes": dict(sorted(outcomes.items()))}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def main() -> int:
    """Fuzz and write the result file; returns 0 when every promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/reliability/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE, used + _ADDRESS_SPACE))

    def write(result: dict[str, Any]) -> None:
        facts = {"commit": describe_commit(), "machine": describe_machine(), "slack_mb": SLACK_MB, "seconds": SECONDS}
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "fuzz.json").write_text(json.dumps(facts | result, indent=1) + "\n")
        print(result["cases"], result["most_memory_mb"], result["bad"][-3:], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(arguments.cases, Path(folder), arguments.seed, write)
    write(result)
    return 1 if result["bad"] or result["exploded"] else 0


if __name__ == "__main__":
    sys.exit(main())
