"""Kills training at random moments, many of them inside a save, resumes it, and compares it with an unbroken run.

    python -m benchmarks.reliability.kill --runs 50                     # SIGKILL
    python -m benchmarks.reliability.kill --runs 20 --medium full       # the disk fills up, then SIGKILL
    python -m benchmarks.reliability.kill --runs 20 --medium readonly   # the folder becomes read-only, then SIGKILL

Every run trains the same small agent with the same seed and writes a checkpoint every few decisions; every second one
keeps its replay memory-mapped. It is killed, resumed from what it left (some are killed and resumed again), and must
end with the parameters of the run that was never touched, bit for bit. The last two need root, for a small tmpfs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import Dreamer
from agents.checkpointing import CheckpointEvery, last_checkpoint
from agents.zoo.results import describe_commit, describe_machine
from benchmarks.reliability.hashing import parameter_hash
from wmgym.checkpoint import CheckpointError, read_manifest

DECISIONS, EVERY = 100, 10
SETTINGS: dict[str, Any] = {
    "deter": 32, "stoch": 8, "units": 32, "depth": 4, "batch_size": 4, "batch_length": 8, "horizon": 5,
    "imagine_starts": 16, "learning_starts": 20, "train_ratio": 4.0, "buffer_size": 1000, "seed": 0, "device": "cpu",
}  # fmt: skip
PATIENCE = 300.0  # seconds for a run; the machine may be busy
_DISK_BYTES = 16 << 20


def train(folder: Path, mapped: bool) -> str:
    """Train to the end, from the last checkpoint if there is one; returns the parameters' hash."""
    callback = CheckpointEvery(folder / "checkpoints", EVERY)
    try:
        agent = Dreamer.load(last_checkpoint(folder / "checkpoints"), device="cpu")
    except CheckpointError:  # killed before the first one
        agent = Dreamer("CartPole-v1", buffer_folder=folder.with_suffix(".replay") if mapped else None, **SETTINGS)
    agent.learn(DECISIONS - agent.num_timesteps, callback, reset_num_timesteps=not agent.num_timesteps)
    return parameter_hash(agent)


class Child:
    """A function in a forked process, whose result or failure comes back through a file."""

    def __init__(self, act: Callable[[], str], outcome: Path) -> None:
        self.outcome = outcome
        outcome.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._run(act)
        self.ended = False

    def _run(self, act: Callable[[], str]) -> None:
        status = 1
        try:
            self.outcome.write_text(act())
            status = 0
        except BaseException as error:
            logging.exception("The run failed: %s", error)
        finally:
            os._exit(status)

    def poll(self) -> bool:
        """Whether it has ended."""
        self.ended = self.ended or os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return self.ended

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if not self.poll():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True

    def result(self) -> str:
        """What the function returned, once it has; "" when it failed or took too long."""
        deadline = time.monotonic() + PATIENCE
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()
        return self.outcome.read_text() if self.outcome.exists() else ""


def wait_for_moment(child: Child, folder: Path, rng: np.random.Generator, duration: float) -> str:
    """Wait until the moment to kill: half of them inside a save, the others anywhere."""
    if rng.random() < 0.5:
        delay = float(rng.uniform(0, 1.0) * duration)
        _wait(child, lambda: False, delay)
        return f"after {delay:.2f} s"
    number, delay = int(rng.integers(1, DECISIONS // EVERY)), float(rng.uniform(0, 0.02))
    _wait(child, lambda: _steps(folder) >= number * EVERY and _writing(folder), PATIENCE)
    _wait(child, lambda: False, delay)
    return f"{1000 * delay:.0f} ms into a save after checkpoint {number}"


def _wait(child: Child, reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached() and not child.poll() and time.monotonic() < deadline:
        time.sleep(0.0005)


def _steps(folder: Path) -> int:
    names = [path.stem for path in folder.glob("checkpoints/checkpoint-*.zip") if not path.stem.endswith("replay")]
    return max((int(name.split("-")[1]) for name in names), default=0)


def _writing(folder: Path) -> bool:
    return any(folder.glob("checkpoints/.checkpoint-*.tmp"))


def trial(number: int, root: Path, medium: Medium, unbroken: str, duration: float) -> dict[str, Any]:
    """One run: hurt the medium, kill, mend, resume, compare."""
    rng = np.random.default_rng(number)
    folder, mapped = root / f"run{number}", bool(number % 2)
    folder.mkdir()
    kills = []
    with medium(folder) as (hurt, mend):
        for _ in range(int(rng.integers(1, 3))):
            child = Child(lambda: train(folder, mapped), root / "outcome")
            if medium is not untouched:
                _wait(child, lambda: _steps(folder) >= EVERY, PATIENCE)
                hurt()
            moment = wait_for_moment(child, folder, rng, duration) if medium is untouched else _later(child, duration)
            finished = child.poll()
            child.kill()
            left = describe(folder)
            mend()
            kills.append({"moment": moment, "had_ended": finished, **left})
        result = Child(lambda: train(folder, mapped), root / "outcome").result()
    return {"run": number, "memory_mapped": mapped, "kills": kills, "resumed_equals_unbroken": result == unbroken}


def _later(child: Child, duration: float) -> str:
    _wait(child, lambda: False, duration / 2)
    return f"{duration / 2:.2f} s after the medium failed"


def describe(folder: Path) -> dict[str, Any]:
    """What a killed run left: where its last checkpoint is, and whether it was writing one."""
    try:
        steps = read_manifest(last_checkpoint(folder / "checkpoints"))["run"]["num_timesteps"]
    except CheckpointError:
        steps = None
    return {
        "last_checkpoint": steps,
        "inside_a_save": _writing(folder),
        "all_readable": steps in (None, _steps(folder)),
    }


# -- media ----------------------------------------------------------------------------------------------------

Hurting = tuple[Callable[[], None], Callable[[], None]]


@contextmanager
def untouched(folder: Path) -> Iterator[Hurting]:
    """A disk that works."""
    yield (lambda: None), (lambda: None)


@contextmanager
def full(folder: Path) -> Iterator[Hurting]:
    """A disk that fills up."""
    filler = folder / "checkpoints" / "filler"

    def fill() -> None:
        with filler.open("ab", buffering=0) as file:
            try:
                for size in (1 << 16, 1 << 12, 1):
                    while True:
                        if not file.write(b"\0" * size):
                            break
            except OSError:
                return

    with _small_disk(folder / "checkpoints"):
        yield fill, lambda: filler.unlink(missing_ok=True)


@contextmanager
def readonly(folder: Path) -> Iterator[Hurting]:
    """A disk that becomes read-only."""
    place = folder / "checkpoints"

    def remount(mode: str) -> None:
        for _ in range(1000):  # refused while a file is being written
            if subprocess.run(["mount", "-o", f"remount,{mode}", place], capture_output=True).returncode == 0:
                return
            time.sleep(0.01)
        raise OSError(f"{place} cannot be remounted {mode}.")

    with _small_disk(place):
        yield (lambda: remount("ro")), (lambda: remount("rw"))


@contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


Medium = Callable[[Path], Any]
MEDIA: dict[str, Medium] = {"untouched": untouched, "full": full, "readonly": readonly}


def main() -> int:
    """Run the trials; returns 0 when every run was resumed exactly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.kill", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="go on with this run; those before are in the result file")
    parser.add_argument("--medium", choices=sorted(MEDIA), default="untouched")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/reliability/results"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        started = time.monotonic()
        (root / "unbroken").mkdir()
        unbroken = Child(lambda: train(root / "unbroken", mapped=False), root / "outcome").result()
        duration = time.monotonic() - started
        path = arguments.results / f"kill-{arguments.medium}.json"
        trials = json.loads(path.read_text())["trials"][: arguments.first] if arguments.first else []
        for number in range(len(trials), arguments.runs):
            trials.append(trial(number, root, MEDIA[arguments.medium], unbroken, duration))
            write(path, trials, unbroken)
            print(json.dumps(trials[-1]), flush=True)
    return 0 if all(trial["resumed_equals_unbroken"] for trial in trials) else 1


def write(path: Path, trials: list[dict[str, Any]], unbroken: str) -> None:
    """Write the result file."""
    kills = [kill for trial in trials for kill in trial["kills"]]
    data = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "runs": len(trials),
        "resumed_exactly": sum(trial["resumed_equals_unbroken"] for trial in trials),
        "kills": len(kills),
        "kills_inside_a_save": sum(kill["inside_a_save"] for kill in kills),
        "kills_after_the_end": sum(kill["had_ended"] for kill in kills),
        "checkpoints_mistaken_for_good": sum(not kill["all_readable"] for kill in kills),
        "unbroken": unbroken,
        "trials": trials,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
