"""Recorded episodes: written, read back, and refused where they are not sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wmgym import dataset
from wmgym.checkpoint import CheckpointError
from wmgym.dataset import load_dataset, record
from wmgym.real import remake_env
from wmgym.replay import SequenceReplay


class Walk(gym.Env):
    """A point that goes where the action says; ends at 3, is cut after 6 steps."""

    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, keys: bool = False) -> None:
        box = spaces.Box(-10, 10, (1,), np.float32)
        self.observation_space = spaces.Dict({"place": box, "time": box}) if keys else box
        self.keys = keys

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = self.np_random.uniform(-1, 1, 1), 0
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.time = self.place + action, self.time + 1
        return self._seen(), float(self.place[0]), bool(self.place[0] > 3), self.time == 6, {}

    def _seen(self) -> Any:
        place = self.place.astype(np.float32)
        return {"place": place, "time": np.array([self.time], np.float32)} if self.keys else place


def right(_: Any) -> np.ndarray:
    return np.array([1.0], np.float32)


def test_a_recording_is_what_was_lived(tmp_path: Path) -> None:
    folder = record(Walk(), right, 25, tmp_path / "walk", seed=3)
    episodes = list(load_dataset(folder).replay.episodes())
    again, alone = Walk(), []
    observation, _ = again.reset(seed=3)
    for episode in episodes:
        np.testing.assert_allclose(episode.observation["observation"][0], observation)
        for t in range(1, len(episode)):
            observation, reward, terminated, truncated, _ = again.step(right(observation))
            np.testing.assert_allclose(episode.observation["observation"][t], observation)
            assert episode.reward[t] == pytest.approx(reward)
            assert episode.is_terminal[t] == terminated
        assert terminated or truncated
        assert episode.action[0] == 0
        np.testing.assert_allclose(episode.action[1:], 0.5)  # half of what the bounds allow
        alone.append(terminated)
        observation, _ = again.reset()
    assert any(alone)
    assert load_dataset(folder).replay.n_envs == 1


def test_a_recording_ends_after_as_many_decisions_as_asked(tmp_path: Path) -> None:
    folder = record(Walk(), None, 17, tmp_path / "walk")
    steps = [len(np.load(path)["reward"]) - 1 for path in sorted(folder.glob("*.npz"))]
    assert sum(steps) == 17
    record(Walk(), None, 4, folder)
    assert len(list(folder.glob("*.npz"))) == len(steps) + 1


def test_the_same_seed_records_the_same(tmp_path: Path) -> None:
    one, two, other = (
        load_dataset(record(Walk(), None, 20, tmp_path / name, seed=seed)).replay.sample(4, 5)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    np.testing.assert_array_equal(one.action, two.action)
    assert not np.array_equal(one.action, other.action)


def test_keys_and_what_is_known_of_the_environment(tmp_path: Path) -> None:
    folder = record(Walk(keys=True), right, 6, tmp_path / "walk")
    data = load_dataset(folder)
    assert data.replay.observation_space == Walk(keys=True).observation_space
    assert data.env["episode_limit"] is None  # it ended by itself
    named = load_dataset(record("CartPole-v1", None, 10, tmp_path / "cart"))
    assert named.env == {"id": "CartPole-v1", "episode_limit": 500}
    assert named.replay.sample(2, 3).action.shape == (3, 2, 2)  # one-hot


def test_where_a_recording_stops_is_no_limit_of_the_environment(tmp_path: Path) -> None:
    """Or dreams would be as short; of several data sets the longest limit is the environment's."""
    short = record(Walk(), None, 4, tmp_path / "short", seed=1)
    assert load_dataset(short).env["episode_limit"] is None
    whole = record(Walk(), None, 20, tmp_path / "whole", seed=1)
    assert load_dataset(whole).env["episode_limit"] == 6
    assert load_dataset([short, whole]).env["episode_limit"] == 6


class Reuses(Walk):
    """Writes every observation into the same array."""

    def _seen(self) -> Any:
        self.array = getattr(self, "array", np.zeros(1, np.float32))
        self.array[:] = self.place
        return self.array


def test_arrays_that_are_used_again_are_copied(tmp_path: Path) -> None:
    action = np.zeros(1, np.float32)

    def further(_: Any) -> np.ndarray:
        action[:] += 0.1
        return action

    folder = record(Reuses(), further, 5, tmp_path / "walk", seed=3)
    episode = np.load(folder / "000000.npz")
    np.testing.assert_allclose(episode["action"][1:, 0], [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-6)
    np.testing.assert_allclose(np.diff(episode["observation"][:, 0]), [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-6)


def test_two_recorders_in_one_folder_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has taken the number while this one was writing."""
    folder = record(Walk(), None, 6, tmp_path / "walk")
    first = (folder / "000000.npz").read_bytes()
    numbers = iter([0, 0, 1])
    monkeypatch.setattr(dataset, "_next_number", lambda _: next(numbers))
    record(Walk(), None, 6, folder, seed=1)
    assert (folder / "000000.npz").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["000000.npz", "000001.npz", "dataset.json"]


def test_an_environment_made_here_is_closed_though_its_folder_is_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[gym.Env] = []
    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.close", lambda env: closed.append(env))
    record(Walk(), None, 3, tmp_path / "walk")
    with pytest.raises(ValueError, match="choose another folder"):
        record("CartPole-v1", None, 3, tmp_path / "walk")
    assert len(closed) == 1


def test_an_argument_that_no_file_holds_is_named_in_it(tmp_path: Path) -> None:
    folder = record("Pendulum-v1", None, 3, tmp_path / "pendulum", g=np.float32(9.8))
    assert load_dataset(folder).env == {"id": "Pendulum-v1", "episode_limit": 200, "lost": ["g"]}


def test_a_policy_that_remembers_is_told_when_an_episode_begins(tmp_path: Path) -> None:
    class Counts:
        starts: list[bool] = []  # noqa: RUF012

        def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
            assert episode_start[0] == (state is None)
            self.starts.append(bool(episode_start[0]))
            return np.array([0.1 * (state or 0)], np.float32), (state or 0) + 1

    policy = Counts()
    folder = record(Walk(), policy, 12, tmp_path / "walk")
    assert policy.starts == [True] + [False] * 5 + [True] + [False] * 5
    np.testing.assert_allclose(np.load(folder / "000000.npz")["action"][:, 0], [0, 0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_replay_and_its_file_are_data_sets(tmp_path: Path) -> None:
    replay = load_dataset(record(Walk(), right, 10, tmp_path / "walk")).replay
    assert load_dataset(replay).replay is replay
    path = replay.save(tmp_path / "replay.zip")
    assert len(load_dataset(path).replay) == len(replay)


def test_several_are_one(tmp_path: Path) -> None:
    """Every step of every part is there, and no sequence runs on from one part into the next."""
    folder = record(Walk(), right, 10, tmp_path / "walk")
    replay = load_dataset(record(Walk(), None, 20, tmp_path / "more", seed=1)).replay
    whole = load_dataset([folder, replay])
    assert whole.env == load_dataset(folder).env
    parts = [load_dataset(folder).replay, replay]
    assert len(whole.replay) == sum(map(len, parts))
    (joined,) = whole.replay.steps(0, 1000)
    for name in ("reward", "action", "is_first", "is_terminal"):
        np.testing.assert_array_equal(joined[name], np.concatenate([next(part.steps(0, 1000))[name] for part in parts]))


def test_an_episode_whose_beginning_is_lost_does_not_begin_dreams(tmp_path: Path) -> None:
    """A replay that has run over holds the rest of an episode; joined to others, that is left out."""
    lived = load_dataset(record(Walk(), lambda _: np.zeros(1, np.float32), 12, tmp_path / "walk")).replay
    small = SequenceReplay(10, lived.observation_space, lived.action_space)
    (steps,) = lived.steps(0, 100)
    for t in range(len(steps["reward"])):
        seen = {key: value[t][None] for key, value in steps["observation"].items()}
        small.add(seen, **{key: steps[key][t][None] for key in steps if key != "observation"})
    both = load_dataset([small, small]).replay
    assert (len(small), len(both)) == (10, 14)  # two episodes of 7: of the first three are left
    first = small.first_steps(10)["observation"]
    np.testing.assert_array_equal(both.first_steps(10)["observation"], np.concatenate([first, first]))


def test_of_an_environment_that_was_given_no_other_is_made(tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")  # whose actions are torques; make_env's are not
    facts = load_dataset(record(env, None, 5, tmp_path / "pendulum")).env
    assert (facts["id"], facts["episode_limit"]) == ("Pendulum-v1", 200)
    with pytest.raises(ValueError, match=r"could not keep the environment's wrappers.*give it, env="):
        remake_env(facts)


def test_a_folder_holds_episodes_of_one_environment(tmp_path: Path) -> None:
    folder = record("CartPole-v1", None, 5, tmp_path / "cart", action_repeat=2)
    record("CartPole-v1", None, 5, folder, action_repeat=2)
    index = (folder / "dataset.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds episodes of the environment .*'action_repeat': 2.* not .*: 4}"):
        record("CartPole-v1", None, 5, folder, action_repeat=4)
    assert (folder / "dataset.json").read_bytes() == index


def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    generator = np.random.default_rng(0)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=number,
            observations=generator.normal(size=(steps + 1, 4)).astype(np.float32),
            actions=generator.integers(2, size=steps),
            rewards=list(np.arange(steps) + 1.0),
            terminations=[False] * (steps - 1) + [number == 0],
            truncations=[False] * (steps - 1) + [number == 1],
        )
        for number, steps in enumerate((5, 3))
    ]
    made = minari.create_dataset_from_buffers("test/cartpole-v0", buffers, env="CartPole-v1")
    data = load_dataset(made)
    assert data.env == {"id": "CartPole-v1", "episode_limit": 500}
    first, second = data.replay.sample(1, 10).reward[:, 0].split([6, 4])
    assert (first.tolist(), second.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    (episode,) = data.replay.episodes()  # the second was cut, and nothing follows it
    np.testing.assert_allclose(episode.observation["observation"], buffers[0].observations)
    assert list(episode.action[1:].argmax(-1)) == list(buffers[0].actions)
    assert list(episode.is_terminal) == [False] * 5 + [True]
    assert len(data.replay) == 10


@pytest.mark.parametrize(("spoil", "text"), [
    (lambda folder: (folder / "dataset.json").write_text("{}"), "no data set of wmgym"),
    (lambda folder: (folder / "dataset.json").write_text('{"format": "wmgym-episodes"}'), "does not tell the spaces"),
    (lambda folder: _tell(folder, env=[1]), r"dataset\.json tells nonsense of its environment"),
    (lambda folder: _tell(folder, env={"episode_limit": "x"}), r"dataset\.json tells nonsense .*'x'"),
    (lambda folder: (folder / "dataset.json").unlink(), r"dataset\.json cannot be read"),
    (lambda folder: [path.unlink() for path in folder.glob("*.npz")], "holds no episode"),
    (lambda folder: (folder / "000000.npz").write_bytes(b"PK"), r"000000\.npz cannot be read as an episode"),
    (lambda folder: np.savez(folder / "000000.npz", action=np.zeros((3, 1))), r"000000\.npz cannot be read"),
    (lambda folder: _write(folder, reward=np.zeros(2)), r"000000\.npz does not fit .*2 rewards"),
    (lambda folder: _write(folder, observation=np.full((3, 1), np.nan)), r"000000\.npz does not fit .*NaN"),
    (lambda folder: _write(folder, action=np.array([[{}]] * 3, dtype=object)), r"000000\.npz cannot be read"),
])  # fmt: skip
def test_files_that_are_not_sound_are_named(spoil: Any, text: str, tmp_path: Path) -> None:
    folder = record(Walk(), right, 3, tmp_path / "walk")
    spoil(folder)
    with pytest.raises(CheckpointError, match=text):
        load_dataset(folder)


def test_flipped_bits_are_refused_or_do_no_harm(tmp_path: Path) -> None:
    folder = record(Walk(), None, 6, tmp_path / "walk")
    path = next(folder.glob("*.npz"))
    good, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(bad))
        try:
            load_dataset(folder)
        except CheckpointError:
            refused += 1
    assert refused > 100


def _tell(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _write(folder: Path, **changes: np.ndarray) -> None:
    arrays = {"observation": np.zeros((3, 1)), "action": np.zeros((3, 1)), "reward": np.zeros(3),
              "is_terminal": np.zeros(3, bool)}  # fmt: skip
    np.savez(folder / "000000.npz", **{**arrays, **changes})


def test_what_cannot_be_recorded_or_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        record(Walk(), None, 0, tmp_path / "walk")
    with pytest.raises(ValueError, match=r"\['size'\] are for environments named by an id"):
        record(Walk(), None, 3, tmp_path / "walk", size=32)
    record(Walk(), None, 3, tmp_path / "walk")
    with pytest.raises(ValueError, match="another observation_space: choose another folder"):
        record(Walk(keys=True), None, 3, tmp_path / "walk")
    with pytest.raises(CheckpointError, match=r"recoded does not exist: name a folder of episodes"):
        load_dataset(tmp_path / "recoded")
    with pytest.raises(TypeError, match="not a int"):
        load_dataset([1, 2])
    with pytest.raises(ValueError, match="no data set in the list"):
        load_dataset([])
    keys = record(Walk(keys=True), None, 3, tmp_path / "keys")
    with pytest.raises(ValueError, match="one observation_space, but these have Box"):
        load_dataset([tmp_path / "walk", keys])
    assert isinstance(load_dataset(tmp_path / "walk").replay, SequenceReplay)
