"""The zoo's commands: `python -m agents.zoo <command> --help`."""

from __future__ import annotations

import importlib
import importlib.util
import sys

from wmgym.allocator import keep_freed_memory

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
_WITHOUT_RL_ZOO = {"demo", "trust"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print("usage: python -m agents.zoo <command> [options]\n")
        print("\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items()))
        return 0
    if command not in COMMANDS:
        print(f"There is no command {command!r}: use one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if command not in _WITHOUT_RL_ZOO and importlib.util.find_spec("rl_zoo3") is None:
        print(f"{command!r} needs RL Zoo: pip install 'wmgym[zoo]'.", file=sys.stderr)
        return 1
    return int(importlib.import_module(f"agents.zoo.{command}").main(arguments[1:]) or 0)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
