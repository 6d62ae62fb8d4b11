"""States as opaque trees, and what a world gets for implementing the interface."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.random import ModeNoise, Noise
from wmgym.worlds.base import (
    Observation,
    Outcome,
    SequenceBatch,
    World,
    WorldLoss,
    concat_states,
    detach_state,
    flatten_state,
    index_state,
    map_state,
    stack_states,
    state_from_dict,
    state_to_dict,
    where_state,
)


class Pair(NamedTuple):
    scalar: Tensor  # (B,)
    table: Tensor  # (B, 2, 3)


def pair(rows: int, first: float = 0.0) -> Pair:
    scalar = first + torch.arange(rows, dtype=torch.float32)
    return Pair(scalar, scalar[:, None, None].expand(rows, 2, 3).clone())


def consistent(state: Pair) -> list[float]:
    """The rows of a state whose leaves still belong together."""
    table = state.table.flatten(-2)
    assert torch.equal(table, state.scalar[..., None].expand_as(table))
    return state.scalar.tolist()


@pytest.mark.parametrize(
    "index",
    [torch.tensor([2, 0, 2]), slice(1, 3), torch.tensor([True, False, False, True])],
    ids=["rows", "slice", "mask"],
)
def test_index_takes_the_same_rows_of_every_leaf(index: Tensor | slice) -> None:
    chosen = index_state(pair(4), index)
    assert isinstance(chosen, Pair)
    assert consistent(chosen) == torch.arange(4.0)[index].tolist()


def test_stack_puts_time_first_and_flatten_joins_it_with_the_batch() -> None:
    stacked = stack_states([pair(2), pair(2, 10), pair(2, 20)])
    assert stacked.table.shape == (3, 2, 2, 3)
    assert consistent(stacked) == [[0, 1], [10, 11], [20, 21]]
    assert consistent(flatten_state(stacked)) == [0, 1, 10, 11, 20, 21]


def test_concat_joins_batches() -> None:
    assert consistent(concat_states([pair(2), pair(3, 10)])) == [0, 1, 10, 11, 12]


def test_where_picks_rows_of_every_leaf() -> None:
    mask = torch.tensor([True, False, True])
    assert consistent(where_state(mask, pair(3), pair(3, 10))) == [0, 11, 2]


def test_where_does_not_mix_in_what_it_leaves_out() -> None:
    broken = map_state(lambda leaf: leaf * float("nan"), pair(3))
    assert consistent(where_state(torch.tensor([True] * 3), pair(3), broken)) == [0, 1, 2]


def test_map_reads_several_states_leaf_by_leaf() -> None:
    assert consistent(map_state(torch.add, pair(3), pair(3, 10))) == [10, 12, 14]


def test_detach_cuts_every_leaf_off() -> None:
    attached = map_state(lambda leaf: leaf.requires_grad_(), pair(2))
    assert not any(leaf.requires_grad for leaf in detach_state(attached))


def test_a_state_goes_through_names_and_back() -> None:
    leaves = state_to_dict(pair(2, 5))
    assert set(leaves) == {"scalar", "table"}
    again = state_from_dict(pair(1), dict(reversed(leaves.items())))
    assert isinstance(again, Pair)
    assert consistent(again) == [5, 6]


def test_a_leaf_of_another_name_is_refused() -> None:
    with pytest.raises(TypeError, match="deter"):
        state_from_dict(pair(1), {**state_to_dict(pair(1)), "deter": torch.zeros(1)})


class Counter(NamedTuple):
    count: Tensor


class CountingWorld(World):
    """The smallest world: actions add up; reward and continuation tell previous, action and reached apart."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))
    feature_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Parameter(torch.ones(()))

    def initial(self, batch_size: int) -> Counter:
        return Counter(torch.zeros(batch_size, 1))

    def observe(
        self, state: Counter, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise
    ) -> Counter:
        return self.transition(state, action, noise)

    def transition(self, state: Counter, action: Tensor, noise: Noise, temperature: float = 1.0) -> Counter:
        return Counter(state.count + temperature * action)

    def outcome(self, previous: Counter, action: Tensor, state: Counter) -> Outcome:
        return Outcome((100 * previous.count + 10 * action + state.count).squeeze(-1), state.count.squeeze(-1))

    def features(self, state: Counter) -> Tensor:
        return state.count

    def decode(self, features: Tensor) -> Observation:
        return {"observation": features.expand(*features.shape[:-1], 2), "twice": 2 * features}

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        return WorldLoss(batch.reward.mean(), {}, self.initial(1))


def test_imagine_is_a_transition_and_its_outcome() -> None:
    state, action = Counter(torch.tensor([[1.0], [2.0]])), torch.tensor([[3.0], [4.0]])
    reached, reward, continues = CountingWorld().imagine(state, action, ModeNoise(), temperature=2.0)
    assert reached.count.flatten().tolist() == [7, 10]
    assert reward.tolist() == [137, 250]
    assert continues.tolist() == [7, 10]


def test_a_world_knows_its_device() -> None:
    assert CountingWorld().device == torch.device("cpu")


def test_a_world_that_lacks_a_method_cannot_be_built() -> None:
    class Deaf(CountingWorld):
        observe = World.observe

    with pytest.raises(TypeError, match="observe"):
        Deaf()


def test_batches_know_their_length_and_size() -> None:
    zeros = torch.zeros(5, 3)
    batch = SequenceBatch({}, torch.zeros(5, 3, 2), zeros, zeros.bool(), zeros.bool())
    assert batch.shape == (5, 3)
