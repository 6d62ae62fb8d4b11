"""A whole training run: environment steps a second and the most memory, beside sheeprl's at the same update ratio.

    make bench-peers                       # once
    python -m benchmarks.train             # prints the table, writes benchmarks/results/train.json

DreamerV3 of 1m parameters on walker-walk, one environment, action repeat 2. Each run is a process of its own, and each
is done twice: to the end of the random decisions before learning, and on with learning. The difference between the two
is what learning decisions cost, without start-up. They take turns. Stable-Baselines3's SAC, which has no world, stands
beside them with as many updates on as many steps: what a world costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.serving import ROOT
from benchmarks.update import PEERS

ENV = "dm_control/walker-walk-v0"
REPEAT = 2


@dataclass(frozen=True)
class Run:
    """A short training run.

    Attributes:
        observation: "state" or "pixels".
        starts: random decisions before learning.
        decisions: in all.
        updates_per_decision: after the random ones.
        batch: B.
        length: T.
    """

    observation: str
    starts: int
    decisions: int
    updates_per_decision: float
    batch: int
    length: int

    def to_learning(self) -> Run:
        """The run without its learning part."""
        return Run(**{**asdict(self), "decisions": self.starts})


class Cost(NamedTuple):
    """What a process took."""

    wall_s: float
    processor_s: float
    peak_mb: float


def learn(run: Run) -> None:
    """Our run."""
    import torch

    from agents import DreamerV3

    torch.set_num_threads(1)
    agent = DreamerV3(
        ENV,
        size="1m",
        observation=run.observation,
        action_repeat=REPEAT,
        batch_size=run.batch,
        batch_length=run.length,
        train_ratio=run.updates_per_decision * run.batch * run.length,
        learning_starts=run.starts,
        buffer_size=max(run.decisions + 1000, 10_000),
        device="cpu",
        seed=0,
    )
    agent.learn(run.decisions, log_interval=None)


def learn_sac(run: Run) -> None:
    """Stable-Baselines3's SAC with as many updates a decision, each on as many steps; its own defaults else."""
    import torch
    from stable_baselines3 import SAC

    from wmgym import make_vec

    torch.set_num_threads(1)
    env = make_vec(ENV, 1, seed=0, observation=run.observation, action_repeat=REPEAT)
    agent = SAC(
        "MlpPolicy" if run.observation == "state" else "CnnPolicy",
        env,
        learning_starts=run.starts,
        batch_size=run.batch * run.length,
        train_freq=max(1, round(1 / run.updates_per_decision)),
        gradient_steps=max(1, round(run.updates_per_decision)),
        buffer_size=max(run.decisions + 1000, 10_000),
        device="cpu",
        seed=0,
    )
    agent.learn(run.decisions, log_interval=None)


def our_command(run: Run, function: str = "learn") -> list[str]:
    """A process that learns as `learn`, or another function of this module, does."""
    return [sys.executable, "-c", f"from benchmarks.train import Run, {function}; {function}({run!r})"]


def peer_command(run: Run, folder: str) -> list[str]:
    """Sheeprl's command line for the same run, without logs, tests and checkpoints."""
    pixels = run.observation == "pixels"
    settings = {
        "exp": "dreamer_v3_5_dmc_walker_walk",
        "algo": "dreamer_v3_5_1M",
        "env.num_envs": 1,
        "env.capture_video": False,
        "env.wrapper.from_pixels": pixels,
        "env.wrapper.from_vectors": not pixels,
        "algo.cnn_keys.encoder": "[rgb]" if pixels else "[]",
        "algo.mlp_keys.encoder": "[]" if pixels else "[state]",
        "algo.total_steps": run.decisions,
        "algo.learning_starts": run.starts,
        "algo.replay_ratio": run.updates_per_decision,
        "algo.per_rank_batch_size": run.batch,
        "algo.per_rank_sequence_length": run.length,
        "algo.run_test": False,
        "buffer.size": max(run.decisions + 1000, 10_000),
        "buffer.memmap": False,
        "buffer.checkpoint": False,
        "checkpoint.every": 10**9,
        "checkpoint.save_last": False,
        "metric.log_level": 0,
        "log_root": folder,
    }
    return [str(PEERS), "-m", "sheeprl", *(f"{name}={value}" for name, value in settings.items())]


def cost(command: list[str]) -> Cost:
    """Run it and say what it took.

    Raises:
        CalledProcessError: if it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(run: Run, peer: bool) -> list[dict[str, Any]]:
    """Every side's runs, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": our_command, "SB3's SAC": lambda r: our_command(r, "learn_sac")}
        if peer:
            sides["sheeprl"] = lambda r: peer_command(r, folder)
        start = {name: cost(make(run.to_learning())) for name, make in sides.items()}
        whole = {name: cost(make(run)) for name, make in sides.items()}
    env_steps = (run.decisions - run.starts) * REPEAT
    return [
        {
            **asdict(run),
            "side": name,
            "env_steps_per_processor_s": env_steps / (whole[name].processor_s - start[name].processor_s),
            "env_steps_per_s": env_steps / (whole[name].wall_s - start[name].wall_s),
            "peak_mb": whole[name].peak_mb,
            "start": start[name]._asdict(),
            "whole": whole[name]._asdict(),
        }
        for name in sides
    ]


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    columns = ["from", "side", "B x T", "updates a decision", "environment steps a second of processor time",
               "of the wall clock", "peak MB"]  # fmt: skip
    rows = [
        [row["observation"], row["side"], f"{row['batch']} x {row['length']}", row["updates_per_decision"],
         f"{row['env_steps_per_processor_s']:.2f}", f"{row['env_steps_per_s']:.2f}", f"{row['peak_mb']:,.0f}"]
        for row in result["rows"]
    ]  # fmt: skip
    return report.markdown(columns, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.split("\n")[0])
    parser.add_argument("--observations", nargs="+", default=["state", "pixels"], choices=["state", "pixels"])
    parser.add_argument("--starts", type=int, default=200, help="random decisions")
    parser.add_argument("--decisions", type=int, default=400, help="in all")
    parser.add_argument("--ratio", type=float, default=0.25, help="updates a decision")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args(arguments)
    if not args.no_peer and not Path(PEERS).exists():
        parser.error(f"{PEERS} is missing: run `make bench-peers`, or measure with --no-peer.")
    result: dict[str, Any] = {**report.facts(), "rows": []}
    for observation in args.observations:
        run = Run(observation, args.starts, args.decisions, args.ratio, args.batch, args.length)
        result["rows"] += measure(run, not args.no_peer)
        report.save("train", "Whole training runs", result, table(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
