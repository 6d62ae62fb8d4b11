"""Fit a world to recorded episodes, with no agent that learns.

    python -m agents.zoo.offline recorded --save offline.zip
    python -m agents.zoo.offline recorded --record dm_control/walker-walk-v0 --agent walker.zip --save w.zip
    python -m agents.zoo.offline replay.zip --agent walker.zip --save w.zip

The second line records first: an agent at several levels of noise and pushed over, random actions, held ones and
none. What is in the folder already is kept and learnt from too. The third learns from all that an agent lived through
while it learnt (`save_replay_buffer`). Several of them are learnt from together.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.dreamer import flagship_world
from agents.zoo.agent_files import load_agent
from agents.zoo.hyperparams import load_preset
from agents.zoo.trust import Corrigible, agent_policies
from wmgym.allocator import keep_freed_memory
from wmgym.dataset import load_dataset, record
from wmgym.dream import load_model
from wmgym.fit import fit_world
from wmgym.real import make_env
from wmgym.trust import Policy
from wmgym.trust.policies import ConstantPolicy, NoisyPolicy, PolicyState, RandomPolicy

NOISE = (0.0, 0.1, 0.3, 0.6)
"""How often the agent slips."""

PUSHES = ((0.02, 15, 1.0), (0.01, 40, 1.0), (0.01, 80, 10.0), (0.02, 60, 0.0), (0.01, 120, 0.0))
"""How often it is pushed, for how many decisions it cannot help it, and how far the pushes reach (`NoisyPolicy`; 0: it
freezes in what it does). Who never fell cannot show how to get up, and who never froze that a body may stay as it is.
"""

HELD = ((100, 1.0), (60, 3.0), (60, 10.0))
"""For how many decisions random actions are held, and how far they reach (`RandomPolicy`): long enough for what they
move to come to rest and to stay there, with limbs anywhere, and with most of them at their stops."""


def record_mixture(folder: Path, env_id: str, agent: Path | None, steps: int, seed: int) -> None:
    """Record random actions, held ones and none, and the agent, noisy and pushed; each of them gets as many steps."""
    space = make_env(env_id).action_space
    held = [RandomPolicy(space, seed + 2 + number, hold, reach) for number, (hold, reach) in enumerate(HELD)]
    policies: list[Any] = list(map(_one_at_a_time, [RandomPolicy(space, seed), *held, ConstantPolicy(space)]))
    if agent is not None:
        policies += agent_policies(agent, NOISE, seed).values()
        policies += pushed_policies(agent, seed)
    shares = [len(part) for part in np.array_split(range(steps), len(policies))]  # they add up to `steps`
    for number, (policy, share) in enumerate(zip(policies, shares, strict=True)):
        if share:
            record(env_id, policy, share, folder, seed=seed + 1000 * number)


def pushed_policies(agent: Path, seed: int) -> list[Policy]:
    """The agent, made to hold a random action, or its own, every now and then."""
    whole = load_agent(agent)
    return [
        NoisyPolicy(Corrigible(whole), whole.action_space, often, seed + 100 + number, hold, reach)
        for number, (often, hold, reach) in enumerate(PUSHES)
    ]


def _one_at_a_time(policy: Policy) -> Callable[[Any], Any]:
    """A policy that does not look at the batches of observations it takes, as a function of one."""
    state: PolicyState = None

    def act(observation: Any) -> Any:
        nonlocal state
        action, state = policy.predict(np.zeros((1, 1)), state)
        return action[0]

    return act


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo.offline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", type=Path, nargs="+", help="folders of recorded episodes, or saved replays")
    add("--save", type=Path, required=True, help="where the world is written")
    add("--record", metavar="ENV", help="record episodes of this environment into the (first) folder first")
    add("--agent", type=Path, help="checkpoint of the agent that acts, or whose replay it is; without, random actions")
    add("--steps", type=int, default=50_000, help="decisions to record")
    add("--updates", type=int, default=10_000)
    add("--sizes", type=int, nargs=3, default=(200, 30, 200), metavar=("DETER", "STOCH", "UNITS"), help="of the world")
    add("--ensemble", type=int, default=0, help="predictors whose disagreement tells what the world does not know")
    add("--starts", type=int, default=256, help="states kept for dreams to begin from")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    if args.record:
        record_mixture(args.data[0], args.record, args.agent, args.steps, args.seed)
    deter, stoch, units = args.sizes
    long = load_preset("dreamer", "", "long")  # the world that docs/dream.md has results of
    weights = {name: long[name] for name in ("vector_scale", "reward_scale", "foresight")}
    config = flagship_world(deter, stoch, units, depth=16, picture_share=0.25, **weights)
    config = dataclasses.replace(config, ensemble=args.ensemble)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

    def report(update: int, losses: dict[str, float]) -> None:
        print(update, *(f"{name} {value:.3f}" for name, value in losses.items()), flush=True)

    data = load_dataset(args.data)
    if args.agent is not None and not data.env:  # a replay does not know where it was recorded
        data = dataclasses.replace(data, env=dict(load_model(args.agent).env))
    model = fit_world(
        data, updates=args.updates, starts=args.starts, seed=args.seed, report=report, report_every=500, **settings
    )
    print(model.save(args.save))
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
