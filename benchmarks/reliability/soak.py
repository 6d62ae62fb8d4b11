"""Two hours of training in environments with processes of their own: memory, descriptors and speed must stay flat.

python -m benchmarks.reliability.soak --minutes 120

The environments sleep and now and then end their process, checkpoints are written all the while. Every half minute
what the run uses is read from /proc; the result and its plot are written as the run goes.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents import Dreamer
from agents.checkpointing import CheckpointEvery
from agents.zoo.results import describe_commit, describe_machine
from benchmarks.reliability.usage import Usage, usage

SETTINGS: dict[str, Any] = {
    "deter": 64, "stoch": 8, "units": 64, "batch_size": 8, "batch_length": 16, "horizon": 8, "imagine_starts": 64,
    "train_ratio": 4.0, "learning_starts": 1000, "buffer_size": 8000, "seed": 0, "device": "cpu",
}  # fmt: skip
ENVIRONMENT = "benchmarks.reliability.environments:SlowCartPole-v0"
WARM_UP = 0.15  # share of the run: the replay fills, allocators and caches find their size
WINDOW = 600.0  # seconds over which the figures are averaged


class Watch(BaseCallback):
    """Reads what the run uses every `every` seconds and writes the result file; stops after `minutes`."""

    def __init__(self, path: Path, minutes: float, every: float) -> None:
        super().__init__()
        self.path, self.minutes, self.every = path, minutes, every
        self.started = self.last = time.monotonic()
        self.samples: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self._sample(now - self.started)
        return now - self.started < 60 * self.minutes

    def _sample(self, seconds: float) -> None:
        used: Usage = usage()
        self.samples.append(
            {
                "seconds": round(seconds, 1),
                "decisions": self.model.num_timesteps,
                "updates": self.model._n_updates,
                "env_faults": self.model._env_faults,  # type: ignore[attr-defined]
                **used._asdict(),
            }
        )
        self.write(complete=False)

    def write(self, complete: bool) -> None:
        """Write the result file with what is known now."""
        data = {
            "complete": complete,
            "env_id": ENVIRONMENT,
            "settings": SETTINGS,
            "commit": describe_commit(),
            "machine": describe_machine(),
            "summary": summary(self.samples),
            "samples": self.samples,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(self.path)


def summary(samples: list[dict[str, float]]) -> dict[str, float]:
    """How much memory, descriptors and speed changed from the first to the last window after warming up.

    Changes are shares (0.02 is 2%); spreads are the largest deviation of any window from the mean of all.
    """
    windows = averaged(samples)
    if len(windows["memory_mb"]) < 2:
        return {}
    figures: dict[str, float] = {"windows": len(windows["memory_mb"])}
    for name, values in windows.items():
        figures[f"{name}_change"] = round(float(values[-1] / values[0] - 1), 4)
        figures[f"{name}_spread"] = round(float(np.abs(values / values.mean() - 1).max()), 4)
    kept = [sample for sample in samples if sample["seconds"] >= WARM_UP * samples[-1]["seconds"]]
    figures["descriptors_first"], figures["descriptors_last"] = kept[0]["descriptors"], kept[-1]["descriptors"]
    return figures


def averaged(samples: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Memory, speed by the clock and processor time a decision, in windows of `WINDOW` seconds after warming up."""
    kept = [sample for sample in samples if sample["seconds"] >= WARM_UP * samples[-1]["seconds"]]
    columns = {name: np.array([sample[name] for sample in kept]) for name in (kept[0] if kept else {})}
    result: dict[str, list[float]] = {"memory_mb": [], "decisions_per_s": [], "processor_ms_per_decision": []}
    edges = np.arange(columns["seconds"][0], columns["seconds"][-1], WINDOW) if kept else np.zeros(0)
    for start in edges:
        inside = np.flatnonzero((columns["seconds"] >= start) & (columns["seconds"] < start + WINDOW))
        if len(inside) < 2 or columns["seconds"][inside[-1]] - start < 0.8 * WINDOW:
            continue
        first, last = inside[0], inside[-1]
        decisions = columns["decisions"][last] - columns["decisions"][first]
        result["memory_mb"].append(float(columns["memory_mb"][inside].mean()))
        result["decisions_per_s"].append(decisions / (columns["seconds"][last] - columns["seconds"][first]))
        spent = columns["own_processor_s"][last] - columns["own_processor_s"][first]
        result["processor_ms_per_decision"].append(1000 * spent / decisions)
    return {name: np.array(values) for name, values in result.items()}


def plot(samples: list[dict[str, float]], path: Path) -> None:
    """Memory, descriptors and speed over time."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    minutes = np.array([sample["seconds"] for sample in samples]) / 60
    speed = np.diff([sample["decisions"] for sample in samples]) / np.diff(minutes) / 60
    spent = 1000 * np.diff([s["own_processor_s"] for s in samples]) / np.diff([s["decisions"] for s in samples])
    figure, axes = plt.subplots(4, 1, figsize=(8, 8), sharex=True, layout="constrained")
    axes[0].plot(minutes, [sample["memory_mb"] for sample in samples])
    axes[1].step(minutes, [sample["descriptors"] for sample in samples])
    axes[2].plot(minutes[1:], speed)
    axes[3].plot(minutes[1:], spent)
    names = ("memory of all processes, MB", "open descriptors", "decisions per second", "processor ms per decision")
    for axis, name in zip(axes, names):
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run, watch, and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between samples")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="for checkpoints and logs")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/reliability/results"))
    parser.add_argument("--sleep", type=float, default=0.08, help="seconds an environment sleeps in each step")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    options = {"subprocess": True, "timeout": 300.0, "sleep": arguments.sleep, "deadly": 1 / 20_000}
    agent = Dreamer(ENVIRONMENT, n_envs=2, env_kwargs=options, **SETTINGS)
    agent.set_logger(configure(str(arguments.folder), ["csv"]))
    watch = Watch(arguments.results / "soak.json", arguments.minutes, arguments.every)
    agent.learn(10**9, callback=[watch, CheckpointEvery(arguments.folder / "checkpoints", every=5000)])
    watch.write(complete=True)
    plot(watch.samples, arguments.results / "soak.png")
    agent.get_env().close()


if __name__ == "__main__":
    main()
