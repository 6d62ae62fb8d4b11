"""Replay on disk: memory maps, files and resumed runs hold and sample what the replay in RAM does."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.checkpoint import CheckpointError
from wmgym.replay import SequenceReplay
from wmgym.replay_storage import INDEX

from .filling import ACTION, BOX, PICTURE, assert_equal_batches, fill, make, numbers

torch.set_num_threads(1)


def test_memory_map_equals_ram(tmp_path: Path) -> None:
    ram, mapped = make(capacity=40, n_envs=2, seed=3), make(capacity=40, n_envs=2, seed=3, folder=tmp_path)
    for replay in (ram, mapped):
        fill(replay, range(33))
    for newest_first in (False, True, False):
        assert_equal_batches(ram.sample(9, 7, newest_first), mapped.sample(9, 7, newest_first))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.npy")) > 40 * ram.step_bytes


def test_reopened_folder_samples_on(tmp_path: Path) -> None:
    replay = make(capacity=40, n_envs=2, seed=3, folder=tmp_path)
    fill(replay, range(33))
    replay.sample(3, 4, newest_first=True)
    replay.mark_cut(0)
    replay.flush()
    reopened = make(capacity=40, n_envs=2, folder=tmp_path)
    assert len(reopened) == len(replay)
    for one in (replay, reopened):
        fill(one, range(33, 34))
    assert_equal_batches(replay.sample(9, 7, newest_first=True), reopened.sample(9, 7, newest_first=True))


@pytest.mark.parametrize("steps", [5, 30])
def test_reopened_folder_holds_full_records_written_after_the_last_flush(tmp_path: Path, steps: int) -> None:
    replay = make(capacity=20, folder=tmp_path)
    fill(replay, range(steps))  # no flush, as after a crash of the program
    replay._storage.mark(0, steps, steps + 1, whole=False)  # which was writing a row
    del replay
    reopened = make(capacity=20, folder=tmp_path)
    held = min(steps, 20)
    assert len(reopened) == held
    assert set(numbers(reopened.sample(200, 2)).ravel()) == set(range(steps - held, steps))
    fill(reopened, range(steps, steps + 3))
    assert (np.diff(numbers(reopened.sample(200, 4)), axis=0) == 1).all()


def test_a_folder_goes_back_exactly_over_what_was_overwritten_since(tmp_path: Path) -> None:
    replay, twin = make(capacity=80, n_envs=2, seed=3, folder=tmp_path), make(capacity=80, n_envs=2, seed=3)
    for one in (replay, twin):
        fill(one, range(90))
    state = replay.get_state()
    fill(replay, range(90, 95))  # an eighth of each stream's 40 rows
    reopened = make(capacity=80, n_envs=2, folder=tmp_path)
    reopened.set_state(state)
    assert len(reopened) == len(twin) == 80
    assert_equal_batches(reopened.sample(200, 4), twin.sample(200, 4))
    fill(reopened, range(90, 91))
    fill(reopened, range(91, 96))
    assert len(reopened) == 80


def test_steps_beyond_the_reserve_stay_lost(tmp_path: Path) -> None:
    replay = make(capacity=40, folder=tmp_path)
    fill(replay, range(60))
    state = replay.get_state()
    fill(replay, range(60, 70))
    replay.set_state(state)
    assert len(replay) == 35  # 40, less the 10 overwritten, and 5 of them were in reserve
    assert set(numbers(replay.sample(200, 2)).ravel()) == set(range(25, 60))


def test_folders_and_files_of_version_1_are_read(tmp_path: Path) -> None:
    replay = make(capacity=20, folder=tmp_path / "maps")
    fill(replay, range(30))
    path = replay.save(tmp_path / "r")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    header = {key: value for key, value in json.loads(entries[INDEX]).items() if key not in ("sha256", "spare")}
    entries[INDEX] = json.dumps({**header, "version": 1}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert_equal_batches(SequenceReplay.load(path).sample(50, 4), replay.sample(50, 4))


def test_newer_versions_are_refused_with_advice(tmp_path: Path) -> None:
    make(capacity=20, folder=tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**index, "version": 3}))
    with pytest.raises(CheckpointError, match=r"replay format 3, this wmgym reads up to 2: update wmgym"):
        make(capacity=20, folder=tmp_path)


def test_a_memory_map_that_was_cut_short_is_refused_and_not_made_longer(tmp_path: Path) -> None:
    make(capacity=20, folder=tmp_path)
    path = tmp_path / "reward.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match=r"reward\.npy is damaged: it has \d+ bytes instead of \d+"):
        make(capacity=20, folder=tmp_path)
    assert path.stat().st_size == len(whole) - 8


def test_swapped_entries_of_the_same_shape_are_found(tmp_path: Path) -> None:
    pair = spaces.Dict({"a": BOX, "b": BOX})
    replay = SequenceReplay(20, pair, ACTION)
    for step in range(9):
        replay.add({"a": [[step, 0]], "b": [[0, step]]}, [[0.0]], [0.0], [step == 0], [False])
    path = replay.save(tmp_path / "r")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    one, two = "observation/a.npy", "observation/b.npy"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | {one: entries[two], two: entries[one]}).items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="checksum of its 'observation/a' is wrong"):
        SequenceReplay.load(path)


def test_folder_of_another_replay_is_refused(tmp_path: Path) -> None:
    make(capacity=20, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"capacity 20 and 1 env.*capacity 30 and 1 env"):
        make(capacity=30, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"observation: float32\[2\].*image: uint8\[64, 64, 3\]"):
        SequenceReplay(20, PICTURE, ACTION, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"Box\(1\).*Discrete\(1\)"):
        SequenceReplay(20, BOX, spaces.Discrete(1), folder=tmp_path)
    next(tmp_path.glob("reward.npy")).unlink()
    with pytest.raises(CheckpointError, match=r"reward\.npy.*missing"):
        make(capacity=20, folder=tmp_path)


def test_a_disk_with_too_little_room_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="GB, but its disk has"):
        SequenceReplay(10**12, PICTURE, ACTION, folder=tmp_path)


@pytest.mark.parametrize("to_folder", [False, True])
@pytest.mark.parametrize("added", [11, 53])
def test_save_and_load_are_equal_with_random_state(tmp_path: Path, added: int, to_folder: bool) -> None:
    replay = make(capacity=40, n_envs=2, seed=5)
    fill(replay, range(added))
    replay.sample(3, 4, newest_first=True)
    path = replay.save(tmp_path / "replay")
    assert path == tmp_path / "replay.zip"
    loaded = SequenceReplay.load(tmp_path / "replay", folder=tmp_path / "maps" if to_folder else None)
    assert loaded.observation_space == BOX
    assert loaded.action_space == ACTION
    for newest_first in (False, True):
        assert_equal_batches(replay.sample(9, 7, newest_first), loaded.sample(9, 7, newest_first))
    for one in (replay, loaded):
        fill(one, range(added, added + 30))
    assert_equal_batches(replay.sample(9, 7), loaded.sample(9, 7))
    assert [path.name for path in tmp_path.glob("*replay*")] == ["replay.zip"]


def test_uneven_streams_survive_saving_and_reopening(tmp_path: Path) -> None:
    replay = make(capacity=30, n_envs=2, seed=1, folder=tmp_path / "maps")
    fill(replay, range(9))
    for step in range(9, 22):
        replay.add([[step, 1]], [[0.0]], [step], [False], [False], envs=[1])
    replay.flush()
    loaded = SequenceReplay.load(replay.save(tmp_path / "r"))
    reopened = make(capacity=30, n_envs=2, folder=tmp_path / "maps")
    batch = replay.sample(50, 8, newest_first=True)
    assert_equal_batches(batch, loaded.sample(50, 8, newest_first=True))
    assert_equal_batches(batch, reopened.sample(50, 8, newest_first=True))


def test_empty_replay_saves_and_loads(tmp_path: Path) -> None:
    assert len(SequenceReplay.load(make().save(tmp_path / "empty.zip"))) == 0


def test_pictures_survive_saving(tmp_path: Path) -> None:
    replay = SequenceReplay(6, PICTURE, ACTION, seed=1)
    rng = np.random.default_rng(0)
    for _ in range(9):
        image = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
        replay.add({"image": image, "speed": rng.random(1)}, [[0.0]], [0.0], [True], [False])
    loaded = SequenceReplay.load(replay.save(tmp_path / "r"), PICTURE, ACTION)
    assert_equal_batches(replay.sample(5, 6), loaded.sample(5, 6))


def test_wrong_spaces_are_named(tmp_path: Path) -> None:
    path = make().save(tmp_path / "r")
    with pytest.raises(CheckpointError, match=r"observation: float32\[2\].*image: uint8"):
        SequenceReplay.load(path, PICTURE)
    with pytest.raises(CheckpointError, match=r"Box\(1\).*Box\(2\)"):
        SequenceReplay.load(path, BOX, spaces.Box(-1, 1, (2,)))


def fault_of(path: Path) -> tuple[str, SequenceReplay | None]:
    try:
        return "", SequenceReplay.load(path)
    except CheckpointError as error:
        return str(error), None


def test_damaged_files_are_named(tmp_path: Path) -> None:
    replay = make()
    fill(replay, range(60))
    path = replay.save(tmp_path / "r")
    whole = path.read_bytes()
    for offset in np.random.default_rng(0).integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        fault, loaded = fault_of(path)
        if loaded is None:
            assert str(path) in fault
        else:  # a byte without meaning, such as an entry's date
            assert np.array_equal(loaded._storage.arrays["reward"], replay._storage.arrays["reward"])
    for content in (whole[:-10], whole[: len(whole) // 2], b"", b"no zip"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"r\.zip"):
            SequenceReplay.load(path)
    with pytest.raises(CheckpointError, match=r"missing does not exist, nor missing\.zip"):
        SequenceReplay.load(tmp_path / "missing")


def test_files_of_other_kinds_and_newer_versions_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(CheckpointError, match=r"other\.zip is no replay"):
        SequenceReplay.load(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "newer.zip", "w") as archive:
        archive.writestr("index.json", json.dumps({"format": "wmgym-replay", "version": 99}))
    with pytest.raises(CheckpointError, match=r"format 99.*update wmgym"):
        SequenceReplay.load(tmp_path / "newer.zip")


def test_state_returns_to_where_it_was_taken(tmp_path: Path) -> None:
    replay = make(seed=2, folder=tmp_path)
    fill(replay, range(30))
    state = json.loads(json.dumps(replay.get_state()))
    expected = replay.sample(6, 5)
    fill(replay, range(30, 40))
    replay.sample(6, 5)
    replay.set_state(state)
    assert len(replay) == 30
    assert_equal_batches(replay.sample(6, 5), expected)
    replay.flush()
    assert len(make(folder=tmp_path)) == 30
    with pytest.raises(ValueError, match=r"after \[30\] steps"):
        make().set_state(state)
