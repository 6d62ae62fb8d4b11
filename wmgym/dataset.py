"""Recorded episodes as data sets that worlds are fitted to.

A data set is a folder: `dataset.json` (spaces, and what is known of the environment) and one `.npz` an episode,

    observation or observation/<key>   (T + 1, ...)   what was seen, the reset's first
    action                             (T + 1, ...)   in the environment's units; action[t] led to observation[t]
    reward                             (T + 1,)       received on reaching observation[t]
    is_terminal                        (T + 1,)       bool; all False when the episode was cut
    is_truncated                       ()             bool; whether the environment cut it, not who recorded it

where `action[0]` and `reward[0]` say nothing. This is the alignment of `wmgym.worlds.base`. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from wmgym.checkpoint import space_from_json, space_to_json
from wmgym.dream.convert import ActionConverter
from wmgym.facts import (
    LIMIT,
    LOST,
    episode_limit,
    facts_from_json,
    facts_to_json,
    in_decisions,
    make_arguments,
    with_limit,
)
from wmgym.files import DAMAGE, NONSENSE, CheckpointError, atomic_writer, existing
from wmgym.replay import SequenceReplay
from wmgym.replay_files import read_json, write_json
from wmgym.spaces import OBSERVATION, action_size, as_dict, as_dict_space, copied

INDEX = "dataset.json"
FORMAT = "wmgym-episodes"
_STEPS_AT_ONCE = 1000


@runtime_checkable
class Predicts(Protocol):
    """What acts: every Stable-Baselines3 algorithm, and every agent of this project."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """An action, and what to remember."""


Acting = Predicts | Callable[[Any], Any]
"""Something with Stable-Baselines3's `predict`, or a function of the observation."""


@dataclass
class RecordedEpisode:
    """An episode as it was lived; aligned as this module's head shows.

    Attributes:
        observation: by key, `(T + 1, ...)`.
        action: `(T + 1, ...)`, in the environment's units.
        reward: `(T + 1,)`.
        terminated: whether it truly ended, instead of being cut.
        truncated: whether the environment cut it; False also where the recording ended, or where no one knows.
    """

    observation: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    truncated: bool = False


@dataclass
class Dataset:
    """Episodes in the project's replay.

    Attributes:
        replay: all steps.
        env: what is known of the environment (`wmgym.facts`), as in a world's checkpoint.
    """

    replay: SequenceReplay
    env: dict[str, Any]


# -- recording ------------------------------------------------------------------------------------------------


def record(
    env: gym.Env | str,
    policy: Acting | None,
    steps: int,
    folder: str | Path = "recorded",
    *,
    deterministic: bool = False,
    seed: int = 0,
    **env_kwargs: Any,
) -> Path:
    """Let a policy act, and write every episode to a folder.

    Args:
        env: an environment, or an id for `wmgym.make_env`. Of an environment the data set keeps the id, but not its
            wrappers: what judges an agent in reality then asks for it again (`env=...`).
        policy: something with `predict`, a function of the observation, or None for random actions.
        steps: decisions; the last episode is cut there.
        folder: where to; episodes that it holds already stay, and the numbers of new ones follow theirs.
        deterministic: passed to `predict`.
        seed: of the first reset and of random actions.
        env_kwargs: further arguments of `wmgym.make_env`.

    Returns:
        The folder.

    Raises:
        ValueError: for fewer than 1 step, arguments that an environment does not take, or the folder of another
            environment, or of one that was made otherwise.

    Example:
        >>> import tempfile
        >>> folder = record("CartPole-v1", None, 50, tempfile.mkdtemp())
        >>> len(load_dataset(folder).replay) > 50
        True
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}.")
    folder = Path(folder)
    made, facts = _environment(env, env_kwargs)
    try:
        _write_index(folder, made, facts)
        made.action_space.seed(seed)
        next_seed: int | None = seed
        while steps > 0:
            episode = _live(made, policy, steps, deterministic, next_seed)
            save_episode(folder, episode)
            steps, next_seed = steps - len(episode.reward) + 1, None
    finally:
        if made is not env:
            made.close()
    return folder


def save_episode(folder: str | Path, episode: RecordedEpisode) -> Path:
    """Write an episode beside those that are there; the file appears whole or not at all."""
    folder = Path(folder)
    prefix = "" if set(episode.observation) == {OBSERVATION} else f"{OBSERVATION}/"
    arrays: dict[str, Any] = {prefix + key: value for key, value in episode.observation.items()}
    arrays |= {"action": episode.action, "reward": episode.reward, "is_truncated": np.array(episode.truncated)}
    arrays["is_terminal"] = np.zeros(len(episode.reward), bool)
    arrays["is_terminal"][-1] = episode.terminated
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / f"{_next_number(folder):06d}.npz"
        try:
            with atomic_writer(path, exclusive=True) as file:
                np.savez_compressed(file, **arrays)
        except FileExistsError:  # another recorder has taken the number
            continue
        return path


def _next_number(folder: Path) -> int:
    """The one after those that are there."""
    return 1 + max((int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal()), default=-1)


def _environment(env: gym.Env | str, env_kwargs: dict[str, Any]) -> tuple[gym.Env, dict[str, Any]]:
    if isinstance(env, str):
        from wmgym.real import make_env  # it brings MuJoCo, which data sets of other environments need not

        made = make_env(env, **env_kwargs)
        return made, facts_to_json({"id": env, **env_kwargs}, _time_limit(made))
    if env_kwargs:
        raise ValueError(f"{sorted(env_kwargs)} are for environments named by an id; this one is made already.")
    known = {"id": env.spec.id, LOST: ["wrappers"]} if env.spec else {}
    return env, with_limit(known, _time_limit(env))


def _time_limit(env: gym.Env) -> int | None:
    """The longest episode in decisions, where the environment tells."""
    repeat = env.get_wrapper_attr("repeat") if env.has_wrapper_attr("repeat") else 1
    return in_decisions(env.spec.max_episode_steps if env.spec else None, repeat)


def _write_index(folder: Path, env: gym.Env, facts: dict[str, Any]) -> None:
    """What the episodes are of; a folder that holds others is refused."""
    named = {name: space_to_json(getattr(env, name)) for name in ("observation_space", "action_space")}
    if (folder / INDEX).exists():
        held = read_json(folder / INDEX)
        for name, space in named.items():
            if held.get(name) != space:
                raise ValueError(f"{folder} holds episodes of another {name}: choose another folder.")
        before, now = make_arguments(facts_from_json(held.get("env"), folder / INDEX)), make_arguments(facts)
        if before != json.loads(json.dumps(now)):
            raise ValueError(f"{folder} holds episodes of the environment {before}, not {now}: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / INDEX, {"format": FORMAT, **named, "env": facts})


def _live(env: gym.Env, policy: Acting | None, most: int, deterministic: bool, seed: int | None) -> RecordedEpisode:
    """One episode, of at most `most` steps."""
    observation, _ = env.reset(seed=seed)
    act = _actor(env, policy, deterministic)
    # Copies, as an environment or a policy may write what comes next into the same arrays.
    seen, done, rewards = [copied(observation)], [np.zeros_like(env.action_space.sample())], [0.0]
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) <= most:
        action = act(observation)
        done.append(np.array(action))
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(copied(observation))
        rewards.append(float(reward))
    by_key = {key: np.stack([each[key] for each in seen]) for key in as_dict_space(env.observation_space)}
    return RecordedEpisode(by_key, np.stack(done), np.array(rewards, np.float32), terminated, truncated)


def _actor(env: gym.Env, policy: Acting | None, deterministic: bool) -> Callable[[Any], Any]:
    """A function of the observation that remembers within one episode what the policy wants remembered."""
    if policy is None:
        return lambda _: env.action_space.sample()
    if not isinstance(policy, Predicts):
        return policy  # a function
    state: Any = None

    def act(observation: Any) -> Any:
        nonlocal state
        action, state = policy.predict(observation, state, np.array([state is None]), deterministic)
        return action

    return act


# -- reading --------------------------------------------------------------------------------------------------


def load_dataset(data: Any) -> Dataset:
    """Recorded episodes of any of the kinds that worlds can be fitted to.

    Args:
        data: a folder as `record` writes it, a replay (or the path of a saved one, `*.zip`), or a Minari data set
            (`minari.load_dataset(...)`; extra `minari`); or a list of such, which are learnt from together.

    Raises:
        CheckpointError: naming the file and the fault.
        TypeError: for anything else.
        ValueError: for a list of none, or of data whose spaces differ.
    """
    if isinstance(data, list | tuple):
        return _join([load_dataset(one) for one in data])
    if isinstance(data, Dataset):
        return data
    if isinstance(data, SequenceReplay):
        return Dataset(data, {})
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if path.is_dir():
            return _load_folder(path)
        if existing(path) is None:
            raise CheckpointError(f"{path} does not exist: name a folder of episodes (wmgym.record) or a saved replay.")
        return Dataset(SequenceReplay.load(path), {})
    if callable(getattr(data, "iterate_episodes", None)):
        return _load_minari(data)
    raise TypeError(
        f"A data set is a folder of episodes (wmgym.record), a SequenceReplay or a Minari data set, not a "
        f"{type(data).__name__}."
    )


def _join(parts: list[Dataset]) -> Dataset:
    """All steps of all parts; the environment is what the first that knows one says, its limit the longest known."""
    if not parts:
        raise ValueError("There is no data set in the list: name one or more.")
    first = parts[0].replay
    for part in parts[1:]:
        for name in ("observation_space", "action_space"):
            if getattr(part.replay, name) != getattr(first, name):
                raise ValueError(
                    f"Data sets of one world have one {name}, but these have {getattr(first, name)} and "
                    f"{getattr(part.replay, name)}."
                )
    joined = SequenceReplay(sum(len(part.replay) for part in parts), first.observation_space, first.action_space)
    for replay, env in [(part.replay, env) for part in parts for env in range(part.replay.n_envs)]:
        joined.mark_cut()
        # An episode whose beginning is lost is left out: its first step would be taken for one.
        for steps in replay.steps(env, _STEPS_AT_ONCE, begun=True):
            for t in range(len(steps["reward"])):
                observation = {key: value[t][None] for key, value in steps["observation"].items()}
                joined.add(observation, **{key: steps[key][t][None] for key in steps if key != "observation"})
    facts = next((part.env for part in parts if part.env), {})
    limits = [limit for part in parts if (limit := episode_limit(part.env))]
    return Dataset(joined, with_limit(facts, max(limits, default=None)) if facts else {})


def _load_folder(folder: Path) -> Dataset:
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise CheckpointError(f"{folder / INDEX} does not say {FORMAT!r}: it is no data set of wmgym.")
    try:
        observation_space, action_space = (space_from_json(index[f"{it}_space"]) for it in ("observation", "action"))
    except NONSENSE as error:
        raise CheckpointError(f"{folder / INDEX} does not tell the spaces of its episodes: {error}.") from error
    paths = sorted(folder.glob("*.npz"))
    episodes = [(str(path), _load_episode(path)) for path in paths]
    if not episodes:
        raise CheckpointError(f"{folder} holds no episode (*.npz).")
    facts = facts_from_json(index.get("env"), folder / INDEX)
    return _as_dataset(iter(episodes), observation_space, action_space, facts)


def _load_episode(path: Path) -> RecordedEpisode:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = f"{OBSERVATION}/"
            observation = {
                name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(OBSERVATION)
            }
            ended = bool(arrays["is_terminal"][-1])
            cut = bool(arrays["is_truncated"]) if "is_truncated" in arrays else False  # files of before have none
            return RecordedEpisode(observation, arrays["action"], arrays["reward"], ended, cut)
    except (*DAMAGE, LookupError) as error:
        raise CheckpointError(f"{path} cannot be read as an episode: {error}.") from error


def _load_minari(data: Any) -> Dataset:
    spec = data.env_spec
    facts = {} if spec is None else {"id": spec.id, LIMIT: spec.max_episode_steps}
    keys = list(as_dict_space(data.observation_space))

    def episodes() -> Iterator[tuple[str, RecordedEpisode]]:
        for episode in data.iterate_episodes():
            observation = {key: np.asarray(as_dict(episode.observations)[key]) for key in keys}
            actions = np.asarray(episode.actions)
            action = np.concatenate([np.zeros_like(actions[:1]), actions])
            reward = np.concatenate([[0.0], episode.rewards])
            ends = bool(episode.terminations[-1]), bool(episode.truncations[-1])
            yield f"Minari episode {episode.id}", RecordedEpisode(observation, action, reward, *ends)

    return _as_dataset(episodes(), data.observation_space, data.action_space, facts)


def _as_dataset(
    episodes: Iterator[tuple[str, RecordedEpisode]],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    env: dict[str, Any],
) -> Dataset:
    """Episodes in a replay that is as large as they are."""
    lived = list(episodes)
    replay = SequenceReplay(sum(len(episode.reward) for _, episode in lived), observation_space, action_space)
    read_actions = ActionConverter(action_space)
    for source, episode in lived:
        try:
            _add(replay, episode, read_actions)
        except (ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{source} does not fit the data set: {error}") from error
    seen = max((len(episode.reward) - 1 for _, episode in lived if episode.truncated), default=None)
    return Dataset(replay, with_limit(env, episode_limit(env) or seen))


def _add(replay: SequenceReplay, episode: RecordedEpisode, read_actions: ActionConverter) -> None:
    count = len(episode.reward)
    lengths = {len(value) for value in (*episode.observation.values(), episode.action)}
    if lengths != {count} or count < 1:
        raise ValueError(f"It has {count} rewards, but arrays of {sorted(lengths)} steps.")
    actions = np.zeros((count, action_size(replay.action_space)), np.float32)
    if count > 1:
        actions[1:] = read_actions(episode.action[1:]).numpy()
    # A Box alone is added as it is, entries of a Dict by key.
    for t in range(count):
        observation = {key: value[t][None] for key, value in episode.observation.items()}
        reward = np.zeros(1) if t == 0 else episode.reward[t][None]
        ended = np.array([episode.terminated and t == count - 1])
        replay.add(observation, actions[t][None], reward, np.array([t == 0]), ended)
