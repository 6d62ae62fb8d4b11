"""Search hyperparameters with Optuna, through RL Zoo's objective.

python -m agents.zoo tune --algo dreamer --env CartPole-v1 --env-steps 2000 --n-trials 10

Trials are kept in a journal, so that a search that was stopped goes on; the best is written as a YAML that
`train --conf-file` reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

from agents.zoo.manager import ENV_KEYS, ZooExperiment
from agents.zoo.train import build_parser


def best_entry(experiment: ZooExperiment, study: optuna.Study) -> dict[str, dict[str, object]]:
    """The best trial as a whole hyperparameter file: the preset with what was found."""
    found = HYPERPARAMS_CONVERTER[experiment.algo](study.best_params)
    _, saved = experiment.read_hyperparameters()
    env_options = saved.pop("env_kwargs")
    own = {name: env_options.pop(name) for name in ENV_KEYS if name in env_options}
    others = {"env_kwargs": env_options} if env_options else {}
    return {"default": {**saved, **own, **others, **found}}


def _data(value: Any) -> Any:
    """What YAML can hold: without classes and functions (RL Zoo's `activation_fn`), which fall back to defaults."""
    if isinstance(value, dict):
        return {name: _data(entry) for name, entry in value.items() if not callable(entry)}
    return [_data(entry) for entry in value] if isinstance(value, list | tuple) else value


def main(arguments: list[str] | None = None) -> int:
    """Search and print the best; returns the exit status."""
    parser = build_parser("tune", __doc__)
    parser.add_argument("--n-trials", type=int, default=10)
    parser.add_argument("--storage", help="journal of the trials (default: <log folder>/tune/<algo>-<env>.log)")
    parser.add_argument("--sampler", default="tpe", choices=["random", "tpe"])
    parser.add_argument("--pruner", default="median", choices=["halving", "median", "none"])
    parser.add_argument("--n-startup-trials", type=int, default=5, help="trials before the sampler looks back")
    parser.add_argument("--n-evaluations", type=int, default=2, help="evaluations of a trial, at which it is pruned")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    experiment = ZooExperiment(args)
    for name in ("sampler", "pruner", "n_startup_trials", "n_evaluations"):
        setattr(experiment, name, getattr(args, name))
    storage = Path(args.storage or Path(args.log_folder) / "tune" / f"{args.algo}-{experiment.env_name}.log")
    storage.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = experiment.study(args.n_trials, storage)
    except KeyboardInterrupt:
        print(f"Interrupted. The same command goes on from the trials in {storage}.")
        return 130
    best = study.best_trial
    print(f"{len(study.trials)} trials; the best is number {best.number} with a mean return of {best.value:.1f}:")
    print(yaml.safe_dump(best.params).rstrip(), flush=True)
    written = storage.with_suffix(".yml")
    written.write_text(yaml.safe_dump(_data(best_entry(experiment, study))))
    print(f"Wrote {written}: train --conf-file {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
