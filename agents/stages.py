"""Learning in stages instead of in one loop: collect, vision, vision and memory together, memory, controller."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.base import WorldModelAgent
from agents.interrupt import InterruptGuard
from agents.policy import Carry

STAGES = ("collect", "vision", "together", "memory", "controller")


class StagedAgent(WorldModelAgent):
    """`WorldModelAgent` with stages; where it is among them travels in its checkpoints.

    A subclass has the arguments named below, and a method for one step of each stage but the first.
    """

    iterations: int
    first_decisions: int | None
    later_updates: float
    vision_updates: int
    together_updates: int
    memory_updates: int
    generations: int

    _KEPT = (
        "_iteration", "_stage", "_stage_step", "_begun", "_joined", "_best_score", "evolution_steps", "history", "costs"
    )  # fmt: skip
    """What of the state is JSON."""

    def _begin_stages(self) -> None:
        """The state before anything was done."""
        self._iteration, self._stage, self._stage_step, self._begun = 0, STAGES[0], 0, 0
        self._joined = False  # whether V's codes have M for their prior, as they do once both were fitted together
        self._best_score, self.evolution_steps = -math.inf, 0
        self.history: list[dict[str, float]] = []
        self.costs: dict[str, dict[str, float]] = {}
        self._told: list[np.ndarray] = []  # fitnesses (P,) of this stage's generations
        self._first_weights: Tensor | None = None  # where this stage's evolution began
        self._codes_state: dict[str, Any] | None = None  # of M's sampling
        # Of the episodes that are being collected, (n_envs, ...): "wandering" from C's parameters to those that act,
        # the "longest" hold of random actions and their "odds".
        self._habits: dict[str, Tensor] = {}

    @abstractmethod
    def _vision_step(self) -> None:
        """One update of V."""

    @abstractmethod
    def _together_step(self) -> None:
        """One update of V and M at once."""

    @abstractmethod
    def _memory_step(self) -> None:
        """One update of M."""

    @abstractmethod
    def _controller_step(self) -> None:
        """One generation of C."""

    @abstractmethod
    def _check_sequences(self) -> None:
        """Raise ValueError if what was collected is shorter than the sequences that M will be fitted to."""

    @abstractmethod
    def _finish_stage(self) -> None:
        """Let go of what only the stage that has just ended needed."""

    @abstractmethod
    def _close_real(self) -> None:
        """Close the environments of C's evolution, if they are open; the next generation opens them again."""

    # -- the procedure ----------------------------------------------------------------------------------------

    def _loop(
        self, callback: BaseCallback, total_timesteps: int, log_interval: int | None, interrupt: InterruptGuard
    ) -> None:
        if self._iteration >= self.iterations and 0 < total_timesteps <= self.num_timesteps:
            return  # the whole procedure is done, and no decision is asked for
        if self._iteration >= self.iterations or not self.num_timesteps:
            self._begin_procedure()
        while self._iteration < self.iterations:
            with self._anew_after_error():
                if not self._collect(callback, total_timesteps, log_interval, interrupt):
                    return
            try:
                if not self._fit(callback, interrupt, log_interval):
                    return
            finally:
                self._close_real()

    def _earn_updates(self) -> None:
        """Nothing: updates come in stages of their own."""

    def _begin_procedure(self) -> None:
        self._finish_stage()
        self._iteration, self._stage, self._stage_step, self._begun = 0, STAGES[0], 0, self.num_timesteps
        self.history = []

    def _collect(
        self, callback: BaseCallback, total_timesteps: int, log_interval: int | None, interrupt: InterruptGuard
    ) -> bool:
        """The real decisions of this iteration; False when stopped before they were all taken."""
        if self._stage == STAGES[0] and self._last_obs is None:  # evolution has used the environment
            assert self.env is not None
            self._last_obs = self.env.reset()  # type: ignore[assignment]  # never a tuple: check_spaces refused those
            self._last_episode_starts = np.ones(self.n_envs, bool)
            self._begin_episodes()
        target = self._begun + self._share(total_timesteps - self._begun)
        while self._stage == STAGES[0] and self.num_timesteps < target:
            with self._timed():
                going_on = self._collect_step(callback, total_timesteps, log_interval)
            if interrupt.requested or not going_on:
                return False
        if self._stage == STAGES[0]:
            self._check_sequences()
            self._next_stage()
        return True

    def decisions_of_round(self, decisions: int) -> int:
        """How many of the procedure's `decisions` an iteration after the first takes, or the first if it is alone."""
        return decisions if self.iterations == 1 else (decisions - self._first_of(decisions)) // (self.iterations - 1)

    def _first_of(self, decisions: int) -> int:
        if self.first_decisions is None or self.iterations == 1:
            return math.ceil(decisions / self.iterations)
        return min(self.first_decisions, decisions)

    def _share(self, decisions: int) -> int:
        """How many of the procedure's `decisions` are taken by the end of this iteration."""
        first = self._first_of(decisions)
        return first + math.ceil((decisions - first) * self._iteration / max(1, self.iterations - 1))

    def _fit(self, callback: BaseCallback, interrupt: InterruptGuard, log_interval: int | None) -> bool:
        """V, both, M and C; False when interrupted."""

        def share(updates: int) -> int:
            return math.ceil(updates * self._effort)

        work = {
            # Apart, V would draw codes that M foretells back to the standard normal, and spoil them.
            "vision": (self._vision_step, 0 if self._joined else share(self.vision_updates)),
            "together": (self._together_step, share(self.together_updates)),
            "memory": (self._memory_step, share(self.memory_updates)),
            "controller": (self._controller_step, self.generations),
        }
        while self._stage != STAGES[0]:
            step, count = work[self._stage]
            while self._stage_step < count:
                if interrupt.requested:
                    return False
                with self._timed(), self._skipping_spoilt():
                    step()
                self._stage_step += 1
                self._saved_whole = (-1, None)  # what was saved in an earlier stage no longer says it all
                if log_interval and self._stage_step % max(1, count // 20) == 0:
                    self._dump_stage(count)
            self._joined |= self._stage == "together" and count > 0
            self._finish_stage()
            self._next_stage()
            callback.on_rollout_end()
        return True

    @property
    def _effort(self) -> float:
        """This iteration's updates, as a share of the first's."""
        return self.later_updates if self._iteration else 1.0

    def _seed_of(self, stream: int) -> int:
        """A seed for each purpose in each iteration, so that what is resumed draws what it would have drawn."""
        assert self.seed is not None
        return int(np.random.SeedSequence([self.seed, self._begun, self._iteration, stream]).generate_state(1)[0])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Adds to what the present stage has cost: seconds by the clock, and of the processor in this process."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        cost = self.costs.setdefault(self._stage, {"wall_clock_s": 0.0, "processor_s": 0.0})
        cost["wall_clock_s"] += time.perf_counter() - wall
        cost["processor_s"] += time.process_time() - processor

    def _next_stage(self) -> None:
        ended = self._stage == STAGES[-1]
        self._stage = STAGES[0] if ended else STAGES[STAGES.index(self._stage) + 1]
        self._iteration, self._stage_step = self._iteration + ended, 0

    def _dump_stage(self, count: int) -> None:
        """A line of the log for the stage; its step is real decisions and updates together, which only ever grows."""
        self.logger.record("time/iteration", self._iteration)
        self.logger.record("time/stage", f"{self._stage} {self._stage_step}/{count}", exclude="tensorboard")
        for name, values in self._metrics.items():
            self.logger.record(f"{self._stage}/{name}", torch.stack([*values]).mean().item())
        self._metrics.clear()
        self.logger.dump(step=self.num_timesteps + self._n_updates)

    # -- collecting -------------------------------------------------------------------------------------------

    def _begin_episodes(self) -> None:
        if self._stage == STAGES[0]:
            super()._begin_episodes()
        else:  # C's evolution may use these environments: whoever collects next resets them
            self._last_obs = None

    @torch.no_grad()
    def _decide(self) -> Tensor:
        """At random until there is a C, then C's, exploring."""
        if self.policy.actor.weights.any():
            return super()._decide()
        assert self._carry is not None
        self._carry = Carry(self._carry.state, self._random_action())
        return self._carry.action

    def _of_episode(self, name: str, drawn: Tensor) -> Tensor:
        """What each environment's episode keeps to its end; `drawn` `(n_envs, ...)` where one begins."""
        kept = self._habits.get(name)
        if kept is None or len(kept) != self.n_envs:
            kept = drawn
        first = torch.as_tensor(self._last_episode_starts, device=drawn.device)
        self._habits[name] = torch.where(first.view(-1, *[1] * (drawn.ndim - 1)), drawn, kept)
        return self._habits[name]

    # -- in files ---------------------------------------------------------------------------------------------

    def _run_facts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, tensors = super()._run_facts()
        facts["stages"] = {name: getattr(self, name) for name in self._KEPT}
        if self._best_score == -math.inf:  # which JSON cannot say
            facts["stages"].pop("_best_score")
        facts["codes"] = self._codes_state
        if self._told:
            tensors["run/stages/told"] = torch.as_tensor(np.stack(self._told))
        if self._first_weights is not None:
            tensors["run/stages/first_weights"] = self._first_weights
        for name, habit in self._habits.items():
            tensors[f"run/stages/habits/{name}"] = habit
        return facts, tensors

    def _restore_run(self, run: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> None:
        super()._restore_run(run, tensors, source)
        for name, value in run["stages"].items():
            setattr(self, name, value)
        self._codes_state = run["codes"]
        self._told = list(tensors["stages/told"].cpu().numpy()) if "stages/told" in tensors else []
        self._first_weights = tensors.get("stages/first_weights")
        prefix = "stages/habits/"
        habits = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        self._habits = {name: habit.to(self.device) for name, habit in habits.items()}
