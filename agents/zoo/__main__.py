"""The zoo's commands: `python -m agents.zoo <command> --help`."""

from __future__ import annotations

import importlib
import importlib.util
import sys

from wmgym.allocator import keep_freed_memory
from wmgym.files import CheckpointError

COMMANDS = {
    "train": "train an agent and write its result file; the same command resumes a run that was interrupted",
    "enjoy": "play a trained agent, in the real environment or (--dream) inside a learned world",
    "record": "film a trained agent beside its dream",
    "benchmark": "run a suite, or make the tables from the result files (--table)",
    "plot": "draw learning curves and aggregates from the result files",
    "tune": "search hyperparameters with Optuna",
    "trust": "report how far the world of an agent can be trusted",
    "compare": "compare how well the worlds of several agents foretell the same episodes",
    "export": "make a small, ready-trained checkpoint with its card",
    "demo": "the main job from end to end, in twenty minutes",
}
MODULES = ("dream_training", "offline", "iterations", "take_cover")
TRACEBACK = "--traceback"
_WITHOUT_RL_ZOO = {"demo", "trust"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    whole = arguments[:1] == [TRACEBACK]
    command, *options = arguments[whole:] or ["--help"]
    if command in ("-h", "--help"):
        print("usage: python -m agents.zoo <command> [options]\n")
        print("\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items()))
        print(f"\nModules of their own: {', '.join(f'python -m agents.zoo.{name}' for name in MODULES)}.")
        print(f"An error in what was asked is told in a line; {TRACEBACK} before the command shows where it arose.")
        return 0
    if command not in COMMANDS:
        own = f" (It is a module: python -m agents.zoo.{command}.)" if command in MODULES else ""
        print(f"There is no command {command!r}: use one of {', '.join(COMMANDS)}.{own}", file=sys.stderr)
        return 2
    if command not in _WITHOUT_RL_ZOO and importlib.util.find_spec("rl_zoo3") is None:
        print(f"{command!r} needs RL Zoo: pip install 'wmgym[zoo]'.", file=sys.stderr)
        return 1
    try:
        return int(importlib.import_module(f"agents.zoo.{command}").main(options) or 0)
    except (CheckpointError, ValueError, KeyError, TypeError, OSError) as error:
        if whole:
            raise
        # A KeyError's own text is in quotes.
        print(f"error: {error.args[0] if isinstance(error, KeyError) and error.args else error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
