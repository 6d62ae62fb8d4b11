"""What an update costs: world and behaviour, beside its peers' in the same run and beside the arithmetic floor.

    make bench-peers                          # once: sheeprl and TorchRL in an environment
    python -m benchmarks.update --short       # small batches, minutes
    python -m benchmarks.update               # all rows; bigger batches take an hour on one core
    python -m benchmarks.update --growth      # how the cost grows with batch, length and size, without a peer

Both sides have the same networks (their numbers of parameters are compared), batch, length, horizon, threads and
precision, and dream from every state; each is a process of its own, and they are timed in turn. The floor is the
floating-point operations of our update's matrix products and convolutions at the rate of a large matrix product,
measured just before in the same threads and precision. With one thread, seconds are the processor's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from agents.captured import CAPTURABLE
from benchmarks import report
from benchmarks.ours import AGENTS
from benchmarks.serving import PEERS, Spec, Worker, alternate, clock_of
from wmgym.nets.precision import multiplies_bfloat16

NAMES = {"dreamer": "Dreamer", "dreamer_v1": "DreamerV1", "dreamer_v2": "DreamerV2", "dreamer_v3": "DreamerV3"}
CAPTURED = {name for name, cls in AGENTS.items() if cls in CAPTURABLE}
"""Those whose updates ask the host nothing."""
RATIOS = {"peer": "ratio", "torchrl": "torchrl_ratio"}
"""How much faster ours is than sheeprl and than TorchRL, in a row of the result."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""glibc keeps freed memory instead of asking the machine for new pages at every large tensor."""


# -- which rows -----------------------------------------------------------------------------------------------


def everyone() -> list[Spec]:
    """The agents that sheeprl has too, from either kind of observation."""
    sizes = [("dreamer_v1", ""), ("dreamer_v2", ""), ("dreamer_v3", "1m"), ("dreamer_v3", "12m")]
    return [Spec(agent, observation, size) for observation in ("state", "pixels") for agent, size in sizes]


def rows_beside_peers(shapes: list[tuple[int, int]], threads: list[int], device: str, modes: list[str]) -> list[Spec]:
    """Every agent, observation, shape, precision and number of threads; the flagship as it is, alone.

    Without bfloat16 where the device has no instructions for it: ours would then compute in float32.
    """
    precisions = ("float32", "bfloat16") if multiplies_bfloat16(torch.device(device).type) else ("float32",)
    beside = [(spec, precision) for spec in everyone() for precision in precisions]
    alone = [(Spec("dreamer", observation, defaults=True), "float32") for observation in ("state", "pixels")]
    return [
        replace(spec, batch=batch, length=length, precision=precision, threads=count, device=device, mode=mode)
        for batch, length in shapes
        for count in threads
        for spec, precision in [*beside, *alone]
        for mode in modes
        if mode != "captured" or spec.agent in CAPTURED
    ]


def rows_of_growth() -> list[Spec]:
    """One thing grows, the others stay."""
    base = Spec("dreamer", "state", length=32, defaults=True)
    batches = [replace(base, batch=batch) for batch in (4, 8, 16, 32, 64)]
    lengths = [replace(base, length=length) for length in (8, 16, 32, 64, 128)]
    sizes = [Spec("dreamer_v3", "state", size, batch=4, length=8) for size in ("1m", "12m", "25m", "50m")]
    return [*batches, *lengths, *sizes]


# -- measuring ------------------------------------------------------------------------------------------------


def measure(spec: Spec, workers: Mapping[str, Worker], repeats: int) -> dict[str, Any]:
    """One row: the median update of each worker ("ours", and of "peer", sheeprl, and "torchrl" those there are)."""
    built = {name: worker.build(spec) for name, worker in workers.items()}
    parameters = {name: answer["parameters"] for name, answer in built.items()}
    require_same(parameters)
    floor = built["ours"]["flops"] / workers["ours"].rate(spec.precision, spec.device)
    times = alternate({name: worker.run for name, worker in workers.items()}, repeats)
    clock = clock_of(spec.threads, spec.device)
    row: dict[str, Any] = {"spec": asdict(spec), "clock": clock, "floor_s": floor, "repeats": repeats}
    row |= {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "load": round(os.getloadavg()[0], 1)}
    for name, measured in times.items():
        row[name] = {
            "parameters": parameters[name],
            "flops": built[name]["flops"],
            "seconds": statistics.median(one[clock] for one in measured),
            "wall_s": [round(one["wall_s"], 4) for one in measured],
            "processor_s": [round(one["processor_s"], 4) for one in measured],
            "peak_mb": round(max(one["peak_mb"] for one in measured)),
        }
    for name, ratio in RATIOS.items():
        if name in times:
            row[ratio] = statistics.median(b[clock] / a[clock] for a, b in zip(times["ours"], times[name], strict=True))
    return row


def require_same(parameters: Mapping[str, int]) -> None:
    """Refuse to compare networks of different sizes.

    Raises:
        ValueError: if the numbers of parameters are more than half a percent apart.
    """
    least, most = min(parameters.values()), max(parameters.values())
    if most > 1.005 * least:
        raise ValueError(f"These are not the same networks: {dict(parameters)} parameters.")


def measure_all(
    specs: list[Spec], repeats: int, peer: bool, environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The rows, in two processes that stay."""
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(Worker("benchmarks.ours", Path(sys.executable), environment))}
        if peer:
            workers["peer"] = stack.enter_context(Worker("benchmarks.peers", PEERS, environment))
        if peer and any(map(in_torchrl, specs)):
            workers["torchrl"] = stack.enter_context(Worker("benchmarks.torchrl_peer", PEERS, environment))
        for spec in specs:
            able = {"ours": True, "peer": not spec.defaults, "torchrl": in_torchrl(spec)}
            yield measure(spec, {name: worker for name, worker in workers.items() if able[name]}, repeats)


def in_torchrl(spec: Spec) -> bool:
    """Whether TorchRL has the parts of this update."""
    return spec.agent == "dreamer_v1" and spec.observation == "pixels" and spec.device == "cpu"


# -- the table ------------------------------------------------------------------------------------------------


def describe(row: dict[str, Any]) -> list[str]:
    """A row as cells."""
    spec, ours, peer = Spec(**row["spec"]), row["ours"], row.get("peer")
    name = f"{NAMES[spec.agent]} {spec.size}".strip() + (", own defaults" if spec.defaults else "")
    precision = spec.precision if not spec.defaults else "-"
    where = f"{spec.threads}" if spec.device == "cpu" else f"{spec.device}, {spec.mode}"
    cells = [name, spec.observation, f"{spec.batch} x {spec.length}", precision, where]
    cells.append(f"{ours['parameters'] / 1e6:.2f}" + (f" / {peer['parameters'] / 1e6:.2f}" if peer else ""))
    cells += [f"{ours['seconds']:.3f}", f"{peer['seconds']:.3f}" if peer else "-"]
    cells += [f"{row[name]:.2f}" if name in row else "-" for name in RATIOS.values()]
    cells.append(f"{ours['seconds'] / row['floor_s']:.1f}")
    return [*cells, f"{ours['peak_mb']:,}" + (f" / {peer['peak_mb']:,}" if peer else ""), str(row["load"])]


COLUMNS = ["agent", "from", "B x T", "precision", "threads", "M parameters, ours / sheeprl", "ours, s", "sheeprl, s",
           "times as fast", "times as fast as TorchRL", "times the floor", "most MB so far, ours / sheeprl",
           "load"]  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown."""
    text = report.markdown(COLUMNS, [describe(row) for row in result["rows"]])
    if not torch.cuda.is_available():
        text += "\n\n" + report.unmeasured_on_gpu("--device cuda --modes eager compiled captured")
    return text


def text_of(spec: Spec) -> str:
    """What a row is of, in words: "dreamer_v1 state 4x8 float32 1"."""
    named = [spec.agent, spec.size, spec.observation, f"{spec.batch}x{spec.length}", spec.precision, str(spec.threads)]
    return " ".join(filter(None, named))


def kept_rows(name: str, specs: list[Spec]) -> list[dict[str, Any]]:
    """The rows of an earlier run that are not measured anew."""
    path = report.FOLDER / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if Spec(**row["spec"]) not in specs]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update", description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="B=4 T=8 and one thread only")
    parser.add_argument("--growth", action="store_true", help="how the cost grows, instead")
    parser.add_argument("--shapes", nargs="+", default=["4x8", "16x64"], metavar="BxT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", nargs="+", default=["eager"], choices=["eager", "compiled", "captured"])
    parser.add_argument("--only", nargs="+", default=[], help="rows that contain all these texts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--keep-memory", action="store_true", help=f"run both with {' '.join(ALLOCATOR)}")
    parser.add_argument("--keep", action="store_true", help="keep the result file's other rows")
    parser.add_argument("--name", help="of the result file")
    args = parser.parse_args(arguments)
    peer = not (args.no_peer or args.growth)
    if peer and not PEERS.exists():
        parser.error(f"{PEERS} is missing: run `make bench-peers`, or measure with --no-peer.")
    shapes = [tuple(map(int, shape.split("x"))) for shape in (["4x8"] if args.short else args.shapes)]
    threads = [1] if args.short else args.threads
    specs = rows_of_growth() if args.growth else rows_beside_peers(shapes, threads, args.device, args.modes)  # type: ignore[arg-type]
    specs = [spec for spec in specs if all(text in text_of(spec) for text in args.only)]
    name = args.name or ("update_growth" if args.growth else "update")
    title = "How the cost of an update grows" if args.growth else "Updates beside sheeprl"
    result: dict[str, Any] = {**report.facts(), "rows": kept_rows(name, specs) if args.keep else []}
    for row in measure_all(specs, args.repeats, peer, ALLOCATOR if args.keep_memory else {}):
        result["rows"].append(row)
        print(" | ".join(describe(row)), file=sys.stderr, flush=True)
        report.save(name, title, result, table(result))  # as it goes: a long run that is stopped keeps its rows
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
