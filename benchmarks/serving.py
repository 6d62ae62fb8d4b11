"""Updates that are timed in a process of their own, so that two implementations alternate in one run.

A worker (`benchmarks.ours`, `benchmarks.peers`) answers one JSON line, on a pipe of its own, for each it reads:

    {"do": "build", "spec": {...}}    ->  {"parameters": ..., "flops": ...}      replaces what was built before
    {"do": "rate", "dtype": "..."}    ->  {"rate": ...}                          operations a second of a matrix product
    {"do": "run"}                     ->  {"wall_s": ..., "processor_s": ..., "peak_mb": ...}   most so far

This file runs in the peers' environment too and imports nothing but torch.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
ACTION = 6  # walker's: actions, and numbers of a state
STATE = 24


@dataclass(frozen=True)
class Spec:
    """What an update is of.

    Attributes:
        agent: "dreamer", "dreamer_v1", "dreamer_v2" or "dreamer_v3".
        observation: "state" or "pixels" (64x64).
        size: DreamerV3's.
        batch: B.
        length: T.
        precision: "float32" or "bfloat16", of what the implementation can compute in it.
        threads: of torch.
        device: "cpu" or "cuda".
        mode: "eager", "compiled" (the steps of the recurrent loops) or "captured" (the whole update as a CUDA graph).
        defaults: the implementation's own precision and number of dreams instead of the ones asked for.
    """

    agent: str
    observation: str
    size: str = ""
    batch: int = 16
    length: int = 64
    precision: str = "float32"
    threads: int = 1
    device: str = "cpu"
    mode: str = "eager"
    defaults: bool = False


class Update(NamedTuple):
    """Something to time, and how many parameters it trains."""

    step: Callable[[], Any]
    parameters: int


# -- in the worker --------------------------------------------------------------------------------------------


def serve(build: Callable[[Spec], Update]) -> None:
    """Answer requests from standard input, until it ends, to the file descriptor that the command line names."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    update = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "build":
            update = None  # the last one's memory, before the next one's is needed
            gc.collect()
            update, answer = _build(build, Spec(**request["spec"]))
        elif request["do"] == "rate":
            answer = {"rate": matrix_rate(request["dtype"], request["device"])}
        else:
            assert update is not None, "build first"
            answer = timed(update.step)
        print(json.dumps(answer), file=answers, flush=True)


def _build(build: Callable[[Spec], Update], spec: Spec) -> tuple[Update, dict[str, Any]]:
    torch.set_num_threads(spec.threads)
    update = build(spec)
    return update, {"parameters": update.parameters, "flops": flops(update.step)}  # also the first, slow call


def flops(step: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def timed(step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call, by the wall and by the processor's clock, and the most memory that was ever used."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    wall, processor = time.perf_counter(), time.process_time()
    step()
    wait()
    return {
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def matrix_rate(dtype: str = "float32", device: str = "cpu", size: int = 1024, repeats: int = 5) -> float:
    """Operations a second of a product of two square matrices; one thread by the processor's clock."""
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype))
    clock = clock_of(torch.get_num_threads(), device)
    (a @ b).sum()
    return 2 * size**3 / statistics.median(timed(lambda: a @ b)[clock] for _ in range(repeats))


def clock_of(threads: int, device: str = "cpu") -> str:
    """The clock that counts: with one thread the processor's, which other programs disturb little."""
    return "processor_s" if threads == 1 and device == "cpu" else "wall_s"


# -- in the benchmark -----------------------------------------------------------------------------------------


class Worker:
    """A process that serves a module's updates.

    Args:
        module: such as "benchmarks.ours".
        python: the interpreter, of the environment that the module needs.
        environment: variables added to this process's.

    Raises:
        RuntimeError: when a request fails in the worker, whose own error is on standard error.
    """

    def __init__(self, module: str, python: Path, environment: Mapping[str, str] | None = None) -> None:
        self.module = module
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [str(python), "-m", module, str(writing)],
            stdin=subprocess.PIPE,
            stdout=2,  # what libraries print
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            pass_fds=(writing,),
        )
        os.close(writing)
        self._answers = os.fdopen(reading)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._answers.close()

    def build(self, spec: Spec) -> dict[str, Any]:
        """Build the update and count its parameters and operations."""
        return self._ask({"do": "build", "spec": asdict(spec)})

    def rate(self, dtype: str, device: str) -> float:
        """Operations a second of a matrix product, in the threads of the update last built."""
        return float(self._ask({"do": "rate", "dtype": dtype, "device": device})["rate"])

    def run(self) -> dict[str, float]:
        """Time one update."""
        return self._ask({"do": "run"})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self.module} has ended at {request}: its error stands above.")
        found: dict[str, Any] = json.loads(answer)
        return found


def alternate(steps: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, list[dict[str, float]]]:
    """What each of `steps` measures, `repeats` times in turn (A, B, A, B), so that noise falls on all alike."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            found[name].append(step())
    return found
