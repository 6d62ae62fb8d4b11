"""What replay costs: storing a step and sampling a batch, in RAM and memory-mapped, as the replay grows.

    python -m benchmarks.replay                    # states up to 1e6 steps, pictures up to 1e5
    python -m benchmarks.replay --pictures 1000000 --folder /some/disk     # 12.5 GB of it

Batches are 16 sequences of 64 steps; one thread, timed by the processor's clock. The memory is what the process has
taken since it began: its own ("private"), which it must keep, and pages of the mapped files, which the machine takes
back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from benchmarks import report
from benchmarks.serving import ACTION, ROOT, STATE
from wmgym.replay import SequenceReplay

BATCH, LENGTH = 16, 64
BLOCK = 1000  # steps of an episode; also how many different pictures are stored in turn


def resident_mb() -> dict[str, float]:
    """Private and file-backed memory of this process, from Linux's /proc."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {
        kind: int(lines[field].split()[0]) / 1024 for kind, field in (("private", "RssAnon"), ("mapped", "RssFile"))
    }


def measure(observation: str, steps: int, folder: str | None, samples: int) -> dict[str, Any]:
    """Fill a replay with `steps` steps and sample from it; `folder` maps it to files there."""
    torch.set_num_threads(1)
    pictures = observation == "pixels"
    box = spaces.Box(0, 255, (64, 64, 3), np.uint8) if pictures else spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
    draw = np.random.default_rng(0)
    shape = (BLOCK, 1, *box.shape)
    seen = draw.integers(0, 256, shape, np.uint8) if pictures else draw.standard_normal(shape, np.float32)
    action, reward, no = np.zeros((1, ACTION), np.float32), np.ones(1, np.float32), np.zeros(1, bool)
    before = resident_mb()
    replay = SequenceReplay(steps, box, spaces.Box(-1, 1, (ACTION,), np.float32), folder=folder)
    begun = time.process_time()
    for step in range(steps):
        replay.add(seen[step % BLOCK], action, reward, no if step % BLOCK else ~no, no)
    added = time.process_time()
    for _ in range(samples):
        replay.sample(BATCH, LENGTH)
    sampled = time.process_time()
    after = resident_mb()
    return {
        "observation": observation,
        "steps": steps,
        "where": "files" if folder else "RAM",
        "add_us": 1e6 * (added - begun) / steps,
        "sample_ms": 1e3 * (sampled - added) / samples,
        "private_mb": after["private"] - before["private"],
        "mapped_mb": after["mapped"] - before["mapped"],
        "bytes_a_step": replay.step_bytes,
    }


def measured_alone(observation: str, steps: int, folder: str | None, samples: int) -> dict[str, Any]:
    """The same in a process of its own, so that memory is nobody else's."""
    arguments = (observation, steps, folder, samples)
    call = f"import json; from benchmarks.replay import measure; print(json.dumps(measure{arguments!r}))"
    out = subprocess.run([sys.executable, "-c", call], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out)
    return found


def run(states: list[int], pictures: list[int], samples: int, folder: str | None) -> dict[str, Any]:
    """Measure all sizes in RAM and in files."""
    result: dict[str, Any] = {**report.facts(), "rows": []}
    for observation, sizes in (("state", states), ("pixels", pictures)):
        for steps in sizes:
            result["rows"].append(measured_alone(observation, steps, None, samples))
            with tempfile.TemporaryDirectory(dir=folder) as disk:
                result["rows"].append(measured_alone(observation, steps, disk, samples))
            for row in result["rows"][-2:]:
                print(row, file=sys.stderr, flush=True)
    return result


def growth(rows: list[dict[str, Any]], observation: str, where: str) -> float:
    """The power of its size with which sampling grows: 0 not at all, 1 linearly."""
    found = sorted((r["steps"], r["sample_ms"]) for r in rows if (r["observation"], r["where"]) == (observation, where))
    (small, first), (large, last) = found[0], found[-1]
    return math.log(last / first) / math.log(large / small) if large > small else 0.0


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    sample = f"sample {BATCH} x {LENGTH}, ms"
    columns = ["of", "steps", "where", "add, µs", sample, "private MB", "mapped MB", "bytes a step"]
    rows = [
        [row["observation"], f"{row['steps']:,}", row["where"], f"{row['add_us']:.1f}", f"{row['sample_ms']:.2f}",
         f"{row['private_mb']:,.0f}", f"{row['mapped_mb']:,.0f}", f"{row['bytes_a_step']:,}"]
        for row in result["rows"]
    ]  # fmt: skip
    pairs = sorted({(row["observation"], row["where"]) for row in result["rows"]})
    powers = ", ".join(f"{what} in {where} {growth(result['rows'], what, where):.2f}" for what, where in pairs)
    picture = next((row["bytes_a_step"] for row in result["rows"] if row["observation"] == "pixels"), 0)
    text = f"{report.markdown(columns, rows)}\n\nSampling grows with the size to the power of: {powers} (linear is 1)."
    return text + (f" A million steps of pictures take {picture / 1e3:.2f} GB." if picture else "")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.split("\n")[0])
    parser.add_argument("--states", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--pictures", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--folder", help="of the memory-mapped files; they are deleted afterwards")
    args = parser.parse_args(arguments)
    result = run(args.states, args.pictures, args.samples, args.folder)
    report.save("replay", "Replay", result, table(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
