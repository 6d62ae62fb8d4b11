"""Doom's Take Cover by World Models: C evolves in the dream alone, and is then sent into the game.

    python -m agents.zoo.take_cover

collects random episodes, fits V and M, evolves C in M's dream, and goes on so in rounds with the episodes of C's
neighbours; evolves that C further at each temperature (`--anew`: and another from nothing), lets each C play the real
game, and writes the agent, pictures of each stage and a result file with the table of temperatures. Every round leaves
a checkpoint: `--resume` goes on, whatever has stopped the run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import ConvertCallback, EveryNTimesteps
from stable_baselines3.common.logger import Logger

from agents.checkpointing import CheckpointEvery, last_checkpoint
from agents.evaluation import SEED
from agents.world_models import WorldModels
from agents.zoo.hyperparams import load_preset, overrides, read_preset
from agents.zoo.playing import RandomAgent, play
from agents.zoo.results import describe_origin, open_logger
from agents.zoo.stage_plots import plot_dreams, plot_evolution, plot_reconstructions
from wmgym.allocator import keep_freed_memory
from wmgym.files import atomic_writer
from wmgym.games import TAKE_COVER
from wmgym.real import make_vec

TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)
SOLVED = 750


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m agents.zoo.take_cover", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    decisions = read_preset("world_models", TAKE_COVER)["n_timesteps"]
    parser.add_argument("--decisions", type=int, default=decisions, help="decisions collected in the real game")
    parser.add_argument("--episodes", type=int, default=100, help="real episodes of each evaluation")
    parser.add_argument("--table-generations", type=int, default=40, help="of C in each further row")
    parser.add_argument("--temperatures", type=float, nargs="*", default=TEMPERATURES)
    parser.add_argument("--anew", action="store_true", help="rows of C evolved from nothing too")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="override hyperparameters")
    parser.add_argument("--out", type=Path, default=Path("runs/take_cover"))
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


class TakeCover:
    """The run: its agent, and the result file that grows with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.settings = {**load_preset("world_models", TAKE_COVER, "default"), **overrides(args.set)}
        self.earlier: dict[str, Any] = json.loads(self.path.read_text()) if args.resume and self.path.exists() else {}
        self.started = time.time() - self.earlier.get("wall_clock_s", 0.0)
        self.processor_s = self.earlier.get("processor_s", 0.0)
        self.agent = self.first_agent()
        self.agent.set_logger(self.logger())
        self.data: dict[str, Any] = {
            "algo": "world_models",
            "preset": "default",
            "overrides": overrides(args.set),
            "env_id": TAKE_COVER,
            "observation": "pixels",
            "action_repeat": self.agent.action_repeat,
            "seed": args.seed,
            "settings": self.settings,
            "decisions_collected": args.decisions,
            **describe_origin(("torch", "gymnasium", "vizdoom", "cma", "numpy")),
            "eval_episodes": args.episodes,
            "deterministic": True,
            "updates": 0,
            "env_steps": [],
            "return_mean": [],
            "return_std": [],
            "complete": False,
            "costs": {},
            "table": [],
        }
        if self.earlier:
            self.data["commit"] = " and ".join(dict.fromkeys([self.earlier["commit"], self.data["commit"]]))

    def first_agent(self) -> WorldModels:
        """An agent that has learnt nothing; or what the run had when it was stopped."""
        path = self.args.out / "world_models.zip"  # of C before the other rows
        if self.args.resume and not self.earlier.get("table"):
            path = last_checkpoint(self.rounds)
        elif not self.args.resume:
            return WorldModels(TAKE_COVER, seed=self.args.seed, interrupt_folder=self.args.out, **self.settings)
        lengths = ("iterations", "later_updates", "vision_updates", "together_updates", "memory_updates", "generations")
        changed = {name: self.settings[name] for name in lengths}
        return WorldModels.load(path, device="cpu", interrupt_folder=self.args.out, **changed)

    def logger(self) -> Logger:
        """Writes progress.csv."""
        return open_logger(self.args.out, ["csv"], self.args.resume)

    @property
    def rounds(self) -> Path:
        """Where each round leaves its checkpoint."""
        return self.args.out / "resume"

    def run(self) -> Path:
        """Everything, in order; returns the result file."""
        if self.earlier.get("table"):
            self.go_on()
        else:
            self.begin()
        self.further_rows()
        self.data["table"].sort(key=lambda row: (row["anew"], row["temperature"]))
        self.data["complete"] = True
        self.write()
        return self.path

    def further_rows(self) -> None:
        """The other temperatures from the C of the rounds; and all of them from nothing, if asked for."""
        of_rounds = self.agent.policy.actor.weights.clone()
        done = {(row["anew"], row["temperature"]) for row in self.data["table"]}
        for anew in (False, True) if self.args.anew else (False,):
            for temperature in self.args.temperatures:
                if (anew, temperature) in done:
                    continue
                self.agent.policy.actor.weights.copy_(of_rounds)
                self.agent.evolve(anew, temperature=temperature, generations=self.args.table_generations)
                self.agent.save(self.args.out / f"world_models_{temperature}{'_anew' if anew else ''}.zip")
                self.row(temperature, anew)

    def begin(self) -> None:
        """Random play, all stages, and C's line of the table."""
        # At random it plays as it did before the run was interrupted.
        random = self.earlier.get("random") or _summary(self.play(RandomAgent(self.agent.action_space, self.args.seed)))
        self.data["random"] = random
        self.evaluated(0, random)
        self.learn()
        self.write()
        real = self.row(self.settings["temperature"], anew=False)["real"]
        self.evaluated(self.agent.num_timesteps * self.agent.action_repeat, real)

    def go_on(self) -> None:
        """Take over what a run that was stopped within the table has found."""
        for name in ("random", "env_steps", "return_mean", "return_std", "table", "costs", "episodes_collected"):
            self.data[name] = self.earlier[name]

    def learn(self) -> None:
        """Collect, V, M, and C at the preset's temperature."""
        agent, out = self.agent, self.args.out
        every = max(1, agent.decisions_of_round(self.args.decisions))
        noted = EveryNTimesteps(every, ConvertCallback(self.noted))
        agent.learn(
            self.args.decisions - agent.num_timesteps,
            [CheckpointEvery(self.rounds, every), noted],
            log_interval=1,
            reset_num_timesteps=not self.args.resume,
        )
        agent.save(out / "world_models.zip", include=["replay_buffer"])
        self.data["costs"] = agent.costs
        self.data["episodes_collected"] = agent._episode_num
        plot_reconstructions(out / "reconstructions.png", agent)
        plot_dreams(out / "dreams.png", agent)
        plot_evolution(out / "evolution.png", agent.history, f"C in the dream, temperature {agent.temperature}")

    def noted(self, *_: Any) -> bool:
        """A callback: the result file, with what the run has cost so far."""
        self.data["costs"] = self.agent.costs
        self.write()
        return True

    def evaluated(self, env_steps: int, real: dict[str, Any]) -> None:
        """A point of the run's curve: what is played at random, and C after all that it has learnt from."""
        for name, value in (("env_steps", env_steps), ("return_mean", real["mean"]), ("return_std", real["std"])):
            self.data[name].append(value)
        self.write()

    def row(self, temperature: float, anew: bool) -> dict[str, Any]:
        """One line of the table: C of this temperature in its dream and in the game."""
        dream, real = self.agent.dream(self.args.episodes), self.play(self.agent)
        row = {
            "temperature": temperature,
            "anew": anew,
            "generations": len(self.agent.history),
            "cost": self.agent.costs["controller"],
            "dream": _summary(dream),
            "real": _summary(real),
            "solved": bool(np.mean(real) >= SOLVED),
        }
        self.data["table"].append(row)
        self.write()
        return row

    def play(self, player: Any) -> tuple[float, ...]:
        """Tics survived in each real episode."""
        options: dict[str, Any] = {"observation": "pixels", "action_repeat": self.agent.action_repeat}
        count = min(10, self.args.episodes)
        env = make_vec(TAKE_COVER, count, seed=self.args.seed + SEED, **options)
        return play(player, env, self.args.episodes).values

    @property
    def path(self) -> Path:
        """The result file."""
        return self.args.out / f"default-seed{self.args.seed}.json"

    def write(self) -> None:
        """The result file, as far as it is known."""
        path = self.path
        self.data["updates"] = self.agent._n_updates
        self.data["wall_clock_s"] = round(time.time() - self.started, 1)
        self.data["processor_s"] = round(self.processor_s + time.process_time(), 1)
        with atomic_writer(path) as file:
            file.write((json.dumps(self.data, indent=1) + "\n").encode())


def _summary(returns: Any) -> dict[str, Any]:
    values = [round(float(value), 1) for value in returns]
    return {"mean": round(float(np.mean(values)), 1), "std": round(float(np.std(values)), 1), "returns": values}


def main(arguments: list[str] | None = None) -> Path:
    """Run the command."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    run = TakeCover(args)
    try:
        return run.run()
    finally:
        if run.agent.env is not None:
            run.agent.env.close()


if __name__ == "__main__":
    keep_freed_memory()
    print(main())
