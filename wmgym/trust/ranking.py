"""Section 5: does the dream rank action sequences, tried from the same moment, as reality does?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from gymnasium import spaces

from wmgym.trust.episodes import LivedEpisode, Returnable
from wmgym.trust.figures import Figure, Section
from wmgym.trust.plots import draw_ranking
from wmgym.trust.policies import in_space
from wmgym.trust.statistics import bootstrap, regret_at_1, spearman
from wmgym.trust.windows import dream, filter_states, repeat_rows, world_actions
from wmgym.worlds.base import World


def rank_sequences(
    world: World,
    env: Returnable,
    episodes: Sequence[LivedEpisode],
    starts: int,
    candidates: int,
    length: int,
    dreams: int,
    seed: int,
) -> Section:
    """Section 5: `candidates` action sequences from each of `starts` real moments, done in reality and dreamt.

    Args:
        world: the world.
        env: the real environment, which is put back to each moment.
        episodes: real ones, where the moments lie.
        starts: how many moments.
        candidates: sequences from each.
        length: steps of a sequence.
        dreams: of each sequence, averaged.
        seed: of everything random.
    """
    random = np.random.default_rng(seed)
    chosen, times = _moments(episodes, starts, length, random)
    sequences = np.stack(
        [candidate_sequences(env.action_space, episodes[i].env_action[t : t + length], candidates, random)
         for i, t in zip(chosen, times)]
    )  # fmt: skip
    real, repeat_error = _try_in_reality(env, episodes, chosen, times, sequences)
    dreamt = _try_in_dream(world, episodes, chosen, times, sequences, dreams, seed)
    section = Section(
        "ranking",
        "5. Does the dream rank action sequences as reality does?",
        f"From each of {len(chosen)} real moments, {candidates} sequences of {length} actions are done in the real "
        "environment, which is put back to the moment each time, and dreamt from the world's posterior there "
        f"(mean of {dreams} dreams; a step's reward counts with the probability that the dream still lasts). One "
        "sequence is what was really done; of the others a third is this with more and more steps at random, a third "
        "is random at every step, and a third holds one random action. Intervals resample the moments.",
    )
    _judge(section, real, dreamt)
    meaning = "largest difference between the rewards recorded and those of doing the same again"
    section.figures["repeat error"] = Figure(repeat_error, meaning, len(chosen), "moments")
    section.data |= {"episode": chosen, "time": times}
    return section


def _judge(section: Section, real: np.ndarray, dreamt: np.ndarray) -> None:
    different = np.ptp(real, axis=1) > 0
    section.figures = _figures(real[different], dreamt[different])
    if not different.all():
        section.notes.append(
            f"{int((~different).sum())} moments, from which all sequences earn the same, are left out."
        )
    correlations = [spearman(d, r) for d, r in zip(dreamt, real)]
    section.data = {"real": real, "dream": dreamt}
    section.drawings["ranking.png"] = partial(draw_ranking, real, dreamt, correlations)


def candidate_sequences(space: spaces.Space, done: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`(count, L, ...)` sequences in the environment's units; the first is `done` `(L, ...)`."""
    size = () if isinstance(space, spaces.Discrete) else done.shape[1:]
    low = 0.0 if isinstance(space, spaces.Discrete) else -1.0
    white = in_space(random.uniform(low, 1, (count, len(done), *size)), space)
    held = np.broadcast_to(in_space(random.uniform(low, 1, (count, 1, *size)), space), white.shape)
    # The first of every three does some steps at random and the others as they were done.
    kept = random.uniform(size=(count, len(done))) >= np.linspace(0, 1, count)[:, None]
    own = np.where(kept.reshape(kept.shape + (1,) * len(size)), done, white)
    kind = (np.arange(count) % 3).reshape(-1, *(1,) * (white.ndim - 1))
    return np.select([kind == 0, kind == 1], [own, white], held).astype(done.dtype)


def _moments(
    episodes: Sequence[LivedEpisode], count: int, length: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    long_enough = [index for index, episode in enumerate(episodes) if len(episode) > length]
    if not long_enough:
        raise ValueError(f"No recorded episode lasts longer than {length} steps: rank shorter sequences.")
    chosen = np.resize(random.permutation(long_enough), count)
    times = np.array([random.integers(1, len(episodes[i]) - length + 1) for i in chosen])
    return chosen, times


def _try_in_reality(
    env: Returnable, episodes: Sequence[LivedEpisode], chosen: np.ndarray, times: np.ndarray, sequences: np.ndarray
) -> tuple[np.ndarray, float]:
    """Returns `(S, K)`, and the largest difference to the recorded rewards where the recorded actions were done."""
    real, worst = np.zeros(sequences.shape[:2]), 0.0
    for s, (index, t) in enumerate(zip(chosen, times, strict=True)):
        for k, sequence in enumerate(sequences[s]):
            env.return_to(episodes[index], int(t))
            rewards = _rewards(env, sequence)
            real[s, k] = sum(rewards)
            if k == 0:
                recorded = episodes[index].reward[t + 1 : t + 1 + len(rewards)]
                worst = max(worst, float(np.abs(np.array(rewards) - recorded).max()))
    return real, worst


def _rewards(env: Returnable, sequence: np.ndarray) -> list[float]:
    rewards = []
    for action in sequence:
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return rewards


def _try_in_dream(
    world: World,
    episodes: Sequence[LivedEpisode],
    chosen: np.ndarray,
    times: np.ndarray,
    sequences: np.ndarray,
    dreams: int,
    seed: int,
) -> np.ndarray:
    """Mean returns `(S, K)` over dreams of each sequence."""
    count, candidates = sequences.shape[:2]
    state = repeat_rows(filter_states(world, episodes, chosen, times, seed), candidates * dreams)
    # Rows are (dream, candidate, start), so that the states repeat as a block.
    ordered = np.moveaxis(sequences, (2, 1, 0), (0, 1, 2))
    action = world_actions(world, ordered).flatten(1, 2).repeat(1, dreams, 1)  # (L, D * K * S, A)
    total, lasting = np.zeros(action.shape[1]), np.ones(action.shape[1])
    for step in dream(world, state, action, seed):
        total += step.reward * lasting
        lasting = lasting * step.continues
    return total.reshape(dreams, candidates, count).mean(0).T


def _figures(real: np.ndarray, dreamt: np.ndarray) -> dict[str, Figure]:
    spread = np.ptp(real, axis=1)
    by_start: dict[str, tuple[np.ndarray, str]] = {
        "rank correlation": (
            np.nan_to_num([spearman(d, r) for d, r in zip(dreamt, real)]),
            "Spearman's correlation of dreamt and real returns of the sequences of a moment (0 where the dream finds "
            "them all the same), mean over moments",
        ),
        "regret": (
            np.array([regret_at_1(d, r) for d, r in zip(dreamt, real)]),
            "real return lost by the sequence that the dream finds best, mean over moments",
        ),
        "relative regret": (
            np.array([regret_at_1(d, r) for d, r in zip(dreamt, real)]) / spread,
            "the same as a share of the range between the best and the worst sequence of the moment",
        ),
        "relative regret by chance": (
            (real.max(1) - real.mean(1)) / spread,
            "the same of a sequence taken at random: what a world that knows nothing would lose",
        ),
    }
    return {name: _mean_figure(values, meaning) for name, (values, meaning) in by_start.items()}


def _mean_figure(values: np.ndarray, meaning: str) -> Figure:
    value = float(values.mean()) if len(values) else float("nan")
    return Figure(value, meaning, len(values), "moments", bootstrap(np.mean, values))
