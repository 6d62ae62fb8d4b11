"""Checkpoints: everything comes back exactly, or a sentence says which file is wrong and how."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces

from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError, load, read_manifest, save, space_from_json, space_to_json

torch.set_num_threads(1)

MANIFEST = {
    "third": 1 / 3,
    "tiny": 5e-324,
    "rng": {"state": 2**127 + 12345, "inc": -(2**70)},
    "names": ["a", "ü", None, True],
    "best": float("-inf"),
}
TENSORS = {
    "world/weight": torch.arange(6.0).reshape(2, 3),
    "world/deep/name": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "starts/is_first": torch.tensor([True, False]),
    "agent/step": torch.tensor(2**60),
    "agent/empty": torch.zeros(0, 4),
    "agent/frame": torch.arange(256, dtype=torch.uint8).reshape(16, 16),
    "agent/rng": torch.arange(8, dtype=torch.int64),
}


def rewrite(path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Replace, add or (None) drop entries of a zip."""
    with zipfile.ZipFile(path) as archive:
        entries: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (entries | change).items():
            if data is not None:
                archive.writestr(name, data)


def header_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("manifest.json"))


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype
        assert torch.equal(tensor, two[name])


def test_everything_comes_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path / "model", MANIFEST, TENSORS)
    manifest, tensors = load(path)
    assert path == tmp_path / "model.zip"
    assert manifest == read_manifest(path) == MANIFEST
    assert_same(tensors, TENSORS)


def test_numpy_views_and_shared_tensors_come_back_exactly(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(torch.ones(2))
    given = {
        "a/array": np.arange(3, dtype=np.int16)[::-1],
        "a/scalar": np.float64(0.1),
        "a/slice": base[:, 1],
        "a/transposed": base.T,
        "a/one": parameter,
        "a/same": parameter,
    }
    _, tensors = load(save(tmp_path / "m", {}, given))  # type: ignore[arg-type]
    assert tensors["a/array"].tolist() == [2, 1, 0]
    assert tensors["a/scalar"].item() == 0.1
    assert torch.equal(tensors["a/slice"], base[:, 1])
    assert torch.equal(tensors["a/transposed"], base.T)
    assert torch.equal(tensors["a/one"], tensors["a/same"])
    assert not tensors["a/one"].requires_grad


def test_groups_are_read_without_the_rest(tmp_path: Path) -> None:
    path = save(tmp_path / "m", MANIFEST, TENSORS)
    assert {name.split("/")[0] for name in load(path, "world")[1]} == {"world"}
    assert {name.split("/")[0] for name in load(path, ["world", "starts"])[1]} == {"world", "starts"}
    assert load(path, ["critic"])[1] == {}
    whole = path.read_bytes()
    position = whole.index(TENSORS["agent/frame"].numpy().tobytes())
    path.write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
    assert_same(load(path, "world")[1], {name: TENSORS[name] for name in ("world/weight", "world/deep/name")})
    with pytest.raises(CheckpointError, match=r"m\.zip.*agent"):
        load(path)


def test_the_ending_may_be_left_out(tmp_path: Path) -> None:
    save(tmp_path / "m", {"x": 1}, {})
    (tmp_path / "m").mkdir()
    assert read_manifest(tmp_path / "m") == read_manifest(str(tmp_path / "m.zip")) == {"x": 1}
    save(tmp_path / "new" / "folder" / "step.100", {"x": 2}, {})
    assert read_manifest(tmp_path / "new" / "folder" / "step.100") == {"x": 2}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m", {"x": 1}, TENSORS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place, name in ((checkpoint, "_write_entry"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(CheckpointError, match=r"m\.zip cannot be written.*No space left"):
                save(path, {"x": 2}, TENSORS)
        assert [file.name for file in tmp_path.iterdir()] == ["m.zip"]
        assert read_manifest(path) == {"x": 1}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m", {"x": 1}, {})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_write_entry", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"x": 2}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["m.zip"]
    assert read_manifest(path) == {"x": 1}


def test_a_folder_cannot_be_written_over(tmp_path: Path) -> None:
    (tmp_path / "m.zip").mkdir()
    with pytest.raises(CheckpointError, match=r"m\.zip cannot be written"):
        save(tmp_path / "m", {}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["m.zip"]


def outcome(path: Path) -> tuple[str, tuple[dict[str, Any], dict[str, torch.Tensor]] | None]:
    try:
        return "", load(path)
    except CheckpointError as error:
        return str(error), None


def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    path = save(tmp_path / "m", MANIFEST, TENSORS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for position in rng.choice(len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        fault, loaded = outcome(path)
        if loaded is None:
            found += 1
            assert str(path) in fault
        else:
            assert loaded[0] == MANIFEST
            assert_same(loaded[1], TENSORS)
    assert found > 200  # the rest are bytes without meaning, such as an entry's date


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m", MANIFEST, TENSORS)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.zip"):
            load(path)


def test_missing_files_folders_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent does not exist, nor absent\.zip"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "text.zip").write_text("not a zip at all")
    with pytest.raises(CheckpointError, match=r"text\.zip cannot be read as a checkpoint.*not a zip"):
        load(tmp_path / "text.zip")
    rewrite_into = tmp_path / "other.zip"
    with zipfile.ZipFile(rewrite_into, "w") as archive:
        archive.writestr("photo.jpg", b"")
    with pytest.raises(CheckpointError, match=r"other\.zip is a zip, but not a checkpoint"):
        load(rewrite_into)
    with zipfile.ZipFile(rewrite_into, "w") as archive:
        archive.writestr("manifest.json", b'{"name": "a browser extension"}')
    with pytest.raises(CheckpointError, match=r"other\.zip is not a checkpoint of wmgym"):
        load(rewrite_into)


def test_sb3s_own_checkpoint_is_recognised(tmp_path: Path) -> None:
    env = gym.make("CartPole-v1")
    stable_baselines3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(CheckpointError, match=r"ppo\.zip is a Stable-Baselines3 checkpoint"):
        load(tmp_path / "ppo")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_the_zip_is_never_opened(tmp_path: Path) -> None:
    path = save(tmp_path / "m", MANIFEST, TENSORS)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for name in ("data.pkl", "../../evil.safetensors", "/etc/evil"):
        save(path, MANIFEST, TENSORS)
        rewrite(path, {name: bomb})
        with pytest.raises(CheckpointError, match=r"m\.zip is damaged or tampered with"):
            load(path)
    save(path, MANIFEST, TENSORS)
    header = header_of(path)
    header["groups"]["world"] = {"size": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    rewrite(path, {"world.safetensors": bomb, "manifest.json": json.dumps(header).encode()})
    with pytest.raises(CheckpointError, match=r"m\.zip is damaged: its 'world' tensors cannot be read"):
        load(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # it would have gone off


def test_entries_of_another_size_compressed_or_missing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    for change, compression in (
        ({"world.safetensors": b"\0" * 100_000}, zipfile.ZIP_STORED),
        ({}, zipfile.ZIP_DEFLATED),
        ({"world.safetensors": None}, zipfile.ZIP_STORED),
    ):
        save(path, MANIFEST, TENSORS)
        rewrite(path, change, compression)
        with pytest.raises(CheckpointError, match=r"m\.zip is damaged or tampered with"):
            load(path)
        with pytest.raises(CheckpointError, match=r"m\.zip is damaged or tampered with"):
            read_manifest(path)


def test_group_names_that_are_paths_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m", {}, {})
    header = header_of(path)
    header["groups"] = {"../evil": {"size": 1, "sha256": ""}}
    rewrite(path, {"manifest.json": json.dumps(header).encode(), "../evil.safetensors": b"x"})
    with pytest.raises(CheckpointError, match=r"m\.zip is damaged or tampered with"):
        load(path)


def test_an_entry_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m", MANIFEST, TENSORS)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("manifest.json", b"{}")
    with pytest.raises(CheckpointError, match=r"m\.zip .* an entry twice"):
        load(path)


def test_newer_formats_are_refused_with_advice(tmp_path: Path) -> None:
    path = save(tmp_path / "m", MANIFEST, TENSORS)
    rewrite(path, {"manifest.json": json.dumps(header_of(path) | {"version": 2, "wmgym": "9.9"}).encode()})
    with pytest.raises(CheckpointError, match=r"m\.zip has .* format 2 \(written by wmgym 9\.9\).*update wmgym"):
        load(path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"a": {"b": [1, np.zeros(2)]}}, r"manifest\['a'\]\['b'\]\[1\] is a numpy\.ndarray"),
        ({"device": torch.device("cpu")}, r"manifest\['device'\] is a torch\.device"),
        ({"lives": {3: "x"}}, r"manifest\['lives'\] has the key 3"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "m", manifest, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("weight", torch.zeros(1), "'weight' is not <group>/<name>"),
        ("../x/y", torch.zeros(1), r"'\.\./x/y' is not <group>/<name>"),
        ("a/text", np.array(["x"], object), "'a/text' cannot be saved"),
        ("a/sparse", torch.eye(2).to_sparse(), "'a/sparse' cannot be saved.*sparse"),
        ("a/complex", torch.zeros(1, dtype=torch.complex128), "'a/complex' cannot be saved.*complex128"),
    ],
)
def test_tensors_that_cannot_be_saved_are_named(tmp_path: Path, name: str, tensor: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "m", {}, {name: tensor})
    assert not list(tmp_path.iterdir())


SPACES = [
    spaces.Box(-np.inf, np.inf, (3,), np.float64),
    spaces.Box(0, 255, (64, 64, 3), np.uint8),
    spaces.Box(np.array([-1.1, -np.inf], np.float32), np.array([0.3, np.inf], np.float32)),
    spaces.Box(-1, 1, ()),
    spaces.Box(np.array([-(2**62) - 1, 3]), np.array([2**62 + 1, 7]), dtype=np.int64),
    spaces.Box(0, 1, (2,), np.bool_),
    spaces.Discrete(5),
    spaces.Discrete(3, start=-1),
    spaces.Dict({"b": spaces.Box(0, 1, (2,)), "a": spaces.Dict({"x": spaces.Discrete(2)})}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_survive_json_exactly(space: spaces.Space) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    again = space_from_json(json.loads(text))
    assert again == space
    assert space_to_json(again) == space_to_json(space)
    if isinstance(space, spaces.Box) and isinstance(again, spaces.Box):
        assert again.dtype == space.dtype
        assert again.low.tobytes() == space.low.tobytes()
        assert again.high.tobytes() == space.high.tobytes()
        assert np.array_equal(again.bounded_below, space.bounded_below)


def test_constant_bounds_are_short_and_the_order_of_keys_is_kept() -> None:
    assert len(json.dumps(space_to_json(SPACES[1]))) < 100
    ordered = spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(3))])
    again = space_from_json(space_to_json(ordered))
    assert isinstance(again, spaces.Dict)
    assert list(again.spaces) == ["b", "a"]


def test_other_spaces_and_other_data_are_refused() -> None:
    with pytest.raises(CheckpointError, match="MultiBinary cannot be saved"):
        space_to_json(spaces.MultiBinary(3))
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": 1, "high": 2}
    for data in ({}, [], {"type": "Graph"}, box | {"low": [1]}, box | {"shape": [10**12]}):
        with pytest.raises(CheckpointError, match="not the description of a space"):
            space_from_json(data)  # type: ignore[arg-type]
