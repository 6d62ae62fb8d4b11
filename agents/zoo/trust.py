"""How far the world of an agent can be trusted: `wmgym.trust`, with the agent itself among the policies.

python -m agents.zoo.trust walker.zip --env dm_control/walker-walk-v0
python -m agents.zoo.trust walker.zip --earlier walker-20k.zip walker-50k.zip
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import WorldModelAgent
from agents.zoo.agent_files import load_agent
from wmgym.checkpoint import CheckpointError
from wmgym.dream.convert import ActionConverter
from wmgym.trust import Policy, noisy_policies, simple_policies
from wmgym.trust.__main__ import make_parser, write_report
from wmgym.trust.policies import PolicyState

LEVELS = (0.0, 0.15, 0.3, 0.5, 0.7)
"""How often the agent slips: one agent gives as many policies of differing skill."""

_SIMPLE = ("random", "random, held 5", "still", "wave 25")


class Corrigible:
    """An agent that is told what was done instead of what it chose, so that its world filters what happened.

    Args:
        agent: any agent of this project.
    """

    def __init__(self, agent: WorldModelAgent) -> None:
        self.agent = agent
        self._read = ActionConverter(agent.action_space)

    def predict(
        self,
        observation: Any,
        state: PolicyState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """See `wmgym.trust.Policy`."""
        return self.agent.predict(observation, state, episode_start, deterministic)

    def did(self, state: PolicyState, action: np.ndarray) -> PolicyState:
        """The state after `action` `(B, ...)` was done; the last of its arrays is the action as the world reads it."""
        assert state is not None
        return (*state[:-1], self._read(action).numpy())


def agent_policies(checkpoint: str | Path, levels: Sequence[float] = LEVELS, seed: int = 0) -> dict[str, Policy]:
    """The agent of a checkpoint at several levels of noise, by name.

    An entry for `python -m wmgym.trust --policies agents.zoo.trust:agent_policies` too.
    """
    agent = load_agent(checkpoint)
    name = f"{type(agent).__name__} {Path(checkpoint).stem}"
    return noisy_policies(name, Corrigible(agent), agent.action_space, levels, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = make_parser("python -m agents.zoo.trust", (__doc__ or "").split("\n")[0])
    parser.add_argument("--earlier", nargs="*", default=[], metavar="FILE", help="checkpoints of lesser agents")
    args = parser.parse_args(arguments)
    try:
        policies = agent_policies(args.checkpoint, seed=args.seed)
        for path in args.earlier:
            policies |= agent_policies(path, levels=(0.0,), seed=args.seed)
        simple = simple_policies(load_agent(args.checkpoint).action_space, args.seed)
        return write_report(args, policies | {name: simple[name] for name in _SIMPLE})
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
