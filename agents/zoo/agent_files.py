"""Which agent a checkpoint holds: for commands that take any of this project's."""

from __future__ import annotations

from pathlib import Path

from agents import ALGORITHMS
from agents.base import WorldModelAgent
from wmgym.checkpoint import CheckpointError, read_manifest


def agent_class(path: str | Path) -> type[WorldModelAgent] | None:
    """The algorithm that wrote a checkpoint; None if it holds a world alone, or an agent that is not known here.

    Raises:
        CheckpointError: naming the file and the fault.
    """
    facts = read_manifest(path).get("agent")
    name = facts.get("class") if isinstance(facts, dict) else None
    return {kind.__name__: kind for kind in ALGORITHMS.values()}.get(str(name))


def load_agent(path: str | Path) -> WorldModelAgent:
    """The agent in a checkpoint, of whichever algorithm it is, on the CPU.

    Raises:
        CheckpointError: naming the file and the fault.
    """
    kind = agent_class(path)
    if kind is None:
        known = ", ".join(kind.__name__ for kind in ALGORITHMS.values())
        raise CheckpointError(
            f"{path} holds no agent that is known here ({known}): examine its world alone with python -m wmgym.trust."
        )
    return kind.load(path, device="cpu")
