"""Going on after a file was loaded: the replay, and the environments exactly where they were."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.interrupt import CONNECTION_LOST
from agents.policy import WorldModelPolicy
from wmgym.replay import SequenceReplay
from wmgym.replay_storage import INDEX

log = logging.getLogger("wmgym")


class Resumable(BaseAlgorithm):
    """The replay of `WorldModelAgent`, and what `learn` needs after `load`."""

    policy: WorldModelPolicy
    seed: int
    replay_buffer: SequenceReplay | None
    env_settings: dict[str, Any] | None
    buffer_size: int
    buffer_folder: str | Path | None
    _replay_reference: Path | None = None
    _replay_state: dict[str, Any] | None = None
    _env_states: list[dict[str, Any]] | None = None
    _replay_written: tuple[Any, ...] | None = None

    def _prepare_replay(self) -> None:
        """A replay before learning begins; what a folder holds already stays."""
        if self.replay_buffer is not None:
            return
        self.replay_buffer = self._open_replay()
        if held := len(self.replay_buffer):
            log.warning("%s holds %d steps already: they are learned from too.", self.buffer_folder, held)

    def _open_replay(self) -> SequenceReplay:
        return SequenceReplay(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.n_envs,
            folder=self.buffer_folder,
            seed=self.seed,
        )

    def save_replay_buffer(self, path: Any) -> None:
        """Write the replay to a file of its own (JSON and arrays, no pickle)."""
        if self.replay_buffer is None:
            raise ValueError("There is no replay to save: learn first.")
        self._replay_reference = self.replay_buffer.save(path)

    def _keep_replay_at(self, path: Path) -> None:
        """`save_replay_buffer`, unless it wrote these very steps to that file before: they may be gigabytes."""
        if self._replay_written is None or self._replay_written != self._steps_and_file(path):
            self.save_replay_buffer(path)
            self._replay_written = self._steps_and_file(path)
        self._replay_reference = path  # another file may have been written since

    def _steps_and_file(self, path: Path) -> tuple[Any, ...] | None:
        """What changes when steps are stored, or when anybody writes the file; None where there is none."""
        if self.replay_buffer is None or not path.exists():
            return None
        file = path.stat()
        return path.resolve(), self.replay_buffer.get_state()["count"], file.st_size, file.st_mtime_ns

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """Read a replay that `save_replay_buffer` wrote.

        Args:
            path: the file.
            truncate_last_traj: the environments have moved on: what is collected next does not follow from the
                last steps in the file. An agent that was just loaded, from the same moment, goes on where it was.

        Raises:
            CheckpointError: for a file that cannot be read, or a replay of other spaces.
            ValueError: for a replay of another number of environments.
        """
        replay = SequenceReplay.load(path, self.observation_space, self.action_space, folder=self.buffer_folder)
        if replay.n_envs != self.n_envs:
            raise ValueError(
                f"{path} holds {replay.n_envs} streams, and this agent has {self.n_envs} environments: set_env to as "
                "many first."
            )
        self.replay_buffer, self._replay_written = replay, None
        if not truncate_last_traj:
            return
        saved = self._replay_state
        if self._env_states is not None and saved is not None and replay.get_state()["count"] == saved["count"]:
            replay.set_state(saved)  # the file may have been written before the agent's
        else:
            replay.mark_cut()

    def _states_of_envs(self) -> list[dict[str, Any]]:
        """What each environment can be restored from; empty where they cannot be."""
        if self._env_states is not None:
            return self._env_states
        if self.env is None or self.env_settings is None or self._last_obs is None:
            return []
        try:
            return self.env.env_method("get_state")
        except CONNECTION_LOST:
            log.warning("The environments are gone: a run that goes on from here begins new episodes.")
            return []

    def _resume(self) -> None:
        """Before learning goes on after `load`: the replay and, where they can be restored, the environments."""
        if self.replay_buffer is None and self._replay_state is not None:
            self._resume_replay(self._replay_state)
        if self.env is None and self.env_settings is not None:
            states = self._env_states
            self.set_env(self.env_settings["id"])
            if states is not None and self.replay_buffer is not None:
                self._resume_envs(states)

    def _resume_replay(self, state: dict[str, Any]) -> None:
        """The memory-mapped folder if there is one, else the file; back to the moment of saving if it still can."""
        path = self._replay_reference
        if self.buffer_folder is not None and (Path(self.buffer_folder) / INDEX).is_file():
            self.replay_buffer = self._open_replay()
        elif path is not None and path.exists():
            try:
                self.load_replay_buffer(path, truncate_last_traj=False)
            except ValueError as error:
                log.warning("Learning goes on with an empty replay: %s", error)
        elif (gone := path or self.buffer_folder) is not None:
            log.warning("The replay %s is gone: learning goes on with an empty one.", gone)
        if self.replay_buffer is None:
            return
        try:
            self.replay_buffer.set_state(state)
        except ValueError:  # of another moment
            self.replay_buffer.mark_cut()

    def _resume_envs(self, states: list[dict[str, Any]]) -> None:
        assert self.env is not None
        observations = [self.env.env_method("set_state", state, indices=[i])[0] for i, state in enumerate(states)]
        if isinstance(self.observation_space, spaces.Dict):
            self._last_obs = {key: np.stack([o[key] for o in observations]) for key in self.observation_space.spaces}
        else:
            self._last_obs = np.stack(observations)
