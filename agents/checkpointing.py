"""Training checkpoints written as a run goes, and the last good one found again."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stable_baselines3.common.callbacks import BaseCallback

from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError

if TYPE_CHECKING:
    from agents.base import WorldModelAgent

log = logging.getLogger("wmgym")

_NAME = re.compile(r"checkpoint-(\d+)\.zip")


class CheckpointEvery(BaseCallback):
    """Writes a checkpoint every so many decisions and when training ends, from which the run goes on exactly.

    `<folder>/checkpoint-<decisions>.zip` is the agent; its replay is `checkpoint-<decisions>-replay.zip` beside it, or,
    when it is memory-mapped, stays where it lies. The replay is written first and an older checkpoint removed last, so
    at every moment the newest `checkpoint-<decisions>.zip` is whole and has its replay. A checkpoint that cannot be
    written (a full disk, a folder that is read-only) is logged, and training goes on.

    Args:
        folder: where; nothing else should be in it.
        every: decisions between checkpoints; with a memory-mapped replay at most an eighth of `buffer_size`, or what
            was overwritten after the checkpoint is lost to it.
        keep: how many are kept, the newest ones.

    Raises:
        CheckpointError: when training starts and the folder holds checkpoints of a run that went further, which would
            be overwritten.

    Example:
        >>> import tempfile
        >>> from agents import Dreamer
        >>> folder = tempfile.mkdtemp()
        >>> agent = Dreamer("CartPole-v1", learning_starts=100, seed=0)
        >>> _ = agent.learn(60, callback=CheckpointEvery(folder, every=20))
        >>> again = Dreamer.load(last_checkpoint(folder))
        >>> again.learn(40, reset_num_timesteps=False).num_timesteps
        100
    """

    model: WorldModelAgent  # a BaseAlgorithm that saves its replay too

    def __init__(self, folder: str | Path, every: int, keep: int = 1) -> None:
        super().__init__()
        if every < 1 or keep < 1:
            raise ValueError(f"every={every} and keep={keep} must be 1 or more.")
        self.folder, self.every, self.keep = Path(folder), every, keep
        self._written: tuple[int, Path] | None = None
        self._stage: str | None = None

    def _on_training_start(self) -> None:
        further = [path for steps, path in _checkpoints(self.folder) if steps > self.model.num_timesteps]
        if any(_fault_of(path) is None for path in further):
            raise CheckpointError(
                f"{self.folder} holds {further[-1].name}, of a run that went further than this one "
                f"({self.model.num_timesteps} decisions): load it to go on, or choose another folder."
            )
        self._stage = getattr(self.model, "_stage", None)
        for leftover in self.folder.glob(".checkpoint-*.tmp"):  # of a program that was killed while it wrote
            _remove(leftover)

    def _on_step(self) -> bool:
        before = self.model.num_timesteps - self.training_env.num_envs
        if self.model.num_timesteps // self.every > before // self.every:
            self.write()
        return True

    def _on_rollout_end(self) -> None:
        """World Models calls it after each of its stages too, which may take an hour without a decision."""
        stage = getattr(self.model, "_stage", None)
        if stage != self._stage:
            self.write()
        self._stage = stage

    def _on_training_end(self) -> None:
        # World Models goes through stages without taking steps, and forgets then what was saved before.
        if self._written != (self.model.num_timesteps, self.model._saved_whole[1]):
            self.write()

    def write(self) -> Path | None:
        """Write a checkpoint now.

        Returns:
            Its path; None if it could not be written, which is logged.
        """
        path = self.folder / f"checkpoint-{self.model.num_timesteps:09d}.zip"
        try:
            self.model.save(path, include=self.model.replay_to_include)
        except CheckpointError as error:
            log.error("%s Training goes on; the last good checkpoint is %s.", error, self._last())
            if not path.exists():
                _remove(_replay_beside(path))  # the half of it that found room
            return None
        self._written = (self.model.num_timesteps, path)
        self._remove_others()
        return path

    def _last(self) -> Path | str:
        try:
            return last_checkpoint(self.folder)
        except CheckpointError:
            return "none yet"

    def _remove_others(self) -> None:
        steps_kept = sorted(steps for steps, _ in _checkpoints(self.folder) if steps <= self.model.num_timesteps)
        for steps, path in _checkpoints(self.folder):
            if steps not in steps_kept[-self.keep :]:
                _remove(path)
                _remove(_replay_beside(path))


def last_checkpoint(folder: str | Path) -> Path:
    """The newest readable checkpoint that `CheckpointEvery` left in a folder.

    Damaged ones are passed over with a warning.

    Raises:
        CheckpointError: if there is none.
    """
    for _, path in reversed(_checkpoints(Path(folder))):
        fault = _fault_of(path)
        if fault is None:
            return path
        log.warning("%s An older checkpoint is looked for.", fault)
    raise CheckpointError(f"{folder} holds no checkpoint to go on from (checkpoint-<decisions>.zip).")


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(decisions, path), the oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.zip")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _replay_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-replay.zip")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s.", path, error)


def _fault_of(path: Path) -> str | None:
    try:
        checkpoint.load(path)
    except CheckpointError as error:
        return str(error)
    return None
