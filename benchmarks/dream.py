"""How fast dreams are: beside the real environment, single dreams in a DummyVecEnv, and what the arithmetic allows.

    python -m benchmarks.dream                # writes benchmarks/results/dream.json and its section of RESULTS.md
    python -m benchmarks.dream --threads 1 4 --seconds 3
    python -m benchmarks.dream --device cuda --dreams 4096 65536

Everything is measured one after the other; simulusion's environment, where `make bench-peers` has run, in a process of
its own. Rates are decisions a second of processor time for one
thread (what other programs take of the machine then counts for little), of the wall clock for more.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils.flop_counter import FlopCounterMode

from agents.dreamer import flagship_world
from benchmarks.report import facts, markdown, save, unmeasured_on_gpu
from benchmarks.serving import PEERS, Spec, Worker, clock_of
from wmgym.dream import DreamEnv, DreamModel, DreamVectorEnv, StartStates, as_model
from wmgym.real import make_env
from wmgym.rendering import RenderingError
from wmgym.worlds.rssm import RSSM

ENV = "dm_control/walker-walk-v0"
SIZES = (1, 16, 256, 1024, 4096)
_MARKS = {
    "compiled": ", compiled",
    "dummy": ", DummyVecEnv of single dreams",
    "simulusion": ", simulusion's WorldModelEnv in a SyncVectorEnv, the same world",
}
CLOCKS = "One thread: a second of processor time. More threads, and GPUs: a second of the wall clock."


@dataclasses.dataclass
class Clock:
    """Measures decisions a second.

    Attributes:
        threads: of torch; 1 is timed by the processor's clock, more by the wall clock.
        seconds: that each measurement takes at least.
        device: what works; a GPU is timed by the wall clock.
    """

    threads: int
    seconds: float
    device: str = "cpu"

    def rate(self, step: Callable[[], Any], decisions: int) -> float:
        """How often a second, when each `step` makes so many `decisions`."""
        now = time.process_time if self.threads == 1 and self.device == "cpu" else self._now
        torch.set_num_threads(self.threads)
        step()
        begun, steps = now(), 0
        while now() - begun < self.seconds:
            step()
            steps += 1
        return steps * decisions / (now() - begun)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


# -- what is measured -----------------------------------------------------------------------------------------


def make_model(pixels: bool, device: str = "cpu") -> DreamModel:
    """An untrained world of the flagship's size; how fast it is does not depend on what it has learnt."""
    torch.manual_seed(0)
    box = spaces.Box(0, 255, (64, 64, 3), np.uint8) if pixels else spaces.Box(-np.inf, np.inf, (24,), np.float32)
    action = spaces.Box(-1, 1, (6,), np.float32)
    config = flagship_world(deter=200, stoch=30, units=200, depth=16, picture_share=1.0)
    world = RSSM(box, action, config).eval().requires_grad_(False).to(device)
    return as_model(world, StartStates(world.initial(1), torch.tensor([True])))


def real_step(observation: Any, fast_render: bool = True) -> Callable[[], None]:
    """One decision of the real environment."""
    env = make_env(ENV, observation=observation, fast_render=fast_render, seed=0)
    env.reset(seed=0)
    action = env.action_space.sample()

    def step() -> None:
        if env.step(action)[3]:
            env.reset()

    return step


def dummy_step(model: DreamModel, count: int) -> Callable[[], Any]:
    """One decision of single dreams, one after the other."""
    env = DummyVecEnv([lambda: DreamEnv(model, termination="never")] * count)
    env.reset()
    actions = np.stack([env.action_space.sample() for _ in range(count)])
    return lambda: env.step(actions)


def dream_step(model: DreamModel, count: int, observation: Any, compiled: bool) -> Callable[[], Any]:
    """One decision of many dreams at once: as a user of Gymnasium makes it, or on a GPU one who stays there."""
    device = model.world.device.type
    output: Any = "numpy" if device == "cpu" else "torch"
    dreams = DreamVectorEnv(
        count, model, observation=observation, termination="never", compiled=compiled, output=output
    )
    dreams.reset(seed=0)
    actions = dreams.action_space.sample()
    if device != "cpu":
        actions = torch.as_tensor(actions, device=device)
    for _ in range(3 if compiled else 0):  # compiled at the first, captured as a graph at the second
        dreams.step(actions)
    return lambda: dreams.step(actions)


def flops(model: DreamModel, observation: str) -> float:
    """Floating-point operations of the matrix products and convolutions of one decision."""
    dreams = DreamVectorEnv(1, model, observation=observation, termination="never")  # type: ignore[arg-type]
    dreams.reset(seed=0)
    actions = dreams.action_space.sample()
    with FlopCounterMode(display=False) as counter:
        dreams.step(actions)
    return float(counter.get_total_flops())


def matrix_rate(clock: Clock, size: int = 1024) -> float:
    """Floating-point operations a second of a product of two square float32 matrices."""
    a, b = torch.randn(2, size, size, device=clock.device)
    return clock.rate(lambda: a @ b, 2 * size**3)


# -- the table ------------------------------------------------------------------------------------------------


def measure_real(clock: Clock) -> dict[str, float]:
    """Rates of the real environment."""
    rates = {"real, state": clock.rate(real_step("state"), 1)}
    try:
        for name, fast in (("fast", True), ("reference", False)):
            rates[f"real, pixels, {name} rendering"] = clock.rate(real_step("pixels", fast), 1)
    except RenderingError as error:
        print(f"No pixels here: {error}", file=sys.stderr)
    return rates


def measure_dreams(clock: Clock, pixels: bool, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rates of dreams of one world, plain and compiled, with the arithmetic floor beside each."""
    model = make_model(pixels, clock.device)
    rate = matrix_rate(clock)
    what = "pixels" if pixels else "state"
    rows: list[dict[str, Any]] = []
    for observation, compiled in itertools.product(("latent", "decoded"), (False, True)):
        floor = rate / flops(model, observation)
        for count in sizes:
            measured = clock.rate(dream_step(model, count, observation, compiled), count)
            rows.append(
                {"world": what, "observation": observation, "dreams": count, "threads": clock.threads,
                 "device": clock.device, "compiled": compiled,
                 "rate": measured, "floor": floor, "times_the_floor": floor / measured}
            )  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    rate, ratio = beside_dummy(clock, model)
    rows.append(
        {"world": what, "observation": "decoded", "dreams": 16, "threads": clock.threads, "dummy": True,
         "device": clock.device, "compiled": False, "rate": rate, "ratio": ratio}
    )  # fmt: skip
    return rows


def beside_dummy(clock: Clock, model: DreamModel, rounds: int = 9) -> tuple[float, float]:
    """The rate of a DummyVecEnv of 16 dreams, and how many times as fast 1024 at once are: medians, in turn."""
    one, many = dummy_step(model, 16), dream_step(model, 1024, "decoded", compiled=False)
    pairs = [(clock.rate(one, 16), clock.rate(many, 1024)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b / a for a, b in pairs)


def measure_simulusion(pixels: bool, count: int = 16, repeats: int = 30) -> list[dict[str, Any]]:
    """The rate of as many of simulusion's environments around the same world on a processor; nothing without it."""
    if not PEERS.exists():
        return []
    what = "pixels" if pixels else "state"
    with Worker("benchmarks.simulusion_dreams", PEERS) as worker:
        worker.build(Spec("simulusion", what, batch=count))
        spent = [worker.run()[clock_of(1)] for _ in range(repeats)]
    return [
        {"world": what, "observation": "decoded", "dreams": count, "threads": 1, "simulusion": True,
         "device": "cpu", "compiled": False, "rate": count / statistics.median(spent)}
    ]  # fmt: skip


def ratios(real: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the dreams are compared with, uncompiled: as many times as fast."""
    plain = [row for row in rows if row["threads"] == 1 and not row["compiled"]]
    best = {(row["world"], row["observation"]): row["rate"] for row in plain if row["dreams"] == 1024}
    peer = {row["world"]: row["rate"] for row in plain if row.get("simulusion")}
    found = {
        f"1024 dreams, {row['world']} decoded, over DummyVecEnv of 16{_in_words(row['threads'])}": row["ratio"]
        for row in rows
        if row.get("dummy")
    }
    for world in ("state", "pixels"):
        if world in peer:
            found[f"1024 dreams, {world} decoded, over simulusion's 16"] = best[world, "decoded"] / peer[world]
    reference = real.get("real, pixels, reference rendering")
    if reference:
        for world, observation in (("pixels", "latent"), ("pixels", "decoded"), ("state", "decoded")):
            name = f"1024 dreams, {world} {observation}, over real pixels with reference rendering"
            found[name] = best[world, observation] / reference
    return found


def _in_words(threads: int) -> str:
    return "" if threads == 1 else f", both with {threads} threads"


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    rows: list[list[Any]] = [[name, "-", "-", f"{rate:,.0f}", "-"] for name, rate in result["real"].items()]
    for row in result["dreams"]:
        name = f"{row['world']}, {row['observation']}"
        name += next((words for mark, words in _MARKS.items() if row.get(mark)), "")
        share = f"1 / {row['times_the_floor']:.1f}" if "times_the_floor" in row else "-"
        where = row["threads"] if row["device"] == "cpu" else row["device"]
        rows.append([name, row["dreams"], where, f"{row['rate']:,.0f}", share])
    compared = [[name, f"{value:,.1f}"] for name, value in result["ratios"].items()]
    parts = [
        f"{result['env_id']}; a world of the flagship's size ({result['parameters']:,} parameters). {CLOCKS}",
        markdown(["", "dreams", "threads", "decisions a second", "of the floor"], rows),
        markdown(["comparison, not compiled; one thread where it does not say more", "times as fast"], compared),
    ]
    if not torch.cuda.is_available():
        parts.append(unmeasured_on_gpu("--device cuda --dreams 4096 65536"))
    return "\n\n".join(parts)


def run(threads: tuple[int, ...], seconds: float, sizes: tuple[int, ...], device: str) -> dict[str, Any]:
    """Measure everything."""
    result = facts()
    clock = Clock(1, seconds, device)
    real = measure_real(Clock(1, seconds))
    rows = [row for world in (False, True) for row in measure_dreams(clock, world, sizes)]
    if device == "cpu":
        rows += [row for world in (False, True) for row in measure_simulusion(world)]
    for count in threads if device == "cpu" else ():
        if count > 1:
            rows += [row for world in (False, True) for row in measure_dreams(Clock(count, seconds), world, sizes)]
    return {
        **result,
        "env_id": ENV,
        "parameters": sum(parameter.numel() for parameter in make_model(False).world.parameters()),
        "clock": CLOCKS,
        "real": real,
        "dreams": rows,
        "ratios": ratios(real, rows),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dream", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--dreams", type=int, nargs="+", default=list(SIZES), help="how many at once; 1024 among them")
    parser.add_argument("--device", default="cpu", help="where dreams are dreamt")
    args = parser.parse_args(arguments)
    result = run(tuple(args.threads), args.seconds, tuple(sorted({*args.dreams, 1024})), args.device)
    text = table(result)
    name, title = ("dream", "Dreams") if args.device == "cpu" else ("dream_gpu", "Dreams on a GPU")
    save(name, title, result, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
