"""Agents in files: one checkpoint holds what acting, dreaming and going on with training need.

    world/...   the world's parameters            manifest: how to build world and agent, counters,
    starts/...  states for dreams to begin from             where the replay is, the environments' states
    agent/...   actor, critics, normalisers
    optim/...   optimisers' moments
    run/...     random states, the state being acted from, actions to restore the environments with
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections import deque
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from agents.policy import Carry
from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError, space_from_json, space_to_json
from wmgym.dream.starts import StartStates
from wmgym.random import ModeNoise
from wmgym.replay import SequenceReplay
from wmgym.spaces import action_size
from wmgym.worlds.base import SequenceBatch, State, World, concat_states, index_state
from wmgym.worlds.store import WORLDS, config_from_dict, group, pack_world

log = logging.getLogger("wmgym")

AgentT = TypeVar("AgentT", bound="Storable")

_NOT_ARGUMENTS = {"self", "env", "policy", "policy_kwargs", "device", "options", "_init_setup_model"}
_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_updates_due", "_pretrained", "_total_timesteps")


class Storable(BaseAlgorithm):
    """Saving and loading for `WorldModelAgent`. Nothing that is loaded is unpickled or run."""

    replay_buffer: SequenceReplay | None
    env_settings: dict[str, Any] | None
    _carry: Carry | None
    _replay_reference: Path | None = None
    _replay_state: dict[str, Any] | None = None
    _env_states: list[dict[str, Any]] | None = None

    # -- writing ----------------------------------------------------------------------------------------------

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> Path:
        """Write a checkpoint that `load` and `gym.make("Dream-v0", model=path)` open.

        Args:
            path: ".zip" is added when it has no suffix. The file appears whole or not at all.
            exclude: names of groups to leave out, such as `["optim"]` for a smaller file that is only acted from.
            include: `["replay_buffer"]` also writes the replay, to `<path>-replay.zip` beside it, so that
                `load(path).learn(...)` goes on as if it had not stopped.

        Returns:
            The path written.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".zip")
        if "replay_buffer" in (include or ()) and self.replay_buffer is not None:
            self.save_replay_buffer(path.with_name(f"{path.stem}-replay.zip"))
        manifest, tensors = pack_world(self.policy.world, self.start_states())
        manifest |= {"env": self._env_facts(), "agent": self._agent_facts()}
        tensors |= self._behaviour_tensors() | self._optimizer_tensors()
        run, run_tensors = self._run_facts()
        manifest["run"] = run
        tensors |= run_tensors
        left_out = tuple(f"{name}/" for name in exclude or ())
        return checkpoint.save(path, manifest, {k: v for k, v in tensors.items() if not k.startswith(left_out)})

    def _save_interrupted(self) -> Path:
        name = self.env_settings["id"].replace("/", "-") if self.env_settings else "env"
        self.interrupt_folder.mkdir(parents=True, exist_ok=True)
        path = self.interrupt_folder / f"{type(self).__name__.lower()}-{name}-interrupted.zip"
        return self.save(path, include=["replay_buffer"])

    def save_replay_buffer(self, path: Any) -> None:
        """Write the replay to a file of its own (JSON and arrays, no pickle)."""
        if self.replay_buffer is None:
            raise ValueError("There is no replay to save: learn first.")
        self._replay_reference = self.replay_buffer.save(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """Read a replay that `save_replay_buffer` wrote.

        Args:
            path: the file.
            truncate_last_traj: the environments have moved on: what is collected next does not follow from the
                last steps in the file.
        """
        self.replay_buffer = SequenceReplay.load(path, self.observation_space, self.action_space)
        if truncate_last_traj:
            self.replay_buffer.mark_cut()

    @torch.no_grad()
    def start_states(self, count: int = 256, length: int = 32) -> StartStates | None:
        """Posterior states for dreams to begin from: up to `count` first steps of episodes and as many others.

        None before anything was collected.
        """
        if self.replay_buffer is None or not self.replay_buffer.can_sample(length):
            return None
        noise = ModeNoise(self.device)
        first = _observe_first(self.policy.world, self.replay_buffer.first_steps(count, self.device), noise)
        before = self.replay_buffer.get_state()
        batch = self.replay_buffer.sample(count, length, device=self.device)
        self.replay_buffer.set_state(before)  # saving changes nothing about what is sampled next
        later = _filter_last(self.policy.world, batch, noise)
        states = [first, later] if len(first[0]) else [later]
        is_first = torch.zeros(sum(len(s[0]) for s in states), dtype=torch.bool, device=self.device)
        is_first[: len(first[0])] = True
        return StartStates(concat_states(states), is_first)

    def _env_facts(self) -> dict[str, Any]:
        longest = max((info["l"] for info in self.ep_info_buffer or ()), default=None)
        return {**(self.env_settings or {}), "max_episode_steps": longest}

    def _agent_facts(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "arguments": {name: _to_json(name, getattr(self, name)) for name in _argument_names(type(self))},
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "n_envs": self.n_envs,
        }

    def _behaviour_tensors(self) -> dict[str, Tensor]:
        own = self.policy.state_dict()
        return {f"agent/{name}": value for name, value in own.items() if not name.startswith("world.")}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                for key, value in moments.items():
                    tensors[f"optim/{name}/{index}/{key}"] = torch.as_tensor(value)
        return tensors

    def _run_facts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Counters as JSON, and the random and current states as tensors."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        facts["episodes"] = [{key: float(info[key]) for key in ("r", "l", "t")} for info in self.ep_info_buffer or ()]
        tensors = {"run/generator": self.generator.get_state(), "run/policy": self.policy.noise.generator.get_state()}
        if self.replay_buffer is not None:
            facts["replay"] = {
                "file": str(self._replay_reference.resolve()) if self._replay_reference else None,
                "state": self.replay_buffer.get_state(),
            }
        if self._carry is not None and self._last_episode_starts is not None:
            facts["starts"] = [bool(start) for start in self._last_episode_starts]
            for name, leaf in zip(
                (*self._carry.state._fields, "action"), (*self._carry.state, self._carry.action), strict=True
            ):
                tensors[f"run/carry/{name}"] = leaf
        for i, state in enumerate(self._states_of_envs()):
            tensors[f"run/env/{i}"] = torch.as_tensor(np.asarray(state["actions"]))
            facts.setdefault("envs", []).append({k: v for k, v in state.items() if k != "actions"})
        return facts, tensors

    def _states_of_envs(self) -> list[dict[str, Any]]:
        """What each environment can be restored from; empty where they cannot be."""
        if self.env is None or self.env_settings is None or self._last_obs is None:
            return []
        return self.env.env_method("get_state")

    # -- reading ----------------------------------------------------------------------------------------------

    @classmethod
    def load(  # type: ignore[override]
        cls: type[AgentT],
        path: Any,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> AgentT:
        """Read an agent that `save` wrote.

        Args:
            path: the file.
            env: an environment to go on learning in. None: the agent acts at once, and `learn` makes the
                environment it was saved with and continues there, exactly where it was.
            device: where to.
            custom_objects: arguments to replace, as `kwargs` (Stable-Baselines3's name for it).
            print_system_info: accepted for Stable-Baselines3's tools; the file's versions are in its manifest.
            force_reset: as in Stable-Baselines3; an environment that is given is reset before learning goes on.
            kwargs: arguments of the constructor to replace.

        Raises:
            CheckpointError: naming the file and the fault: missing, damaged, foreign, of another algorithm or of
                other spaces.
        """
        manifest, tensors = checkpoint.load(path)
        facts = manifest.get("agent")
        if not isinstance(facts, dict):
            raise CheckpointError(f"{path} holds a world but no agent: open it as a dream with gym.make('Dream-v0').")
        if facts["class"] != cls.__name__:
            raise CheckpointError(f"{path} holds a {facts['class']}, not a {cls.__name__}: use {facts['class']}.load.")
        arguments = _from_json(facts["arguments"], manifest["world"]["kind"], str(path))
        agent = cls(None, device=device, _init_setup_model=False, **{**arguments, **(custom_objects or {}), **kwargs})
        agent._become(manifest, tensors, str(path))
        if env is not None:
            _check_env(agent, env, str(path))
            agent.set_env(env, force_reset)
        return agent

    def _become(self, manifest: dict[str, Any], tensors: dict[str, Tensor], source: str) -> None:
        facts, run = manifest["agent"], manifest["run"]
        self.observation_space = space_from_json(facts["observation_space"])
        self.action_space = space_from_json(facts["action_space"])  # type: ignore[assignment]
        self.n_envs = facts["n_envs"]
        settings = {key: value for key, value in manifest["env"].items() if key != "max_episode_steps"}
        self.env_settings = settings or None
        self._setup_model()
        own = {f"world.{name}": value for name, value in group(tensors, "world").items()} | group(tensors, "agent")
        try:
            self.policy.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{source} does not fit the agent it describes: {error}") from error
        self._restore_optimizers(group(tensors, "optim"))
        for name in _COUNTERS:
            setattr(self, name, run[name])
        self.ep_info_buffer = deque(run["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        self._restore_run(run, group(tensors, "run"))

    def _restore_optimizers(self, tensors: dict[str, Tensor]) -> None:
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in group(tensors, name).items():
                index, moment = key.split("/")
                state.setdefault(int(index), {})[moment] = value
            if state:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _restore_run(self, run: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.generator.set_state(tensors["generator"].cpu())
        self.policy.noise.generator.set_state(tensors["policy"].cpu())
        replay = run.get("replay") or {}
        self._replay_reference = Path(replay["file"]) if replay.get("file") else None
        self._replay_state = replay.get("state")
        if "starts" in run:
            self._last_episode_starts = np.array(run["starts"])
            leaves = group(tensors, "carry")
            blank = self.policy.initial_carry(self.n_envs)
            state = type(blank.state)(**{name: leaves[name].to(self.device) for name in blank.state._fields})
            self._carry = Carry(state, leaves["action"].to(self.device))
        self._env_states = [
            {**facts, "actions": tensors[f"env/{i}"].cpu().numpy()} for i, facts in enumerate(run.get("envs", []))
        ] or None

    def _resume(self) -> None:
        """Before learning goes on after `load`: the replay and, where they can be restored, the environments."""
        if self.replay_buffer is None and self._replay_reference is not None:
            self._resume_replay(self._replay_reference)
        if self.env is None and self.env_settings is not None:
            self.set_env(self.env_settings["id"])
            self._resume_envs()

    def _resume_replay(self, path: Path) -> None:
        if not path.exists():
            log.warning("The replay %s is gone: learning goes on with an empty one.", path)
            return
        self.load_replay_buffer(path, truncate_last_traj=False)
        assert self.replay_buffer is not None
        if self._replay_state and self.replay_buffer.get_state()["count"] == self._replay_state["count"]:
            self.replay_buffer.set_state(self._replay_state)
        else:
            self.replay_buffer.mark_cut()

    def _resume_envs(self) -> None:
        assert self.env is not None
        whole = self.replay_buffer is not None and self._env_states is not None
        if not whole:
            return
        observations = [
            self.env.env_method("set_state", state, indices=[i])[0] for i, state in enumerate(self._env_states or ())
        ]
        if isinstance(self.observation_space, spaces.Dict):
            self._last_obs = {key: np.stack([o[key] for o in observations]) for key in self.observation_space.spaces}
        else:
            self._last_obs = np.stack(observations)
        self._env_states = None


def _argument_names(cls: type) -> list[str]:
    """Every argument of the constructors, which agents keep as attributes of the same name."""
    names = [name for base in cls.__mro__ if "__init__" in base.__dict__ for name in _signature(base)]
    return sorted(set(names) - _NOT_ARGUMENTS)


def _signature(base: type) -> list[str]:
    return list(inspect.signature(base.__init__).parameters) if base.__module__.startswith("agents.") else []  # type: ignore[misc]


def _to_json(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        if not isinstance(value, utils.ConstantSchedule):
            log.warning("%s is a function, which no checkpoint holds: its present value is saved.", name)
        return float(value(1.0))
    return value


def _from_json(arguments: dict[str, Any], kind: str, source: str) -> dict[str, Any]:
    config = arguments.get("world_config")
    if config is None:
        return arguments
    if kind not in WORLDS:
        raise CheckpointError(f"{source} holds a world of the unknown kind {kind!r}.")
    return {**arguments, "world_config": config_from_dict(WORLDS[kind].load()[1], config, f"{source}: world_config")}


def _check_env(agent: Storable, env: Any, source: str) -> None:
    if isinstance(env, str):
        return
    for name in ("observation_space", "action_space"):
        own, given = getattr(agent, name), getattr(env, name)
        if own != given:
            raise CheckpointError(f"{source} was trained with the {name} {own}, but the environment given has {given}.")


def _observe_first(world: World, observation: dict[str, Tensor], noise: ModeNoise) -> State:
    count = len(next(iter(observation.values())))
    action = torch.zeros(count, action_size(world.action_space), device=world.device)
    is_first = torch.ones(count, dtype=torch.bool, device=world.device)
    return world.observe(world.initial(count), action, observation, is_first, noise)


def _filter_last(world: World, batch: SequenceBatch, noise: ModeNoise) -> State:
    """The posterior after each sequence; those that end in a first or last step of an episode are left out."""
    state = world.initial(batch.shape[1])
    for t in range(batch.shape[0]):
        observation = {key: value[t] for key, value in batch.observation.items()}
        state = world.observe(state, batch.action[t], observation, batch.is_first[t], noise)
    return index_state(state, ~(batch.is_first[-1] | batch.is_terminal[-1]))
