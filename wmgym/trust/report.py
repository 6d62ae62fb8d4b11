"""The whole report: record real episodes, then ask the world about them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from wmgym.dream import StartStates
from wmgym.dream.model import DreamModel, ModelLike, resolve_model
from wmgym.facts import episode_limit
from wmgym.real import remake_env
from wmgym.trust.calibration import calibrate
from wmgym.trust.ensemble import DoubtingWorld
from wmgym.trust.episodes import LivedEpisode, Returnable, record_episodes
from wmgym.trust.exploitation import Budget, Setting, Trainer, exploit, train_ppo
from wmgym.trust.figures import Section, TrustReport
from wmgym.trust.pictures import compare_pictures
from wmgym.trust.policies import Policy, simple_policies
from wmgym.trust.prediction import predict, sense_actions
from wmgym.trust.ranking import rank_sequences
from wmgym.trust.returns import compare_returns
from wmgym.trust.summary import summarise
from wmgym.trust.windows import Windows, choose_starts, cut_windows, measure_scale
from wmgym.worlds.base import World

log = logging.getLogger("wmgym")

_LONGEST = 1000
_ENSEMBLE_UPDATES = 1000


def _option(default: Any, description: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class TrustSettings:
    """How much is looked at; the defaults take minutes on one CPU core."""

    horizon: int = _option(50, "steps of the longest prediction")
    context: int = _option(5, "steps that the world watches at least, before it predicts")
    windows: int = _option(10, "predictions started from each real episode")
    marks: tuple[int, ...] = _option((1, 5, 15, 45), "steps ahead for which there are figures")
    dreams: int = _option(8, "dreams of the same window or sequence, for spread and mean")
    starts: int = _option(32, "real moments from which action sequences are ranked")
    candidates: int = _option(16, "action sequences tried from each")
    length: int = _option(15, "steps of such a sequence")
    temperatures: tuple[float, ...] = _option((0.5, 1.0, 1.5), "dreams that new agents are trained in")
    ensemble: int = _option(0, "heads to fit to recorded episodes, for a world that has no ensemble; 0: none")
    penalties: tuple[float, ...] = _option((1.0, 10.0), "of disagreement on the reward, at temperature 1")
    dream_steps: int = _option(200_000, "steps of each such training; 0 leaves the section out")
    dream_seeds: int = _option(1, "trainings of each kind")
    max_steps: int | None = _option(None, "decisions after which an episode is cut; default: what the checkpoint says")
    seed: int = _option(0, "of everything random")

    def __post_init__(self) -> None:
        if self.ensemble == 1:
            raise ValueError("ensemble=1 has nobody to disagree with: use 0 (none) or 2 and more.")
        least = {"horizon": 1, "context": 1, "windows": 1, "dreams": 2, "starts": 2, "candidates": 2, "length": 1}
        for name, minimum in {**least, "dream_steps": 0, "dream_seeds": 1}.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be {minimum} or more, not {getattr(self, name)}.")
        if min(self.marks, default=1) < 1:
            raise ValueError(f"marks are steps ahead, 1 or more each, not {self.marks}.")
        if min((*self.temperatures, *self.penalties), default=0.0) < 0:
            raise ValueError(f"temperatures {self.temperatures} and penalties {self.penalties} cannot be negative.")
        if self.max_steps is not None and self.max_steps <= self.context:
            raise ValueError(f"max_steps={self.max_steps} leaves nothing after the {self.context} steps of context.")

    @property
    def exploited(self) -> list[Setting]:
        """The dreams that new agents are trained in."""
        cautious = [Setting(1.0, penalty) for penalty in self.penalties if penalty]
        return [*(Setting(temperature) for temperature in self.temperatures), *cautious]


def trust_report(
    world: ModelLike,
    env: str | gym.Env | None = None,
    policies: Mapping[str, Policy] | None = None,
    episodes: int = 10,
    settings: TrustSettings | None = None,
    train: Trainer = train_ppo,
) -> TrustReport:
    """How far a world's dreams can be trusted, in seven questions; see `docs/trust.md`.

    Args:
        world: a checkpoint's path, a live world, or `as_model(world, starts)`.
        env: the real environment, by id (made as the checkpoint says) or as it is; None: the checkpoint's own.
        policies: by name, with Stable-Baselines3's `predict`; 8 and more of differing skill make section 4 worth
            reading. None: `simple_policies`, which need no training and have little skill.
        episodes: real episodes of each policy.
        settings: how much is looked at.
        train: trains the agents of section 6 in the dream.

    Returns:
        The report; `save(folder)` writes it as JSON, Markdown and pictures.

    Raises:
        CheckpointError: for a file that cannot be read.
        ValueError: for an environment whose spaces are not the world's, or settings that cannot be.

    Example:
        >>> from wmgym.worlds.rssm import RSSM
        >>> env = gym.make("CartPole-v1")
        >>> world = RSSM(env.observation_space, env.action_space)
        >>> report = trust_report(world, env, episodes=2, settings=TrustSettings(horizon=5, dream_steps=0))
        >>> report["prediction"].figures["observation trust horizon, persistence"].of
        'windows'
    """
    settings = settings or TrustSettings()
    if episodes < 1:
        raise ValueError(f"episodes must be 1 or more, not {episodes}.")
    model = resolve_model(world)
    real = open_real(env, model)
    try:
        return _report(model, real, _facts_of(world, env, model), policies, episodes, settings, train)
    finally:
        if not isinstance(env, gym.Env):
            real.close()


def _report(
    model: DreamModel,
    real: Returnable,
    facts: dict[str, Any],
    policies: Mapping[str, Policy] | None,
    episodes: int,
    settings: TrustSettings,
    train: Trainer,
) -> TrustReport:
    chosen = dict(policies) if policies is not None else simple_policies(real.action_space, settings.seed)
    if not chosen:
        raise ValueError("policies is empty: give some, or leave it out for simple ones.")
    max_steps = settings.max_steps or episode_limit(model.env) or _LONGEST
    log.info("Recording %d real episodes of each of %d policies.", episodes, len(chosen))
    recorded = record_episodes(real, chosen, episodes, settings.seed, max_steps)
    sections = _Study(model, real, chosen, recorded, episodes, max_steps, settings, train).sections()
    facts |= {
        "policies": list(chosen),
        "real episodes of each policy": episodes,
        "longest episode": max(map(len, recorded)),
        **_how(settings),
    }
    by_name = {section.name: section for section in sections}
    return TrustReport(facts, by_name, summarise(by_name))


def _facts_of(world: ModelLike, env: str | gym.Env | None, model: DreamModel) -> dict[str, Any]:
    return {
        "environment": _name_of(env, model),
        "checkpoint": Path(world).name if isinstance(world, str | Path) else "a live world",
        "world": f"{type(model.world).__name__}, {sum(p.numel() for p in model.world.parameters())} parameters",
    }


def _name_of(env: str | gym.Env | None, model: DreamModel) -> str:
    if isinstance(env, gym.Env):
        return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    return env or str(model.env["id"])


def _how(settings: TrustSettings) -> dict[str, Any]:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "gymnasium", "mujoco", "scipy")]
    given = [f"{name}={value}" for name, value in dataclasses.asdict(settings).items()]
    return {"settings": given, "versions": versions}


def open_real(env: str | gym.Env | None, model: DreamModel) -> Returnable:
    """The real environment, restorable.

    Raises:
        ValueError: if there is none, or its spaces are not the world's.
    """
    real = Returnable(env if isinstance(env, gym.Env) else remake_env(model.env, env))
    for name in ("observation_space", "action_space"):
        have, known = getattr(real, name), getattr(model.world, name)
        if have != known:
            if not isinstance(env, gym.Env):
                real.close()
            raise ValueError(
                f"The environment's {name} is {have}, but the world was trained on {known}: give the environment that "
                "it was trained on, as wmgym.make_env makes it."
            )
    return real


class _Study:
    """What all sections share."""

    def __init__(
        self,
        model: DreamModel,
        real: Returnable,
        policies: Mapping[str, Policy],
        recorded: Sequence[LivedEpisode],
        episodes: int,
        max_steps: int,
        settings: TrustSettings,
        train: Trainer,
    ) -> None:
        self.model, self.world, self.real = model, model.world, real
        self.policies, self.recorded, self.episodes = policies, recorded, episodes
        # Where reality cuts episodes, dreams are cut too; what ended by itself says nothing about that.
        self.max_steps = max((len(e) for e in recorded if not e.terminated), default=max_steps)
        self.settings, self.train = settings, train
        self.scale = measure_scale(self.world, recorded)
        self.windows = self._windows()
        self.doubting, self.doubted = self._with_ensemble()

    def sections(self) -> list[Section]:
        """All seven."""
        s, world, windows = self.settings, self.world, self.windows
        names = [episode.policy for episode in self.recorded]
        steps = [
            lambda: predict(world, windows, self.scale, names, s.marks, s.seed),
            lambda: compare_pictures(world, windows, s.marks, s.seed),
            lambda: sense_actions(world, windows, self.scale, s.marks, s.seed),
            lambda: compare_returns(world, self.policies, self.recorded, self.max_steps, s.seed),
            lambda: rank_sequences(
                world, self.real, self.recorded, s.starts, s.candidates, self._length(), s.dreams, s.seed
            ),
            self._exploit,
            self._calibrate,
        ]
        sections = []
        for number, step in enumerate(steps, start=1):
            log.info("Section %d of %d.", number, len(steps))
            sections.append(step())
        return sections

    def _windows(self) -> Windows:
        s = self.settings
        chosen, times = choose_starts(self.recorded, s.windows, s.context, s.horizon)
        return cut_windows(self.world, self.recorded, chosen, times, s.horizon, s.seed)

    def _length(self) -> int:
        """Sequences that are ranked fit into the longest episode."""
        return min(self.settings.length, max(map(len, self.recorded)) - 1)

    def _with_ensemble(self) -> tuple[World, Windows]:
        """The world with an ensemble, fitted to every second episode if it has none, and windows of the others."""
        s = self.settings
        if not s.ensemble or self.world.has_ensemble:
            return self.world, self.windows
        world = DoubtingWorld(self.world, s.ensemble, s.seed)
        error = world.fit(self.recorded[::2], _ENSEMBLE_UPDATES, s.seed)
        log.info("An ensemble was fitted; its mean squared error is %.3g of the variance.", error)
        return world, self.windows.of_episodes(range(1, len(self.recorded), 2))

    def _calibrate(self) -> Section:
        s = self.settings
        return self._explained(calibrate(self.doubting, self.doubted, self.scale, s.marks, s.dreams, s.seed))

    def _explained(self, section: Section) -> Section:
        if self.doubting is not self.world:
            section.notes.append(
                f"The world was trained without an ensemble. The {self.settings.ensemble} heads were fitted for this "
                "report to every second of the recorded episodes: their disagreement says how far a dream is from "
                "these, not from what the world was trained on. Section 7 looks at the other episodes only."
            )
        return section

    def _exploit(self) -> Section:
        s = self.settings
        starts = self.model.starts or StartStates(
            self.windows.state, torch.zeros(len(self.windows), dtype=torch.bool, device=self.world.device)
        )
        model = DreamModel(self.doubting, starts, self.model.env)
        budget = Budget(s.dream_steps, s.dream_seeds)
        return self._explained(
            exploit(model, self.real, s.exploited, budget, self.episodes, self.max_steps, s.seed, self.train)
        )
