"""Start states."""

from __future__ import annotations

import pytest
import torch

from wmgym.dream import StartStates

from .toy import ToyState, toy_world

STATES = ToyState(torch.arange(8.0).reshape(4, 2), torch.arange(4.0))
FIRST = torch.tensor([False, True, False, True])


def test_sampling_covers_those_eligible_and_no_others() -> None:
    starts = StartStates(STATES, FIRST)
    everywhere = torch.tensor([0.0, 0.3, 0.49, 0.5, 0.999999])
    assert starts.sample(everywhere, "episode").tolist() == [1, 1, 1, 3, 3]
    assert starts.sample(everywhere, "any").tolist() == [0, 1, 1, 2, 3]


def test_tensors_round_trip() -> None:
    again = StartStates.from_tensors(
        ToyState(torch.zeros(1, 2), torch.zeros(1)), StartStates(STATES, FIRST).to_tensors()
    )
    assert torch.equal(again.states.x, STATES.x)
    assert torch.equal(again.states.age, STATES.age)
    assert torch.equal(again.is_first, FIRST)


def test_rows_are_copies() -> None:
    starts = StartStates(STATES, FIRST)
    rows = starts.rows(torch.tensor([2, 2]))
    rows.x.zero_()
    assert starts.states.x[2].tolist() == [4.0, 5.0]


@pytest.mark.parametrize(("change", "text"), [
    ({"x": None}, "lack the tensor 'x'"),
    ({"is_first": None}, "lack the tensor 'is_first'"),
    ({"y": torch.zeros(4)}, "unknown tensor 'y'"),
    ({"x": torch.zeros(4, 3)}, r"'x' has shape \(4, 3\), but the world's states have \(N, 4\)"),
    ({"age": torch.zeros(5)}, "leaf 'age' of the start states has shape"),
    ({"is_first": torch.zeros(4)}, "must be a bool tensor"),
])  # fmt: skip
def test_tensors_that_do_not_fit(change: dict[str, torch.Tensor | None], text: str) -> None:
    like = toy_world().initial(1)
    tensors = {"x": torch.zeros(4, 4), "age": torch.zeros(4), "is_first": FIRST, **change}
    with pytest.raises(ValueError, match=text):
        StartStates.from_tensors(like, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="N >= 1"):
        StartStates(ToyState(torch.zeros(0, 2), torch.zeros(0)), torch.zeros(0, dtype=torch.bool))
