"""Worlds in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError
from wmgym.dream import load_model
from wmgym.worlds.rssm import RSSM, RSSMConfig
from wmgym.worlds.store import (
    WORLDS,
    WorldKind,
    config_from_dict,
    load_world,
    pack_world,
    register_world,
    save_world,
    unpack_world,
)

from .toy import BOTH, ToyConfig, ToyWorld, toy_model, toy_world


@pytest.fixture(autouse=True)
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORLDS, "toy", WorldKind(ToyWorld.__module__, "ToyWorld", "ToyConfig"))


def same_parameters(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_world_comes_back_as_it_went(tmp_path: Path) -> None:
    model = toy_model(BOTH, continue_logit=1.5)
    path = save_world(tmp_path / "toy.zip", model.world, model.starts, {"id": "Toy-v0"})
    world = load_world(path)
    assert same_parameters(world, model.world)
    assert world.config == model.world.config
    assert world.observation_space == BOTH
    assert not world.training
    assert not any(p.requires_grad for p in world.parameters())
    loaded = load_model(path)
    assert model.starts is not None
    assert loaded.starts is not None
    assert torch.equal(loaded.starts.is_first, model.starts.is_first)
    assert torch.equal(loaded.starts.states.x, model.starts.states.x)
    assert loaded.env["id"] == "Toy-v0"


@pytest.mark.parametrize("env", ["abc", ["id"], {"episode_limit": "long"}, {"max_episode_steps": -1}])
def test_nonsense_about_the_environment_is_refused(env: Any, tmp_path: Path) -> None:
    manifest, tensors = pack_world(toy_world())
    path = checkpoint.save(tmp_path / "toy.zip", manifest | {"env": env}, tensors)
    with pytest.raises(CheckpointError, match=r"toy\.zip tells nonsense of its environment"):
        load_model(path)


def test_a_nested_configuration_comes_back(tmp_path: Path) -> None:
    space = spaces.Box(-1, 1, (3,))
    world = RSSM(
        space, spaces.Discrete(2), RSSMConfig(deter=16, hidden=16, continues=None, observed_keys=("observation",))
    )
    again = load_world(save_world(tmp_path / "rssm.zip", world))
    assert again.config == world.config
    assert same_parameters(again, world)


def test_the_world_is_read_from_a_file_that_holds_more(tmp_path: Path) -> None:
    manifest, tensors = pack_world(toy_world())
    path = checkpoint.save(tmp_path / "agent.zip", manifest | {"agent": 1}, tensors | {"agent/w": torch.ones(2)})
    assert same_parameters(load_world(path), toy_world())
    assert load_model(path).starts is None


def test_packing_gives_json() -> None:
    manifest, tensors = pack_world(toy_world(BOTH))
    assert unpack_world(json.loads(json.dumps(manifest)), tensors).observation_space == BOTH
    assert all(name.startswith("world/") for name in tensors)


def _without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


@pytest.mark.parametrize(("change", "text"), [
    (lambda m, t: ({}, t), "f.zip holds no world"),
    (lambda m, t: ({"world": _without(m["world"], "kind")}, t), "f.zip: the description of the world lacks 'kind'"),
    (lambda m, t: ({"world": m["world"] | {"kind": "diffusion"}}, t), "of kind 'diffusion'; known are .*'rssm'"),
    (lambda m, t: ({"world": m["world"] | {"config": {"siz": 4}}}, t), "f.zip: world config has the unknown key 'siz'"),
    (lambda m, t: ({"world": m["world"] | {"config": 3}}, t), "f.zip: world config must be an object"),
    (lambda m, t: ({"world": m["world"] | {"config": {"size": "four"}}}, t), "f.zip: the world cannot be built"),
    (lambda m, t: ({"world": m["world"] | {"action_space": {"type": "Tree"}}}, t), "f.zip: the world cannot be built"),
    (lambda m, t: (m, _without(t, "world/drift.bias")), "f.zip lacks the tensor 'world/drift.bias'"),
    (lambda m, t: (m, t | {"world/drift.bias": torch.zeros(5)}), r"'world/drift.bias' has shape \(5,\), but .* \(4,\)"),
    (lambda m, t: (m, t | {"world/wheel": torch.zeros(5)}), "f.zip has the unknown tensor 'world/wheel'"),
])  # fmt: skip
def test_files_that_do_not_fit(change: Any, text: str) -> None:
    manifest, tensors = change(*pack_world(toy_world()))
    with pytest.raises(CheckpointError, match=text):
        unpack_world(manifest, tensors, source="f.zip")


def test_start_states_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    manifest, tensors = pack_world(toy_world())
    path = checkpoint.save(tmp_path / "f.zip", manifest, tensors | {"starts/x": torch.zeros(2, 4)})
    with pytest.raises(CheckpointError, match=r"f\.zip: The start states lack the tensor 'age'"):
        load_model(path)


def test_keys_that_a_file_lacks_keep_their_defaults() -> None:
    assert config_from_dict(ToyConfig, {"size": 7}, "here") == ToyConfig(size=7)


def test_an_unregistered_world_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(WORLDS, "toy")
    with pytest.raises(CheckpointError, match=r"toy.ToyWorld is not registered.*register_world"):
        pack_world(toy_world())


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(WORLDS, "toy")
    register_world("toy", ToyWorld, ToyConfig)
    register_world("toy", ToyWorld, ToyConfig)
    assert pack_world(toy_world())[0]["world"]["kind"] == "toy"
    with pytest.raises(ValueError, match=r"'rssm' belongs to wmgym\.worlds\.rssm\.RSSM"):
        register_world("rssm", ToyWorld, ToyConfig)
