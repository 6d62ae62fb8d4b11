"""Train an agent only in the frozen dream of a checkpoint, and see what it is worth in the real environment.

    python -m agents.zoo.dream_training walker.zip --algo sac --seed 0
    python -m agents.zoo.dream_training walker.zip --algo ppo --judge another_walker.zip

No real step is taken but to evaluate. With `--also` the dreams are spread over several worlds, and what fools one of
them does not fool the others. With `--judge` the agent kept is the one that was best in the dream of another world of
the same environment: an agent that lives on the errors of its own world fails there, and to see it takes no real step
either. The same command goes on where an interrupted run stopped. Hyperparameters are in zoo_configs/dream.yml; the
result goes to runs/results/dream/<algo>/<environment>/<name>-seed<k>.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from agents import Dreamer
from agents.evaluation import evaluate_dream, evaluate_elsewhere, evaluate_real
from agents.zoo.agent_files import agent_class
from agents.zoo.hyperparams import overrides
from agents.zoo.results import describe_commit, describe_origin, refuse_other_settings, result_path, without_folders
from wmgym.allocator import keep_freed_memory
from wmgym.dream import DreamModel, DreamVecEnv, JoinedVecEnv, load_model
from wmgym.files import atomic_writer, find

LEARNERS: dict[str, type[BaseAlgorithm]] = {"sac": SAC, "ppo": PPO, "dreamer": Dreamer}
_NOT_THE_AGENTS = ("steps", "dreams", "dream", "normalize")
_NORMALISERS = ("obs_rms", "ret_rms")
_PACKAGES = ("torch", "gymnasium", "stable-baselines3", "numpy")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo.dream_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, help="checkpoint of an agent or a world")
    add("--algo", default="sac", choices=sorted(LEARNERS))
    add("--seed", type=int, default=0)
    add("--name", default="dreamer", help="what the world is called in the results, for example 'offline'")
    add("--steps", type=float, help="dreamt steps, instead of those of zoo_configs/dream.yml")
    add("--eval-every", type=float, help="dreamt steps between evaluations; a tenth of all by default")
    add("--eval-episodes", type=int, default=10)
    add("--also", type=Path, nargs="+", default=[], help="further worlds; the dreams are spread over all of them")
    add("--judge", type=Path, help="checkpoint of another world, whose dream says which agent is kept")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="override hyperparameters")
    add("--dream", nargs="*", default=[], metavar="NAME=VALUE", help="override settings of the dream")
    add("--results", type=Path, default=Path("runs/results"), help="folder of result files")
    add("--folder", type=Path, default=Path("runs/dream"), help="folder of the agents trained")
    add("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def read_settings(algo: str, changes: dict[str, Any], dream_changes: dict[str, Any]) -> dict[str, Any]:
    """What `zoo_configs/dream.yml` says of an algorithm, changed."""
    presets = yaml.safe_load((files("zoo_configs") / "dream.yml").read_text())
    settings = {**presets[algo], **changes}
    return {**settings, "dream": {**settings["dream"], **dream_changes}}


def make_agent(
    algo: str, models: Sequence[DreamModel], path: Path, settings: dict[str, Any], seed: int
) -> BaseAlgorithm:
    """An untrained agent in dreams of `models`, of which the first lies at `path`."""
    own = {name: _scheduled(value) for name, value in settings.items() if name not in _NOT_THE_AGENTS}
    if algo == "dreamer":
        env_kwargs = {"model": str(path), **settings["dream"]}
        return Dreamer("Dream-v0", env_kwargs=env_kwargs, n_envs=settings["dreams"], seed=seed, **own)
    return LEARNERS[algo]("MlpPolicy", make_dreams(models, settings, seed), seed=seed, device="cpu", **own)


def _scheduled(value: Any) -> Any:
    """RL Zoo's "lin_0.001" as the schedule that it stands for, from that to nothing; all else as it is."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value


def make_dreams(models: Sequence[DreamModel], settings: dict[str, Any], seed: int) -> VecEnv:
    """Dreams spread evenly over the `models`, observations and rewards normalised if `normalize` says so."""
    counts = [len(part) for part in np.array_split(range(settings["dreams"]), len(models))]
    seeds = seed + np.cumsum([0, *counts[:-1]])
    parts = [
        DreamVecEnv(count, model, seed=int(first), **settings["dream"])
        for count, model, first in zip(counts, models, seeds, strict=True)
    ]
    dreams = VecMonitor(JoinedVecEnv(parts) if len(parts) > 1 else parts[0])
    return VecNormalize(dreams, gamma=settings["gamma"]) if settings.get("normalize") else dreams


def save_agent(agent: BaseAlgorithm, path: Path) -> None:
    """The agent, and beside it what its observations and rewards are normalised by: SB3 would pickle that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    agent.save(path, **({"include": ["replay_buffer"]} if isinstance(agent, Dreamer) else {}))
    if (dreams := agent.get_vec_normalize_env()) is not None:
        moments = {name: _moments(getattr(dreams, name)) for name in _NORMALISERS}
        with atomic_writer(path.with_suffix(".normalize.json")) as file:
            file.write(json.dumps(moments).encode())


def restore_normalisers(dreams: VecEnv, path: Path) -> VecEnv:
    """Dreams that normalise as those did in which the agent saved at `path` was trained."""
    if isinstance(dreams, VecNormalize):
        for name, moments in json.loads(path.with_suffix(".normalize.json").read_text()).items():
            kept = getattr(dreams, name)
            kept.mean, kept.var = (np.array(moments[key], np.float64) for key in ("mean", "var"))
            kept.count = moments["count"]
    return dreams


def _moments(kept: RunningMeanStd) -> dict[str, Any]:
    return {"mean": kept.mean.tolist(), "var": kept.var.tolist(), "count": kept.count}


class DreamRecorder(BaseCallback):
    """Evaluates in reality and in the dream as a run goes, writes the result and keeps the agent.

    Args:
        path: of the result.
        agent_path: of the agent.
        model: the world.
        every: dreamt steps between evaluations.
        episodes: of each evaluation.
        facts: copied into the result.
        judge: another world; the agent that is best in its dream is kept beside the last one.
    """

    def __init__(
        self,
        path: Path,
        agent_path: Path,
        model: DreamModel,
        every: int,
        episodes: int,
        facts: dict[str, Any],
        judge: DreamModel | None = None,
    ) -> None:
        super().__init__()
        self.path, self.agent_path, self.world_model, self.judge = path, agent_path, model, judge
        self.every, self.episodes = every, episodes
        self.started = (time.time(), time.process_time())
        curves: dict[str, Any] = {name: [] for name in ("dream_steps", "return_mean", "return_std")}
        curves |= {"dream_return_mean": [], "dream_return_std": [], "wall_clock_s": 0.0, "processor_s": 0.0}
        curves |= {"judge_return_mean": [], "judge_return_std": []} if judge else {}
        self.data = {**facts, "complete": False, "eval_episodes": episodes, **curves}
        self._spent_before = (0.0, 0.0)

    def continue_from(self, before: dict[str, Any], steps: int) -> None:
        """Take over the result of an interrupted run, up to the dreamt `steps` that its agent had made."""
        kept = sum(done <= steps for done in before["dream_steps"])
        self.data |= {
            name: value[:kept] if isinstance(value, list) and name.endswith(("steps", "mean", "std")) else value
            for name, value in before.items()
        }
        self.data.pop("error", None)  # of the attempt before
        self.data["resumed"] = [*before.get("resumed", []), {"dream_steps": steps, "commit": describe_commit()}]
        self._spent_before = (before["wall_clock_s"], before["processor_s"])

    def evaluate(self) -> None:
        """Evaluate now, write the result and save the agent."""
        world, episodes = self.world_model, self.episodes
        found = {
            "real": evaluate_real(self.model, world, episodes),
            "dream": evaluate_dream(self.model, world, episodes),
        }
        if self.judge:
            found["judge"] = evaluate_elsewhere(self.model, world, self.judge, episodes)
        self.data["dream_steps"].append(self.model.num_timesteps)
        for name, returns in found.items():
            prefix = "" if name == "real" else f"{name}_"
            self.data[f"{prefix}return_mean"].append(round(float(np.mean(returns)), 2))
            self.data[f"{prefix}return_std"].append(round(float(np.std(returns)), 2))
        save_agent(self.model, self.agent_path)
        self._keep_the_best()
        self.write()
        means = ", ".join(f"{name} {returns.mean():.0f}" for name, returns in found.items())
        print(f"{self.model.num_timesteps:>9} dreamt steps: {means}", flush=True)

    def _keep_the_best(self) -> None:
        """Save the agent once more if the judge has found none better."""
        if self.judge:
            judged = self.data["judge_return_mean"]
            self.data["kept"] = int(np.argmax(judged))
            if self.data["kept"] == len(judged) - 1:
                save_agent(self.model, self.agent_path.with_name(f"{self.agent_path.stem}-kept.zip"))

    def write(self, **changes: Any) -> None:
        """Write the result with what is known now."""
        spent = (time.time() - self.started[0], time.process_time() - self.started[1])
        names = ("wall_clock_s", "processor_s")
        self.data |= {name: round(a + b, 1) for name, a, b in zip(names, spent, self._spent_before, strict=True)}
        self.data |= changes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(self.path) as file:
            file.write((json.dumps(self.data, indent=1) + "\n").encode())

    def _on_training_start(self) -> None:
        if not self.data["dream_steps"]:
            self.evaluate()

    def _on_step(self) -> bool:
        before = self.num_timesteps - self.training_env.num_envs
        if self.num_timesteps // self.every > before // self.every:
            self.evaluate()
        return True


def checksum(path: Path) -> str:
    """Which file it is; `path` may be a name that `wmgym.load_model` knows."""
    return hashlib.sha256(find(path).read_bytes()).hexdigest()


def describe_run(args: argparse.Namespace, model: DreamModel, settings: dict[str, Any]) -> dict[str, Any]:
    """What a result says of how it came about."""
    # Where the worlds lie is of no use elsewhere; which they are, their checksums say.
    names = {str(path): path.name for path in (args.model, *args.also, args.judge) if path}
    argv = [names.get(word, word) for word in without_folders(sys.orig_argv[1:])]
    return {
        "algo": args.algo,
        "preset": args.name,
        "env_id": model.env.get("id"),
        "seed": args.seed,
        "settings": settings,
        **_which_worlds(args),
        **_describe_teacher(args, model),
        **describe_origin(_PACKAGES),
        "command": shlex.join([Path(sys.executable).name, *argv]),
    }


def _which_worlds(args: argparse.Namespace) -> dict[str, Any]:
    """The worlds that a run is trained and judged in."""
    return {
        "model_sha256": checksum(args.model),
        **({"also_sha256": [checksum(path) for path in args.also]} if args.also else {}),
        **({"judge_sha256": checksum(args.judge)} if args.judge else {}),
    }


def _refuse_other_worlds(before: dict[str, Any], args: argparse.Namespace, path: Path) -> None:
    """An interrupted run goes on in the worlds in which it began: an error for any others."""
    now = _which_worlds(args)
    arguments = {"model_sha256": "model", "also_sha256": "--also", "judge_sha256": "--judge"}
    if other := [shown for name, shown in arguments.items() if before.get(name) != now.get(name)]:
        raise ValueError(
            f"{path} is of a run with another {' and '.join(other)}: repeat its command, or give the new run a --name."
        )


def _describe_teacher(args: argparse.Namespace, model: DreamModel) -> dict[str, Any]:
    """The agent that the world is from, evaluated as those are that are trained in it; nothing for a world alone."""
    kind = agent_class(args.model)
    if kind is None:
        return {}
    agent = kind.load(args.model, device="cpu")
    real = evaluate_real(agent, model, args.eval_episodes)
    return {
        "teacher": kind.__name__,
        "teacher_seed": agent.seed,
        "teacher_env_steps": agent.num_timesteps * agent.action_repeat,
        "teacher_return_mean": round(float(real.mean()), 2),
        "teacher_return_std": round(float(real.std()), 2),
    }


def train(args: argparse.Namespace) -> Path:
    """Train and evaluate; returns the path of the result."""
    model = load_model(args.model)
    settings = read_settings(args.algo, overrides(args.set), overrides(args.dream))
    if args.algo == "dreamer" and args.also:
        raise ValueError("A Dreamer dreams in one world (Dream-v0): leave --also to ppo and sac.")
    steps = int(args.steps or settings["steps"])
    env_id = model.env.get("id", "unknown")
    path = result_path(args.results / "dream", args.algo, env_id, args.name, args.seed)
    agent_path = args.folder / path.relative_to(args.results / "dream").with_suffix(".zip")
    before = json.loads(path.read_text()) if path.exists() else None
    if before and not agent_path.exists():
        if before["complete"]:
            raise ValueError(f"{path} is of a complete run: give a --name, or other --results.")
        before = None  # begun, and nothing saved
    if before:
        _refuse_other_worlds(before, args, path)
        now = {"settings": settings, "eval_episodes": args.eval_episodes}
        refuse_other_settings(path, before, now, ("settings", "eval_episodes"), "give the new run a --name")
    if before and before["complete"]:
        print(f"{path} is complete.")
        return path
    facts = before or describe_run(args, model, settings)
    every = int(args.eval_every or steps // 10)
    judge = load_model(args.judge) if args.judge else None
    recorder = DreamRecorder(path, agent_path, model, every, args.eval_episodes, facts, judge)
    models = [model, *map(load_model, args.also)]
    if before:
        agent = _load(args.algo, agent_path, models, settings, args.seed)
        recorder.continue_from(before, agent.num_timesteps)
    else:
        agent = make_agent(args.algo, models, args.model, settings, args.seed)
    return _learn(agent, recorder, steps)


def _load(algo: str, path: Path, models: Sequence[DreamModel], settings: dict[str, Any], seed: int) -> BaseAlgorithm:
    if algo == "dreamer":
        return Dreamer.load(path, device="cpu")
    dreams = restore_normalisers(make_dreams(models, settings, seed), path)
    agent = LEARNERS[algo].load(path, dreams, device="cpu")
    if isinstance(agent, SAC):  # its replay is dreamt anew, which costs no real step
        agent.learning_starts = settings.get("learning_starts", 100) + agent.num_timesteps  # Stable-Baselines3's 100
    return agent


def _learn(agent: BaseAlgorithm, recorder: DreamRecorder, steps: int) -> Path:
    try:
        agent.learn(
            max(0, steps - agent.num_timesteps), callback=recorder, reset_num_timesteps=agent.num_timesteps == 0
        )
        if recorder.data["dream_steps"][-1] < agent.num_timesteps:
            recorder.evaluate()
    except Exception:
        recorder.write(error=traceback.format_exc(limit=-3))
        raise
    recorder.write(complete=True)
    return recorder.path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        print(train(args))
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from the last evaluation.")
        return 130
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
