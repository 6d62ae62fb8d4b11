"""Trains in environments that raise, die, hang, bring NaN and wrong shapes: it must end, and name every fault.

    python -m benchmarks.reliability.faults --decisions 20000

The environments write down each fault before it happens; that list is compared with what the log says, and every step
in the replay is checked against what the environment really showed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import Dreamer
from agents.zoo.results import describe_commit, describe_machine
from benchmarks.reliability.environments import FAULTS
from wmgym.replay import SequenceReplay

ENVIRONMENT = "benchmarks.reliability.environments:Faulty-v0"
CHANCES = {"raise": 0.003, "raise at reset": 0.01, "nan": 0.003, "infinite reward": 0.003, "shape": 0.003}
LOST = {"die": 0.0003, "hang": 0.0003}
"""Rarer, because a new process takes a while, and a hanging one is waited for."""

SETTINGS: dict[str, Any] = {
    "deter": 16, "stoch": 4, "units": 16, "depth": 2, "batch_size": 4, "batch_length": 8, "horizon": 4,
    "imagine_starts": 8, "learning_starts": 100, "train_ratio": 2.0, "buffer_size": 50_000, "seed": 0, "device": "cpu",
}  # fmt: skip

_WORDS = {
    "raise": "step raised RuntimeError: the simulator crashed",
    "raise at reset": "reset raised RuntimeError: the simulator cannot be reset",
    "nan": "'observation' is nan",
    "infinite reward": "the reward is inf",
    "shape": "'observation' has shape (5,), expected (3,)",
    "die": "its process died (exit code 7)",
    "hang": "its process gave no answer",
}


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.messages.append(record.getMessage())


def train(
    decisions: int, folder: Path, subprocess: bool, timeout: float = 30.0, luck: int | None = None
) -> dict[str, Any]:
    """Train through faults.

    Returns:
        `injected` and `named` faults by kind, `decisions` made, `updates`, `steps` in the replay, and `foreign`: how
        many of them the environment has not shown so.
    """
    heard, record = Heard(), folder / "faults.txt"
    record.touch()
    logging.getLogger("wmgym").addHandler(heard)
    options = {"chances": CHANCES | (LOST if subprocess else {}), "record": str(record), "luck": luck}
    options |= {"subprocess": subprocess, "guarded": True, "timeout": timeout}
    agent = Dreamer(ENVIRONMENT, n_envs=2, env_kwargs=options, **SETTINGS)
    try:
        agent.learn(decisions)
    finally:
        logging.getLogger("wmgym").removeHandler(heard)
        agent.get_env().close()  # type: ignore[union-attr]
    injected = Counter(record.read_text().splitlines())
    named = {kind: sum(_WORDS[kind] in message for message in heard.messages) for kind in FAULTS}
    assert agent.replay_buffer is not None
    return {
        "decisions": agent.num_timesteps,
        "updates": agent._n_updates,
        "skipped_updates": agent._skipped_updates,
        "injected": {kind: injected[kind] for kind in FAULTS},
        "named": named,
        "steps": len(agent.replay_buffer),
        "foreign": foreign_steps(agent.replay_buffer),
    }


def foreign_steps(replay: SequenceReplay) -> int:
    """Steps that the environment has not shown so: not finite, not following the one before, or of another reward."""
    foreign = 0
    for env in range(replay.n_envs):
        steps = np.arange(*replay._streams.ranges[env])
        held = replay._storage.gather(np.array(env), steps)
        count, first = held["observation/observation"][:, 0], held["is_first"]
        expected = np.where(first, 0, np.concatenate([[0], count[:-1]]) + 1)
        good = np.isfinite(held["observation/observation"]).all(1) & (count == expected) & (held["reward"] == count)
        foreign += int((~good).sum())
    return foreign


def main() -> int:
    """Train, write the result file; returns 0 when every promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.faults", description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a process counts as hanging")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/reliability/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = train(arguments.decisions, Path(folder), subprocess=True, timeout=arguments.timeout)
    facts = {"commit": describe_commit(), "machine": describe_machine(), "seconds": round(time.monotonic() - started)}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "faults.json").write_text(json.dumps(facts | result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["injected"] == result["named"] and not result["foreign"] else 1


if __name__ == "__main__":
    sys.exit(main())
