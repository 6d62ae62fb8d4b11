"""Windows of real episodes, the world's dreams of them, and the errors of these dreams."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmgym.dream.convert import ActionConverter, to_array, to_tensors
from wmgym.random import StreamNoise
from wmgym.spaces import as_dict_space, from_dict, is_image
from wmgym.trust.episodes import LivedEpisode
from wmgym.worlds.base import State, World, concat_states, index_state, where_state

_SMALLEST_DEVIATION = 1e-6
"""Dimensions that vary less are constants: they are left out of errors."""


@dataclass(frozen=True)
class Windows:
    """N stretches of real episodes, each after a moment up to which the world has watched.

    Entry `k - 1` along the first dimension is step `k` after the start.

    Attributes:
        state: the world's posterior at the start, `(N, ...)`.
        start: what was seen there, by key, `(N, ...)`.
        start_reward: `(N,)`.
        observation: by key, `(H, N, ...)`.
        action: `(H, N, A)` as the world reads it; zeros once the episode has ended.
        reward: `(H, N)`.
        continues: `(H, N)`, 0 where the episode truly ended.
        valid: `(H, N)` bool, whether the episode still lasted.
        episode: `(N,)` which of the episodes.
        time: `(N,)` step of the episode at the start.
    """

    state: State
    start: dict[str, np.ndarray]
    start_reward: np.ndarray
    observation: dict[str, np.ndarray]
    action: Tensor
    reward: np.ndarray
    continues: np.ndarray
    valid: np.ndarray
    episode: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)

    def of_episodes(self, episodes: Collection[int]) -> Windows:
        """Only the windows of some episodes."""
        rows = np.flatnonzero(np.isin(self.episode, list(episodes)))
        return Windows(
            index_state(self.state, torch.as_tensor(rows, device=self.action.device)),
            {key: value[rows] for key, value in self.start.items()},
            self.start_reward[rows],
            {key: value[:, rows] for key, value in self.observation.items()},
            self.action[:, rows],
            *(values[:, rows] for values in (self.reward, self.continues, self.valid)),
            *(values[rows] for values in (self.episode, self.time)),
        )

    @property
    def horizon(self) -> int:
        """The most steps of a window."""
        return len(self.reward)

    def reached(self, marks: Sequence[int]) -> list[int]:
        """Those of some numbers of steps that at least one window lasts for."""
        return [mark for mark in marks if mark <= self.horizon and self.valid[mark - 1].any()]


class Scale(NamedTuple):
    """Mean and deviation of the recorded observations, by key, and the mean reward and continuation."""

    mean: dict[str, np.ndarray]  # (...)
    deviation: dict[str, np.ndarray]  # (...); one number for pictures; 0: constant, left out
    reward: float
    continues: float


class Errors(NamedTuple):
    """Errors by step `(H, N)`; NaN where the episode had ended."""

    observation: np.ndarray
    reward: np.ndarray
    continues: np.ndarray


class Dreamt(NamedTuple):
    """One step of N dreams."""

    state: State  # (N, ...)
    observation: dict[str, np.ndarray]  # (N, ...)
    reward: np.ndarray  # (N,)
    continues: np.ndarray  # (N,)


def choose_starts(
    episodes: Sequence[LivedEpisode], per_episode: int, context: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread starts: which episode `(N,)`, and which step of it `(N,)`.

    The first is at `context` (the world has then watched as many steps), the last leaves room for `horizon` where the
    episode is long enough; episodes of `context` steps and fewer have none.
    """
    chosen, times = [], []
    for index, episode in enumerate(episodes):
        last = max(len(episode) - horizon, min(context, len(episode) - 1))
        if last < context:
            continue
        spread = np.unique(np.linspace(context, last, per_episode).astype(int))
        chosen += [index] * len(spread)
        times += spread.tolist()
    if not chosen:
        raise ValueError(
            f"None of the {len(episodes)} recorded episodes lasts longer than the {context} steps that the world "
            "watches first: give a smaller context, or policies that last longer."
        )
    return np.array(chosen), np.array(times)


def cut_windows(
    world: World, episodes: Sequence[LivedEpisode], chosen: np.ndarray, times: np.ndarray, horizon: int, seed: int
) -> Windows:
    """Filter the episodes through the world, and cut the windows that start at `times` of the episodes `chosen`."""
    state = filter_states(world, episodes, chosen, times, seed)
    observation: dict[str, list[np.ndarray]] = {key: [] for key in episodes[0].observation}
    rows: dict[str, list[np.ndarray]] = {"action": [], "reward": [], "continues": [], "valid": []}
    for index, t in zip(chosen, times, strict=True):
        episode = episodes[index]
        steps = slice(t + 1, t + 1 + horizon)
        for key, values in episode.observation.items():
            observation[key].append(_padded(values[steps], horizon))
        rows["action"].append(_padded(episode.env_action[t : t + horizon], horizon))
        rows["reward"].append(_padded(episode.reward[steps], horizon))
        rows["continues"].append(_padded(episode.continues[steps], horizon))
        rows["valid"].append(np.arange(horizon) < len(episode) - t)
    stacked = {name: np.stack(values, 1) for name, values in rows.items()}  # (H, N, ...)
    return Windows(
        state,
        {key: np.stack([episodes[i].observation[key][t] for i, t in zip(chosen, times)]) for key in observation},
        np.array([episodes[i].reward[t] for i, t in zip(chosen, times)]),
        {key: np.stack(values, 1) for key, values in observation.items()},
        world_actions(world, stacked["action"]) * torch.as_tensor(stacked["valid"], device=world.device)[..., None],
        stacked["reward"],
        stacked["continues"],
        stacked["valid"],
        chosen,
        times,
    )


def filter_states(
    world: World, episodes: Sequence[LivedEpisode], chosen: np.ndarray, times: np.ndarray, seed: int
) -> State:
    """The world's posterior `(N, ...)` at step `times` of the episodes `chosen`, after watching all before it."""
    involved = np.unique(chosen)
    rows = torch.as_tensor(np.searchsorted(involved, chosen), device=world.device)
    result = world.initial(len(chosen))
    for t, state in enumerate(watch(world, [episodes[i] for i in involved], seed, int(times.max()))):
        wanted = torch.as_tensor(times == t, device=world.device)
        result = where_state(wanted, index_state(state, rows), result)
    return result


def watch(world: World, episodes: Sequence[LivedEpisode], seed: int, last: int | None = None) -> Iterator[State]:
    """The world's posterior `(E, ...)` of E episodes at each step up to `last`, seeing all of them at once.

    Those that have ended are shown their last observation over and over.
    """
    count, space = len(episodes), world.observation_space
    noise = StreamNoise(torch.arange(count) + seed, world.device)
    state = world.initial(count)
    for t in range((max(map(len, episodes)) if last is None else last) + 1):
        seen = {
            key: np.stack([episode.observation[key][min(t, len(episode))] for episode in episodes])
            for key in episodes[0].observation
        }
        done = np.stack([episode.env_action[min(max(t - 1, 0), len(episode) - 1)] for episode in episodes])
        is_first = torch.full((count,), t == 0, device=world.device)
        with torch.no_grad():
            batch = to_tensors(from_dict(seen, space), space, count, world.device)
            state = world.observe(state, world_actions(world, done), batch, is_first, noise)
        yield state


def world_actions(world: World, env_action: np.ndarray) -> Tensor:
    """Actions `(..., *action shape)` of the environment as the world reads them, `(..., A)`."""
    read = ActionConverter(world.action_space, world.device)
    shape = world.action_space.shape or ()
    lead = env_action.shape[: env_action.ndim - len(shape)]
    return read(env_action.reshape(-1, *shape)).reshape(*lead, read.size)


def dream(world: World, state: State, action: Tensor, seed: int, temperature: float = 1.0) -> Iterator[Dreamt]:
    """Imagine `action` `(H, N, A)` from `state` `(N, ...)`, a step at a time; row `i` has the stream `seed + i`."""
    noise = StreamNoise(torch.arange(action.shape[1]) + seed, world.device)
    for step in action:
        with torch.no_grad():
            imagined = world.imagine(state, step, noise, temperature)
            state = imagined.state
            decoded = {key: to_array(value) for key, value in world.decode(world.features(state)).items()}
        yield Dreamt(state, decoded, to_array(imagined.reward.float()), to_array(imagined.continues.float()))


def repeat_rows(state: State, times: int) -> State:
    """`(N, ...)` as `(times * N, ...)`, block after block."""
    return concat_states([state] * times)


# -- errors ---------------------------------------------------------------------------------------------------


def measure_scale(world: World, episodes: Sequence[LivedEpisode]) -> Scale:
    """Mean and deviation over all recorded steps but the first of each episode."""
    mean, deviation = {}, {}
    for key, box in as_dict_space(world.observation_space).items():
        values = np.concatenate([episode.observation[key][1:] for episode in episodes])
        mean[key] = values.mean(0, dtype=np.float64)
        spread = values.std(0, dtype=np.float64)
        if is_image(box):  # one number: a pixel that hardly ever changes must not count for more than the others
            spread = np.full_like(spread, np.sqrt(np.square(spread).mean()))
        deviation[key] = np.where(spread > _SMALLEST_DEVIATION, spread, 0.0)
    if not any((values > 0).any() for values in deviation.values()):
        raise ValueError("Nothing that was recorded ever changes: there is nothing to predict.")
    rewards = np.concatenate([episode.reward[1:] for episode in episodes])
    continues = np.concatenate([episode.continues[1:] for episode in episodes])
    return Scale(mean, deviation, float(rewards.mean()), float(continues.mean()))


def observation_error(predicted: dict[str, np.ndarray], true: dict[str, np.ndarray], scale: Scale) -> np.ndarray:
    """`(N,)` root of the mean squared error in deviations: over the dimensions of each key, then over the keys."""
    squares = []
    for key, deviation in scale.deviation.items():
        varies = deviation > 0
        if varies.any():
            difference = np.asarray(predicted[key], np.float32) - np.asarray(true[key], np.float32)
            squares.append(np.square(difference[:, varies] / deviation[varies]).mean(-1))
    return np.sqrt(np.mean(squares, 0))


def dream_errors(
    world: World, windows: Windows, scale: Scale, seed: int, temperature: float = 1.0, action: Tensor | None = None
) -> Errors:
    """Errors of one dream of each window, with the true actions or with others `(H, N, A)`."""
    given = windows.action if action is None else action
    return _errors(dream(world, windows.state, given, seed, temperature), windows, scale)


def persistence_errors(windows: Windows, scale: Scale) -> Errors:
    """Errors of "nothing changes": the start's observation and reward, and no end."""
    still = Dreamt(None, windows.start, windows.start_reward, np.ones(len(windows), np.float32))
    return _errors([still] * windows.horizon, windows, scale)


def mean_errors(windows: Windows, scale: Scale) -> Errors:
    """Errors of the mean over all that was recorded."""
    count = len(windows)
    mean = {key: np.broadcast_to(value, (count, *value.shape)) for key, value in scale.mean.items()}
    usual = Dreamt(None, mean, np.full(count, scale.reward), np.full(count, scale.continues))
    return _errors([usual] * windows.horizon, windows, scale)


def _errors(steps: Iterator[Dreamt] | Sequence[Dreamt], windows: Windows, scale: Scale) -> Errors:
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for k, step in enumerate(steps):
        true = {key: values[k] for key, values in windows.observation.items()}
        rows.append(
            (
                observation_error(step.observation, true, scale),
                np.abs(step.reward - windows.reward[k]),
                np.abs(step.continues - windows.continues[k]),
            )
        )
    return Errors(*(np.where(windows.valid, np.stack(column), np.nan) for column in zip(*rows)))


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """`values` with its last row repeated up to `length`."""
    missing = length - len(values)
    return values if missing == 0 else np.concatenate([values, np.repeat(values[-1:], missing, 0)])
