"""The main job from end to end: a Dreamer learns a real task, and stock PPO learns it inside the Dreamer's dream.

    python -m agents.zoo.demo

trains `Dreamer` on a real environment, saves it, opens its world as `Dream-v0`, trains Stable-Baselines3's PPO in
there and nowhere else, evaluates both in the real environment and in the dream, and writes checkpoints, a film, a
learning curve and a report.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from agents.dreamer import Dreamer, flagship_world
from agents.evaluation import SEED
from agents.zoo.film import film_dream
from agents.zoo.playing import RandomAgent, play
from agents.zoo.plots import plot_learning_curve
from agents.zoo.report import Returns, Row, duration, write_report
from agents.zoo.results import describe_commit, describe_machine
from wmgym.dream import DreamVecEnv
from wmgym.real import make_env, make_vec
from wmgym.rendering import RenderingError

OUT = Path("runs/demo")


def _option(default: Any, description: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": f"{description} (default: {default})"})


@dataclasses.dataclass
class DemoSettings:
    """What the demo's command line sets; the defaults fit twenty minutes on two CPU cores."""

    env: str = _option("dm_control/cartpole-swingup-v0", "Gymnasium id of the real environment")
    env_steps: int = _option(20_000, "real simulator steps the Dreamer learns from, action repeat included")
    train_ratio: float = _option(128.0, "replayed steps per decision of the Dreamer")
    learning_starts: int = _option(1000, "random decisions before the Dreamer learns")
    dream_steps: int = _option(800_000, "dreamt steps PPO learns from")
    dreams: int = _option(64, "dreams that PPO learns in at once")
    horizon: int = _option(100, "steps of each of these dreams")
    episodes: int = _option(10, "evaluation episodes of each agent, in the real environment and in the dream")
    film_steps: int = _option(250, "decisions in the film")
    out: Path = _option(OUT, "folder of everything written")  # noqa: RUF009 (_option gives a dataclasses.field)
    seed: int = _option(0, "of everything random")
    threads: int = _option(1, "CPU threads of torch; networks as small as these gain nothing from more")


class EpisodeRecorder(BaseCallback):
    """Keeps the return of every training episode and the decisions taken when it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.decisions.append(self.num_timesteps)
                self.returns.append(float(info["episode"]["r"]))
        return True


# -- the parts ------------------------------------------------------------------------------------------------


def build_dreamer(settings: DemoSettings) -> Dreamer:
    """A Dreamer that sees the state only, whose world also learns to draw, so that its dreams can be looked at."""
    # Drawing costs more than all the rest, so some frames of each batch must do.
    world = flagship_world(deter=200, stoch=30, units=200, depth=16, picture_share=0.1)
    world = dataclasses.replace(world, observed_keys=("state",), picture_gradient=False, picture_scale=0.1)
    options: dict[str, Any] = {
        "train_ratio": settings.train_ratio,
        "learning_starts": settings.learning_starts,
        "interrupt_folder": settings.out,
        "seed": settings.seed,
        "verbose": 1,
    }
    try:
        return Dreamer(settings.env, observation="both", world_config=world, **options)
    except RenderingError as error:
        print(f"There will be no film: {error}")
        return Dreamer(settings.env, observation="state", **options)


def train_dreamer(agent: Dreamer, settings: DemoSettings) -> EpisodeRecorder:
    """Train in the real environment and save to `dreamer.zip`; returns the episodes."""
    recorder = EpisodeRecorder()
    decisions = settings.env_steps // agent.action_repeat
    agent.learn(decisions, callback=recorder, log_interval=2, progress_bar=True)
    agent.save(settings.out / "dreamer.zip")
    return recorder


def train_in_dream(settings: DemoSettings, agent: Dreamer) -> PPO:
    """Train stock PPO inside the saved world, and save it to `ppo_in_dream.zip`."""
    # Short dreams that begin anywhere in real episodes: a young world is right for a while, not for a whole episode.
    dreams = DreamVecEnv(
        settings.dreams,
        str(settings.out / "dreamer.zip"),
        keys=_state_keys(agent),
        start="any",
        horizon=settings.horizon,
        seed=settings.seed,
    )
    ppo = PPO(
        "MlpPolicy",
        VecMonitor(dreams),
        n_steps=64,
        batch_size=8 * settings.dreams,
        n_epochs=8,
        gamma=agent.gamma,
        learning_rate=5e-4,
        seed=settings.seed,
        device="cpu",
        verbose=1,
    )
    path = settings.out / "ppo_in_dream.zip"
    try:
        ppo.learn(settings.dream_steps, log_interval=5, progress_bar=True)
    except KeyboardInterrupt:
        print(f"Interrupted after {ppo.num_timesteps} dreamt steps.")
        raise
    finally:
        ppo.save(path)
        print(f"Saved {path}.")
    return ppo


def film(agent: Dreamer, settings: DemoSettings) -> Path | None:
    """Real beside dream, to `demo.mp4`; None where nothing can be rendered."""
    if agent.observation == "state":
        return None
    env = make_env(settings.env, observation="both", render_size=256)
    try:
        return film_dream(agent, env, settings.out / "demo.mp4", settings.film_steps, seed=SEED)
    finally:
        env.close()


def _state_keys(agent: Dreamer) -> tuple[str, ...] | None:
    return ("state",) if isinstance(agent.observation_space, spaces.Dict) else None


# -- all of it ------------------------------------------------------------------------------------------------


class Demo:
    """One run of the demo.

    Args:
        settings: what to run.
    """

    def __init__(self, settings: DemoSettings) -> None:
        self.settings = settings
        self.seconds: dict[str, float] = {}

    def run(self) -> Path:
        """All parts in turn; returns the path of the report."""
        settings = self.settings
        settings.out.mkdir(parents=True, exist_ok=True)
        agent = build_dreamer(settings)
        with self._part("1/4 The Dreamer learns in the real environment"):
            episodes = train_dreamer(agent, settings)
        with self._part("2/4 PPO learns inside the dream"):
            ppo = train_in_dream(settings, agent)
        with self._part("3/4 All act in the real environment and in the dream"):
            rows = self._rows(agent, ppo)
        with self._part("4/4 Film, learning curve and report"):
            filmed = film(agent, settings)
            self._plot(agent, episodes, rows)
        return self._report(rows, filmed)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        print(f"== {name}: {duration(self.seconds[name])}", flush=True)

    def _rows(self, agent: Dreamer, ppo: PPO) -> list[Row]:
        random = RandomAgent(agent.action_space, self.settings.seed)
        whole, state = agent.observation, "state"
        learning, dreaming = list(self.seconds.values())[:2]
        env_steps = agent.num_timesteps * agent.action_repeat
        rows = [
            Row("random", self._real(random, state), self._dream(random, _state_keys(agent)), 0, 0, 0.0),
            Row("Dreamer", self._real(agent, whole), self._dream(agent, None), env_steps, 0, learning),
            Row("PPO, trained in the dream only", self._real(ppo, state), self._dream(ppo, _state_keys(agent)), 0,
                ppo.num_timesteps, dreaming),
        ]  # fmt: skip
        return rows

    def _real(self, agent: Any, observation: str) -> Returns:
        settings = self.settings
        env = make_vec(settings.env, settings.episodes, seed=SEED, observation=observation)
        return play(agent, env, settings.episodes)

    def _dream(self, agent: Any, keys: tuple[str, ...] | None) -> Returns:
        settings = self.settings
        model = str(settings.out / "dreamer.zip")
        return play(
            agent,
            VecMonitor(DreamVecEnv(settings.episodes, model, keys=keys, seed=SEED)),
            settings.episodes,
        )

    def _plot(self, agent: Dreamer, episodes: EpisodeRecorder, rows: list[Row]) -> None:
        steps = [decisions * agent.action_repeat for decisions in episodes.decisions]
        levels = {f"{row.name}, evaluated": row.real.mean for row in rows}
        plot_learning_curve(
            self.settings.out / "learning_curve.png", steps, episodes.returns, f"Dreamer on {self.settings.env}", levels
        )

    def _report(self, rows: list[Row], filmed: Path | None) -> Path:
        settings = self.settings
        parts = ", ".join(f"{name[4:]}: {duration(seconds)}" for name, seconds in self.seconds.items())
        notes = [
            f"Mean ± deviation of {settings.episodes} episodes. The dream is the world that the Dreamer learnt from "
            "its environment steps; PPO saw no real step. A dream return is what the world predicts.",
            f"Wall-clock: {duration(sum(self.seconds.values()))} ({parts}). Machine: {describe_machine()}; torch on "
            f"{settings.threads} thread(s); commit {describe_commit()}; seed {settings.seed}.",
            "![learning curve](learning_curve.png)",
            "Film, real beside dream, same actions: [demo.mp4](demo.mp4)."
            if filmed
            else "No film: nothing can be rendered here.",
            "Files: `dreamer.zip` (opens as `Dream-v0`), `ppo_in_dream.zip` (Stable-Baselines3's).",
        ]
        return write_report(settings.out / "report.md", f"Demo: {settings.env}", rows, notes)


def parse_arguments(arguments: list[str] | None = None) -> DemoSettings:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m agents.zoo.demo", description=__doc__.split("\n")[0])
    for field in dataclasses.fields(DemoSettings):
        default = field.default
        kind = Path if isinstance(default, Path) else type(default)  # Path("...") is a PosixPath or the like
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=default, help=field.metadata["help"]
        )
    return DemoSettings(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    settings = parse_arguments(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        report = Demo(settings).run()
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was finished is in {settings.out}/.")
        return 130
    finally:
        torch.set_num_threads(threads)
    print(f"\n{report.read_text(encoding='utf-8')}\nWritten to {settings.out}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
