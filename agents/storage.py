"""Agents in files: one checkpoint holds what acting, dreaming and going on with training need.

world/...   the world's parameters            manifest: how to build world and agent, counters,
starts/...  states for dreams to begin from             where the replay is, the environments' states
agent/...   actor, critics, normalisers
optim/...   optimisers' moments
run/...     random states, the state being acted from, actions to restore the environments with
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from agents.arguments import (
    POLICY_NAMES,
    argument_names,
    arguments_from_json,
    arguments_to_json,
    check_env_and_policy,
)
from agents.policy import Carry, WorldModelPolicy
from agents.resuming import Resumable
from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError, space_from_json, space_to_json
from wmgym.dream.starts import StartStates
from wmgym.facts import LOST, episode_limit, facts_to_json, make_arguments, registered_limit
from wmgym.files import NONSENSE, with_zip_suffix
from wmgym.worlds.building import require_fit
from wmgym.worlds.store import STARTS, group, pack_world

log = logging.getLogger("wmgym")

AgentT = TypeVar("AgentT", bound="Storable")

_COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_updates_due",
    "_pretrained",
    "_total_timesteps",
    "_env_faults",
    "_skipped_updates",
    "_skipped_in_a_row",
)


class Storable(Resumable):
    """Saving and loading for `WorldModelAgent`. Nothing that is loaded is unpickled or run."""

    generator: torch.Generator
    interrupt_folder: Path
    _carry: Carry | None
    _held: tuple[Tensor, np.ndarray] | None
    optimizers: dict[str, torch.optim.Optimizer]
    _saved_starts: StartStates | None = None
    _saved_whole: tuple[int, Path | None] = (-1, None)
    """The last checkpoint from which the run can go on: after how many decisions, and where."""

    @property
    @abstractmethod
    def action_repeat(self) -> int:
        """Simulator steps per decision."""

    @abstractmethod
    def _plan_policy(self) -> WorldModelPolicy:
        """Builds the agent's networks, untrained, and nothing else of it."""

    # -- writing ----------------------------------------------------------------------------------------------

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> Path:  # type: ignore[override]
        """Write a checkpoint that `load` and `gym.make("Dream-v0", model=path)` open.

        Args:
            path: ".zip" is added when it has no suffix. The file appears whole or not at all.
            exclude: names of groups to leave out, such as `["optim"]` for a smaller file that is only acted from.
            include: `["replay_buffer"]` also writes the replay, to `<path>-replay.zip` beside it, so that
                `load(path).learn(...)` goes on as if it had not stopped.

        Returns:
            The path written.
        """
        path = with_zip_suffix(path)
        if "replay_buffer" in (include or ()) and self.replay_buffer is None and self._replay_state is not None:
            self._resume_replay(self._replay_state)  # it has been loaded, and has not learnt since
        if self.replay_buffer is not None:
            self.replay_buffer.flush()
            if "replay_buffer" in (include or ()):
                self._keep_replay_at(path.with_name(f"{path.stem}-replay.zip"))
        manifest, tensors = pack_world(self.policy.world, self.start_states())
        manifest |= {"env": self._env_facts(), "agent": self._agent_facts()}
        tensors |= self._behaviour_tensors() | self._optimizer_tensors()
        run, run_tensors = self._run_facts()
        manifest["run"] = run
        tensors |= run_tensors
        left_out = tuple(f"{name}/" for name in exclude or ())
        checkpoint.save(path, manifest, {k: v for k, v in tensors.items() if not k.startswith(left_out)})
        if not exclude and (self.buffer_folder or "replay_buffer" in (include or ())):
            self._saved_whole = (self.num_timesteps, path)
        return path

    def _save_interrupted(self) -> None:
        """Save what is needed to go on, unless a callback has just done it, and say where it is."""
        try:
            if self._saved_whole[0] != self.num_timesteps:
                self.save(self._emergency_path("interrupted"), include=self.replay_to_include)
        except CheckpointError as error:
            log.error("Interrupted after %d decisions, and not saved: %s", self.num_timesteps, error)
        else:
            log.warning("Interrupted after %d decisions; saved to %s.", self.num_timesteps, self._saved_whole[1])

    @property
    def replay_to_include(self) -> tuple[str, ...]:
        """`include` of a save from which learning can go on; a memory-mapped replay lies in a folder already."""
        return () if self.buffer_folder else ("replay_buffer",)

    def _emergency_path(self, reason: str) -> Path:
        name = self.env_settings["id"].replace("/", "-") if self.env_settings else "env"
        run = f"{type(self).__name__.lower()}-{name}-seed{self.seed}-{self.num_timesteps}"
        return self.interrupt_folder / f"{run}-{reason}.zip"

    def start_states(self, count: int = 256, length: int = 32) -> StartStates | None:
        """Posterior states for dreams to begin from: up to `count` first steps of episodes and as many others.

        None before anything was collected.
        """
        if self.replay_buffer is None or not self.replay_buffer.can_sample(length):
            return self._saved_starts
        return StartStates.from_replay(self.policy.world, self.replay_buffer, count, length)

    def _env_facts(self) -> dict[str, Any]:
        settings = self.env_settings or {}
        return facts_to_json(settings, self._episode_limit or registered_limit(settings, self.action_repeat))

    def _agent_facts(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "arguments": arguments_to_json(self),
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
        tensors = {"run/generator": self.generator.get_state(), "run/policy": self.policy.generator.get_state()}
        replay_state = self._replay_state if self.replay_buffer is None else self.replay_buffer.get_state()
        if replay_state is not None:
            reference = self._replay_reference
            facts["replay"] = {"file": str(reference.resolve()) if reference else None, "state": replay_state}
        if self._carry is not None and self._last_episode_starts is not None:
            facts["starts"] = [bool(start) for start in self._last_episode_starts]
            for name, leaf in zip(
                (*self._carry.state._fields, "action"), (*self._carry.state, self._carry.action), strict=True
            ):
                tensors[f"run/carry/{name}"] = leaf
        if self._held is not None:
            tensors["run/held/action"], tensors["run/held/left"] = self._held[0], torch.as_tensor(self._held[1])
        for i, state in enumerate(self._states_of_envs()):
            tensors[f"run/env/{i}"] = torch.as_tensor(np.asarray(state["actions"]))
            facts.setdefault("envs", []).append({k: v for k, v in state.items() if k != "actions"})
        return facts, tensors

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """The state of every network (`"policy"`) and of every optimiser (`"optimizers.<name>"`)."""
        optimizers = {f"optimizers.{name}": optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"policy": self.policy.state_dict(), **optimizers}

    # -- reading ----------------------------------------------------------------------------------------------

    @classmethod
    def load(
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
            custom_objects: arguments to replace, as `kwargs`; names that are no arguments are left out, because the RL
                Zoo always gives those of PPO.
            print_system_info: accepted for Stable-Baselines3's tools; the file's versions are in its manifest.
            force_reset: as in Stable-Baselines3; an environment that is given is reset before learning goes on.
            kwargs: arguments of the constructor to replace. Those of the world's objective (`reward_scale`, ...) change
                its configuration too, as long as that was not given whole. `buffer_size` has no effect on a replay
                that is read from a file. A `seed` begins the chance of acting and of updates anew, not that of the
                replay and of the environments.

        Raises:
            CheckpointError: naming the file and the fault: missing, damaged, foreign, of another algorithm or of
                other spaces.
            ValueError: for arguments that are of the environment: make it and give it, `env=...`.
        """
        manifest, tensors = checkpoint.load(path)
        facts = manifest.get("agent")
        if not isinstance(facts, dict) or "class" not in facts:
            raise CheckpointError(f"{path} holds a world but no agent: open it as a dream with gym.make('Dream-v0').")
        if facts["class"] != cls.__name__:
            raise CheckpointError(f"{path} holds a {facts['class']}, not a {cls.__name__}: use {facts['class']}.load.")
        if of_env := sorted({"n_envs", "observation", "action_repeat", "env_kwargs"} & kwargs.keys()):
            raise ValueError(
                f"{of_env[0]} is the environment's, which the file names: give another one instead, env=..."
            )
        known = set(argument_names(cls))
        changes = {name: value for name, value in (custom_objects or {}).items() if name in known} | kwargs
        try:
            arguments = arguments_from_json(facts["arguments"], manifest["world"]["kind"], str(path))
            make = partial(cast(Any, cls), None, device=device, _init_setup_model=False)
            agent: AgentT = make(**_changed(make, arguments, changes, path))
            agent._become(manifest, tensors, Path(path))
        except NONSENSE as error:
            if changes and not isinstance(error, LookupError):  # they may be what is wrong
                raise
            raise CheckpointError(f"{path} does not describe a {cls.__name__}: {error!r}.") from error
        if "seed" in changes:
            agent.set_random_seed(agent.seed)
        if env is not None:
            agent._move_to(env, force_reset, str(path))
        return agent

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Take over what `get_parameters` gave, or the parameters in a file that `save` wrote.

        Args:
            load_path_or_dict: the dictionary, or the path.
            exact_match: whether networks and optimisers must all be there.
            device: where a file is read to.

        Raises:
            ValueError: for a name that there is not, or (with `exact_match`) one that is missing.
        """
        parameters = load_path_or_dict
        if not isinstance(parameters, dict):
            parameters = type(self).load(parameters, device=device).get_parameters()
        names = {"policy", *(f"optimizers.{name}" for name in self.optimizers)}
        if unknown := sorted(set(parameters) - names) or (sorted(names - set(parameters)) if exact_match else []):
            raise ValueError(f"Parameters of {unknown} do not match: this agent has {sorted(names)}.")
        for name, state in parameters.items():
            module = self.policy if name == "policy" else self.optimizers[name.removeprefix("optimizers.")]
            module.load_state_dict(state)

    def _move_to(self, env: GymEnv | str, force_reset: bool, source: str) -> None:
        """Take an environment of the same spaces instead of the saved one; there may be more or fewer of it."""
        if not isinstance(env, str):
            check_env_and_policy(type(self).__name__, env, POLICY_NAMES[0])
            env = self._wrap_env(env, self.verbose)
            for name in ("observation_space", "action_space"):
                own, given = getattr(self, name), getattr(env, name)
                if own != given:
                    raise CheckpointError(
                        f"{source} was trained with the {name} {own}, but the env given has {given}. "
                        "wmgym.make_env makes environments as agents see them; others need an agent of their own."
                    )
            self.n_envs, self._carry = env.num_envs, None
        try:
            self.set_env(env, force_reset)  # type: ignore[arg-type]
        except ValueError as error:  # an id of other spaces, or of no environment
            raise CheckpointError(f"{source} cannot go on in {env}: {error}") from error

    def _become(self, manifest: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> None:
        facts, run = manifest["agent"], manifest["run"]
        self.observation_space = space_from_json(facts["observation_space"])
        self.action_space = space_from_json(facts["action_space"])
        self.n_envs = facts["n_envs"]
        env = manifest["env"]
        self.env_settings = None if LOST in env else make_arguments(env) or None
        self._episode_limit = episode_limit(env)
        own = {f"world.{name}": value for name, value in group(tensors, "world").items()} | group(tensors, "agent")
        try:
            require_fit(self._plan_policy, own, str(source))
        except CheckpointError as error:
            raise CheckpointError(f"{source} does not fit the agent it describes: {error}") from error
        self._setup_model()
        self.policy.load_state_dict(own)
        self._restore_optimizers(group(tensors, "optim"))
        if starts := group(tensors, STARTS):
            self._saved_starts = StartStates.from_tensors(self.policy.world.initial(1), starts).to(self.device)
        for name in _COUNTERS:
            setattr(self, name, run.get(name, getattr(self, name)))
        self.ep_info_buffer = deque(run["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if run_tensors := group(tensors, "run"):
            self._restore_run(run, run_tensors, source)

    def _restore_optimizers(self, tensors: dict[str, Tensor]) -> None:
        for name, optimizer in self.optimizers.items():
            parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in group(tensors, name).items():
                index, moment = key.split("/")
                state.setdefault(int(index), {})[moment] = _laid_out_as(parameters[int(index)], value)
            if state:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _restore_run(self, run: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> None:
        for generator, name in ((self.generator, "generator"), (self.policy.generator, "policy")):
            _restore_generator(generator, tensors[name].cpu(), source)
        replay = run.get("replay") or {}
        if replay.get("file"):
            beside = source.with_name(Path(replay["file"]).name)  # the two were moved together
            self._replay_reference = beside if beside.exists() else Path(replay["file"])
        self._replay_state = replay.get("state")
        if "starts" in run:
            self._last_episode_starts = np.array(run["starts"])
            leaves = group(tensors, "carry")
            blank = self.policy.initial_carry(self.n_envs)
            state = type(blank.state)(
                **{name: _kept(leaves.get(name), getattr(blank.state, name)) for name in blank.state._fields}
            )
            self._carry = Carry(state, leaves["action"].to(self.device))
        if "held/action" in tensors:
            self._held = tensors["held/action"].to(self.device), tensors["held/left"].cpu().numpy()
        self._env_states = [
            {**facts, "actions": tensors[f"env/{i}"].cpu().numpy()} for i, facts in enumerate(run.get("envs", []))
        ] or None


def _changed(
    make: Callable[..., Any], arguments: dict[str, Any], changes: dict[str, Any], source: Any
) -> dict[str, Any]:
    """The saved arguments with changes, from which the world's configuration follows if the saved one did."""
    saved = arguments.get("world_config")
    if saved is None or not changes or "world_config" in changes:
        return arguments | changes
    rest = {name: value for name, value in arguments.items() if name != "world_config"}
    before, after = make(**rest).world_config, make(**rest | changes).world_config
    if before == after:
        return arguments | changes
    if before != saved:
        raise ValueError(
            f"{source} has a world_config of its own, which {', '.join(changes)} would not change: give world_config."
        )
    return rest | changes


def _restore_generator(generator: torch.Generator, state: Tensor, source: Path) -> None:
    """Go on in the stream of chance that was saved, if it is of the same kind of device."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        log.warning("%s is from another kind of device: chance goes on otherwise than it would have there.", source)


def _kept(leaf: Tensor | None, blank: Tensor) -> Tensor:
    """A leaf of what is carried on, where it fits; a plan of another length (`horizon=`) does not."""
    return blank if leaf is None or leaf.shape != blank.shape else leaf.to(blank.device)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment with the strides of its parameter, without which the next update rounds differently."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value
