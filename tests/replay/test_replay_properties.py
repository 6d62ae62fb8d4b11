"""What holds for a replay under any sequence of steps, ends, truncations, saves and loads."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wmgym.replay import SequenceReplay

SPACE, ACTION = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,))
MAX_ENVS = 3


class ReplayMachine(RuleBasedStateMachine):
    """A replay beside plain lists of what was added: (number of the episode, step in it, is_terminal)."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.files = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @initialize(n_envs=st.integers(1, MAX_ENVS), rows=st.integers(1, 12), mapped=st.booleans())
    def begin(self, n_envs: int, rows: int, mapped: bool) -> None:
        self.n_envs, self.rows, self.mapped = n_envs, rows, mapped
        self.replay = self._make(self.root / "maps" if mapped else None)
        self.added: list[list[tuple[int, int, bool]]] = [[] for _ in range(n_envs)]
        self.episodes = [0] * n_envs
        self.oldest = [0] * n_envs
        self.ended = [True] * n_envs  # the next step begins an episode
        self.saved: tuple[dict[str, Any], list[Any]] | None = None

    def _make(self, folder: Path | None) -> SequenceReplay:
        return SequenceReplay(self.rows * self.n_envs, SPACE, ACTION, self.n_envs, folder=folder, seed=1)

    @rule(
        chosen=st.sets(st.integers(0, MAX_ENVS - 1), min_size=1), end=st.sampled_from(["no", "no", "cut", "terminal"])
    )
    def add(self, chosen: set[int], end: str) -> None:
        envs = sorted(env for env in chosen if env < self.n_envs)
        if not envs:
            return
        for env in envs:
            if self.ended[env]:
                self.episodes[env] += 1
            step = 0 if self.ended[env] else self.added[env][-1][1] + 1
            self.added[env].append((self.episodes[env], step, end == "terminal"))
            self.ended[env] = end != "no"
            self.oldest[env] = max(self.oldest[env], len(self.added[env]) - self.rows)
        last = [self.added[env][-1] for env in envs]
        self.replay.add(
            observation=np.array([entry[:2] for entry in last], np.float32),
            action=np.zeros((len(envs), 1)),
            reward=np.array([entry[1] for entry in last], np.float32),
            is_first=np.array([entry[1] == 0 for entry in last]),
            is_terminal=np.array([entry[2] for entry in last]),
            envs=envs,
        )

    @rule()
    def save_and_load(self) -> None:
        self.files += 1
        path = self.replay.save(self.root / f"r{self.files}")
        folder = self.root / f"maps{self.files}" if self.mapped else None
        self.replay = SequenceReplay.load(path, folder=folder)
        self.saved = None

    @precondition(lambda self: self.mapped)
    @rule(flushed=st.booleans())
    def reopen(self, flushed: bool) -> None:
        if flushed:
            self.replay.flush()
        folder = self.replay._folder
        self.replay = self._make(folder)

    @rule()
    def remember(self) -> None:
        self.saved = (self.replay.get_state(), [list(stream) for stream in self.added])
        self.saved_episodes, self.saved_ended = list(self.episodes), list(self.ended)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def go_back(self) -> None:
        assert self.saved is not None
        state, added = self.saved
        if any(old > len(stream) for old, stream in zip(self.oldest, added)):
            return  # the steps of then are no longer held
        self.replay.set_state(state)
        self.added = [list(stream) for stream in added]
        self.episodes, self.ended = list(self.saved_episodes), list(self.saved_ended)

    @rule(length=st.integers(1, 8), newest_first=st.booleans())
    def sample(self, length: int, newest_first: bool) -> None:
        if not self.replay.can_sample(length):
            return
        batch = self.replay.sample(16, length, newest_first)
        self._check(batch.observation["observation"].numpy(), batch.is_first.numpy(), batch.is_terminal.numpy())

    def _check(self, seen: np.ndarray, is_first: np.ndarray, is_terminal: np.ndarray) -> None:
        """Each sequence `(T, B, ...)` is a run of some stream, and every border in it has `is_first`."""
        episode, step = seen[..., 0].astype(int), seen[..., 1].astype(int)
        assert (is_first == (step == 0)).all()
        same = episode[1:] == episode[:-1]
        assert (is_first[1:] | same).all(), "a sequence crosses an episode without is_first"
        assert (step[1:][same] == step[:-1][same] + 1).all()
        assert (episode[1:][~same] == episode[:-1][~same] + 1).all()
        assert is_first[1:][is_terminal[:-1]].all(), "an episode goes on after its end"

    @invariant()
    def holds_the_newest_steps(self) -> None:
        if not hasattr(self, "added"):
            return
        assert len(self.replay) == sum(len(stream) - old for stream, old in zip(self.added, self.oldest))

    @invariant()
    def episodes_are_whole(self) -> None:
        if not hasattr(self, "added"):
            return
        for env, stream in enumerate(self.added):
            found = [(int(e.observation["observation"][0, 0]), len(e)) for e in self.replay.episodes(env)]
            assert found == self._complete(stream[self.oldest[env] :])

    @staticmethod
    def _complete(held: list[tuple[int, int, bool]]) -> list[tuple[int, int]]:
        """(episode, length) of those whose first step is held and that ended, or that another one follows."""
        complete = []
        for number in dict.fromkeys(entry[0] for entry in held):
            steps = [entry for entry in held if entry[0] == number]
            if steps[0][1] == 0 and (steps[-1][2] or number != held[-1][0]):
                complete.append((number, len(steps)))
        return complete


ReplayMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TestReplay = ReplayMachine.TestCase
