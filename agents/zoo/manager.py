"""RL Zoo's experiment manager over wmgym's environments, for its algorithms and ours."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from agents import ALGORITHMS
from agents.base import WorldModelAgent
from agents.checkpointing import CheckpointEvery, last_checkpoint
from agents.evaluation import SEED
from agents.stages import StagedAgent
from agents.zoo.hyperparams import overrides, read_preset
from agents.zoo.registry import import_environments, is_ours, register_algorithms
from agents.zoo.results import ResultRecorder, open_logger, result_path
from wmgym.files import CheckpointError
from wmgym.real import DM_CONTROL, make_env, of_one

_DECISIONS = 50_000  # where neither the command line nor the YAML says how many
ENV_KEYS = ("observation", "action_repeat")
"""Arguments of environments that a hyperparameter file has beside those of agents."""


class ZooExperiment(ExperimentManager):
    """One run: hyperparameters, environments, agent, callbacks, and the folder where all of it is written.

    The folder is `<log folder>/<preset>/<algo>/<env>_<seed + 1>`, which is RL Zoo's layout with the preset as the
    experiment's folder and the seed as its number.

    Args:
        args: the command line (`agents.zoo.train.build_parser`).
    """

    def __init__(self, args: argparse.Namespace) -> None:
        register_algorithms()
        import_environments(args.env, args.gym_packages)
        self.settings = read_preset(args.algo, args.env, args.preset, args.conf_file) | overrides(args.set)
        self.env_options = self._env_options(args)
        self.action_repeat = self._action_repeat(args.env)
        super().__init__(
            args,
            args.algo,
            args.env,
            f"{args.log_folder}/{args.preset}",
            args.tensorboard_log,
            self._decisions(args),
            eval_freq=-1,
            n_eval_episodes=args.eval_episodes,
            trained_agent=args.trained_agent,
            seed=args.seed,
            log_interval=args.log_interval,
            verbose=args.verbose,
            vec_env_type=args.vec_env,
            n_eval_envs=args.eval_episodes,
            device=args.device,
            show_progress=args.progress,
        )
        self.save_path = str(Path(self.log_path) / f"{self.env_name}_{args.seed + 1}")
        self.params_path = str(Path(self.save_path) / self.env_name)
        self.recorder: ResultRecorder | None = None
        self._goes_on = False

    def _env_options(self, args: argparse.Namespace) -> dict[str, Any]:
        """Arguments of the environment, taken out of the settings; those of real environments are none of dreams."""
        own = {key: self.settings.pop(key) for key in ENV_KEYS if key in self.settings}
        asked = self.settings.pop("env_kwargs", {}) | overrides(args.env_kwargs)
        return asked if is_dream(args.env) else own | asked

    def _action_repeat(self, env_id: str) -> int:
        if is_dream(env_id):
            return 1
        return self.env_options.get("action_repeat") or (2 if env_id.startswith(DM_CONTROL) else 1)

    def _decisions(self, args: argparse.Namespace) -> int:
        """How long to learn: simulator steps if they are given, else decisions."""
        if args.env_steps is not None:
            return int(args.env_steps) // self.action_repeat
        return args.n_timesteps if args.n_timesteps > 0 else int(self.settings.get("n_timesteps", _DECISIONS))

    # -- what RL Zoo asks for ---------------------------------------------------------------------------------

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The preset's, and the same to be kept beside the agent."""
        saved = self.settings | {"env_kwargs": self.env_options, "n_timesteps": self.n_timesteps}
        return self.settings | {"n_timesteps": self.n_timesteps}, dict(sorted(saved.items()))

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Environments as `wmgym.make_env` makes them, in the preset's wrappers; dreams as they are."""
        assert self.seed is not None
        env_id = self.env_name.gym_id
        make: Callable[..., gym.Env] = partial(gym.make if is_dream(env_id) else make_env, env_id)
        env: VecEnv = make_vec_env(
            make,
            n_envs,
            self.seed + SEED if eval_env else self.seed,
            monitor_dir=None if eval_env or no_log else self.save_path,
            wrapper_class=self.env_wrapper,
            env_kwargs=of_one(self.env_options),
            vec_env_cls=self.vec_env_class,  # type: ignore[arg-type]
            monitor_kwargs=self.monitor_kwargs,
        )
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        env = self._maybe_normalize(env, eval_env)
        return VecFrameStack(env, self.frame_stack) if self.frame_stack else env

    def create_callbacks(self) -> None:
        """The progress bar, if it is wanted; the recorder comes when the agent is there."""
        if self.show_progress:
            self.callbacks.append(ProgressBarCallback())

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """The agent, new or resumed; None for a search of hyperparameters."""
        if self.optimize_hyperparameters or not is_ours(self.algo):
            return super().setup_experiment()
        unprocessed, saved = self.read_hyperparameters()
        hyperparams, self.env_wrapper, self.callbacks, self.vec_env_wrapper = self._preprocess_hyperparams(unprocessed)
        self.create_log_folder()
        self.create_callbacks()
        self._save_config(saved)
        if self.normalize:
            raise ValueError(
                "normalize keeps moments that no checkpoint of this project's agents holds, so that no run could go on "
                "with them: leave it out. Their worlds take observations of any size (standardize=True, symlog)."
            )
        options = {name: _in_files(value) for name, value in hyperparams.items()}
        options |= {"seed": self.seed, "verbose": self.verbose, "device": self.device}
        options |= {"tensorboard_log": self.tensorboard_log, "interrupt_folder": self.save_path}
        return self._resumed() or self._from_trained(options) or self._new(options), saved

    def _new(self, options: dict[str, Any]) -> WorldModelAgent:
        """Our agents make their environments themselves, from the id: so they can be resumed where they stopped."""
        if self._envs_are_wrapped:
            return ALGORITHMS[self.algo](self.create_envs(self.n_envs), **options)
        if self.args.vec_env != "dummy":
            raise ValueError("For this project's agents --vec-env subproc is --env-kwargs subprocess:True.")
        options = options | {key: self.env_options[key] for key in ENV_KEYS if key in self.env_options}
        others = {key: value for key, value in self.env_options.items() if key not in ENV_KEYS}
        return ALGORITHMS[self.algo](self.env_name.gym_id, n_envs=self.n_envs, env_kwargs=others or None, **options)

    @property
    def _envs_are_wrapped(self) -> bool:
        """Whether the environments are more than an id tells, so that no file can name them."""
        wrappers = self.env_wrapper or self.vec_env_wrapper or self.frame_stack
        return bool(wrappers) or is_dream(self.env_name.gym_id)

    def _from_trained(self, options: dict[str, Any]) -> WorldModelAgent | None:
        """The agent of `--trained-agent`, at the beginning of this run: with its settings, in its environments."""
        if not self.trained_agent:
            return None
        changes = {name: value for name, value in options.items() if name != "policy"}
        env = self.create_envs(self.n_envs) if self._envs_are_wrapped else None
        agent: WorldModelAgent = ALGORITHMS[self.algo].load(self.trained_agent, env=env, **changes)
        if env is None:
            if agent.n_envs != self.n_envs:
                raise ValueError(
                    f"{self.trained_agent} learns with n_envs={agent.n_envs}, not {self.n_envs}: set that."
                )
            agent.env_settings = {"id": self.env_name.gym_id, **self.env_options}
            agent.set_env(self.env_name.gym_id)
        return agent

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """As RL Zoo does, in plain YAML that any reader opens safely."""
        folder = Path(self.params_path)
        for name, content in (("config", saved_hyperparams), ("args", vars(self.args))):
            (folder / f"{name}.yml").write_text(yaml.safe_dump(_plain(content)))

    # -- training ---------------------------------------------------------------------------------------------

    def learn(self, model: BaseAlgorithm) -> None:
        """Learn to the end and record the result; a run that was interrupted goes on.

        Raises:
            KeyboardInterrupt: on Ctrl-C; our agents have saved themselves before.
        """
        recorder = self._recorder(model)
        if self.args.log:
            model.set_logger(open_logger(self.args.log, ["csv", "tensorboard"], self._goes_on))
        done = model.num_timesteps if self._goes_on else 0
        if done:
            recorder.continue_from(done)
        self.recorder = recorder
        callbacks: list[BaseCallback] = [*self.callbacks, recorder]
        if is_ours(self.algo):
            callbacks.append(CheckpointEvery(self.resume_folder, self.args.save_freq))
        options = {} if self.log_interval == -1 else {"log_interval": max(self.log_interval, 0) or None}
        model.learn(
            self.n_timesteps - done,
            callback=callbacks,
            reset_num_timesteps=not done,
            **options,  # type: ignore[arg-type]
        )
        # Agents in stages learn most after their last decision; with others the end may lie between two evaluations.
        if isinstance(model, StagedAgent) or recorder.is_behind:
            recorder.evaluate()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Write the trained agent; what was kept for resuming is removed."""
        super().save_trained_model(model)
        shutil.rmtree(self.resume_folder, ignore_errors=True)

    @property
    def resume_folder(self) -> Path:
        """Where the checkpoints are from which an interrupted run goes on."""
        return Path(self.save_path) / "resume"

    def result_path(self) -> Path:
        """Where this run's result file belongs."""
        return result_path(self.args.results, self.algo, self.env_name.gym_id, self.args.preset, self.args.seed)

    def require_room_for_result(self) -> None:
        """Refuse to replace the result of a complete run unasked: it may have cost hours.

        Raises:
            ValueError: naming the file.
        """
        path = self.result_path()
        if self.args.anew or not path.is_file() or self.resume_folder.exists():
            return
        if json.loads(path.read_text())["complete"]:
            raise ValueError(f"{path} is of a complete run: --anew replaces it, --results DIR writes elsewhere.")

    def _resumed(self) -> BaseAlgorithm | None:
        """The agent to go on with: this run's own if it was interrupted, or the one named, for a run of its own."""
        if self.args.anew:
            shutil.rmtree(self.resume_folder, ignore_errors=True)
        try:
            path = last_checkpoint(self.resume_folder)
        except CheckpointError:  # none was begun, or the first one was being written when the run was killed
            if self.args.resume:
                raise
            return None
        if not self.result_path().is_file():
            raise ValueError(f"{path} is of an interrupted run whose {self.result_path()} is gone: use --anew.")
        print(f"Resuming from {path}. (--anew begins again.)")
        self._goes_on = True
        env = self.create_envs(self.n_envs) if self._envs_are_wrapped else None
        return ALGOS[self.algo].load(path, env=env, device=self.device, interrupt_folder=self.save_path)

    def _recorder(self, model: BaseAlgorithm) -> ResultRecorder:
        args = self.args
        facts = {
            "algo": self.algo,
            "preset": args.preset,
            "overrides": overrides(args.set),
            "env_id": self.env_name.gym_id,
            "observation": self.env_options.get("observation", "state"),
            "env_kwargs": {key: value for key, value in self.env_options.items() if key not in ENV_KEYS},
            "action_repeat": self.action_repeat,
            "seed": args.seed,
            "parameters": sum(p.numel() for p in model.policy.parameters() if p.requires_grad),
        }
        return ResultRecorder(
            self.result_path(),
            partial(self.create_envs, args.eval_episodes, eval_env=True),
            facts,
            int(args.eval_every) // self.action_repeat,
            self.action_repeat,
            self.save_path,
            args.eval_episodes,
        )

    # -- tuning -----------------------------------------------------------------------------------------------

    def study(self, trials: int, storage: str | Path) -> optuna.Study:
        """Search hyperparameters with RL Zoo's objective, sampler and pruner.

        Args:
            trials: how many to add; what `storage` holds already is built upon.
            storage: a journal of the trials (JSON lines).
        """
        self.optimize_hyperparameters = True
        self.setup_experiment()
        journal = JournalStorage(JournalFileBackend(str(storage)))
        study = optuna.create_study(
            storage=journal,
            sampler=self._create_sampler(self.sampler),
            pruner=self._create_pruner(self.pruner),
            study_name=f"{self.algo} {self.args.preset} {self.env_name}",
            load_if_exists=True,
            direction="maximize",
        )
        study.optimize(self.objective, n_trials=trials, gc_after_trial=True)
        return study


def is_dream(env_id: str) -> bool:
    """Whether an environment is a learned world."""
    return env_id.removeprefix("wmgym/") == "Dream-v0"


def _in_files(value: Any) -> Any:
    """RL Zoo's falling rates ("lin_0.001") as Stable-Baselines3's, which a checkpoint can hold; all else as it is."""
    return LinearSchedule(value.initial_value, 0.0, 1.0) if isinstance(value, SimpleLinearSchedule) else value


def _plain(value: Any) -> Any:
    """Data that YAML can hold without naming Python classes."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
