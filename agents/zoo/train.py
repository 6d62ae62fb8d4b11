"""Train an agent by its name and preset, and write its result file.

    python -m agents.zoo train --algo dreamer --env dm_control/walker-walk-v0 --seed 0 --env-steps 100000

RL Zoo's algorithms are there too (`--algo sac`), and its options have its names. Ctrl-C saves; the same command goes on
where the run stopped (Stable-Baselines3's own algorithms begin again).
"""

from __future__ import annotations

import argparse
import sys
import traceback

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.zoo.manager import ZooExperiment
from agents.zoo.registry import is_ours, register_algorithms


def build_parser(command: str = "train", description: str | None = __doc__) -> argparse.ArgumentParser:
    """The command line that `train` and `tune` share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m agents.zoo {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--algo", default="dreamer", choices=sorted(register_algorithms()))
    add("--env", required=True, help="Gymnasium id of the real environment")
    add("--preset", default="default", help="a key of zoo_configs/<algo>.yml")
    add("-conf", "--conf-file", help="another YAML of hyperparameters")
    add("--seed", type=int, default=0)
    add("--env-steps", type=float, help="simulator steps to learn for, action repeat included")
    add("-n", "--n-timesteps", type=int, default=-1, help="the same in decisions; else the preset's n_timesteps")
    add("--eval-every", type=float, default=1e4, help="simulator steps between evaluations")
    add("--eval-episodes", type=int, default=10)
    add("-params", "--set", nargs="*", default=[], metavar="NAME=VALUE", help="override hyperparameters")
    add("--env-kwargs", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of wmgym.make_env")
    add("--gym-packages", nargs="*", default=[], help="modules to import that register environments")
    add("--results", default="runs/results", help="folder of result files (this project's: zoo_configs/results)")
    add("-f", "--log-folder", default="runs/zoo", help="folder of agents, evaluations and what is needed to resume")
    add("--save", help="write the trained agent there too")
    add("--save-replay-buffer", action="store_true", help="with --save: its replay beside it, as <name>-replay.zip")
    add("--log", help="folder for progress.csv and TensorBoard")
    add("-tb", "--tensorboard-log", default="", help="folder for TensorBoard")
    add("-i", "--trained-agent", default="", help="an agent to begin from")
    add("--resume", action="store_true", help="go on with an interrupted run; it is an error if there is none")
    add("--anew", action="store_true", help="begin again, whether the run before was interrupted or complete")
    add("--save-freq", type=int, default=25_000, help="decisions between checkpoints to resume from")
    add("--log-interval", type=int, default=-1, help="episodes between lines of the log; -1: the algorithm's, -2: none")
    add("--vec-env", default="dummy", choices=["dummy", "subproc"])
    add("--threads", "--num-threads", type=int, default=1)
    add("--device", default="auto")
    add("--verbose", type=int, default=1)
    add("-P", "--progress", action="store_true", help="show a progress bar")
    return parser


def run(args: argparse.Namespace) -> ZooExperiment:
    """Train; what stops the run before its end stands in the result file.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after saving.
        ValueError: when a replay is to be saved that there is none of, or nowhere to; when an algorithm is to go on
            that keeps no checkpoint; or where the result file is of a complete run.
    """
    if args.save_replay_buffer and not (args.save and is_ours(args.algo)):
        raise ValueError("--save-replay-buffer goes with --save, and with this project's agents: others' are pickled.")
    if args.resume and not is_ours(args.algo):
        raise ValueError(f"--resume goes with this project's agents: {args.algo} keeps no checkpoint to go on from.")
    torch.set_num_threads(args.threads)
    experiment = ZooExperiment(args)
    experiment.require_room_for_result()
    prepared = experiment.setup_experiment()
    assert prepared is not None
    model, _ = prepared
    try:
        _learn(experiment, model)
        experiment.save_trained_model(model)
        if args.save:
            model.save(args.save, include=["replay_buffer"] if args.save_replay_buffer else None)
    finally:
        if model.env is not None:
            model.env.close()
    return experiment


def _learn(experiment: ZooExperiment, model: BaseAlgorithm) -> None:
    try:
        experiment.learn(model)
    except BaseException:
        if experiment.recorder is not None:
            experiment.recorder.write(error=traceback.format_exc(limit=-3))
        raise
    assert experiment.recorder is not None
    experiment.recorder.write(complete=True)


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit status."""
    args = build_parser().parse_args(arguments)
    try:
        experiment = run(args)
    except KeyboardInterrupt:
        print(f"Interrupted. The same command {'goes on from here' if is_ours(args.algo) else 'begins again'}.")
        return 130
    print(f"Wrote {experiment.result_path()} and {experiment.save_path}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
