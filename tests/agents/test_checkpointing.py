"""Checkpoints as a run goes: exact to go on from, whole or absent, whatever happens while they are written."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import ConvertCallback

from agents import Dreamer
from agents.checkpointing import CheckpointEvery, last_checkpoint
from wmgym.checkpoint import CheckpointError, read_manifest
from wmgym.replay import SequenceReplay

WHOLE = 90


def resumed(folder: Path) -> Dreamer:
    agent = Dreamer.load(last_checkpoint(folder), device="cpu")
    return agent.learn(WHOLE - agent.num_timesteps, reset_num_timesteps=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mapped", [False, True], ids=["in RAM", "memory-mapped"])
def test_every_checkpoint_goes_on_exactly(tiny: Any, assert_same: Any, tmp_path: Path, mapped: bool) -> None:
    options = {"buffer_folder": tmp_path / "replay", "buffer_size": 500} if mapped else {}
    tiny("CartPole-v1", n_envs=2, **options).learn(62, CheckpointEvery(tmp_path / "saved", 30))
    unbroken = tiny("CartPole-v1", n_envs=2).learn(WHOLE)
    assert last_checkpoint(tmp_path / "saved").name == "checkpoint-000000062.zip"  # the end of `learn`
    again = resumed(tmp_path / "saved")
    assert unbroken._n_updates > 5
    assert_same(again, unbroken)


def test_a_checkpoint_from_the_middle_of_a_step_goes_on_exactly(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    tiny("CartPole-v1", train_ratio=32.0).learn(WHOLE, CheckpointEvery(tmp_path, 25, keep=9))
    for path in tmp_path.glob("checkpoint-*0.zip"):
        path.unlink()  # the one at the end: the last one left was written by a callback, before the step's updates
    agent = Dreamer.load(last_checkpoint(tmp_path), device="cpu")
    assert (agent.num_timesteps, agent._updates_due >= 1) == (75, True)
    assert_same(resumed(tmp_path), tiny("CartPole-v1", train_ratio=32.0).learn(WHOLE))


def test_only_the_newest_are_kept_each_with_its_replay(tiny: Any, tmp_path: Path) -> None:
    tiny("CartPole-v1").learn(50, CheckpointEvery(tmp_path, 10, keep=2))
    assert names(tmp_path) == [f"checkpoint-0000000{steps}{kind}.zip" for steps in (40, 50) for kind in ("-replay", "")]


def test_a_replay_that_has_not_grown_is_not_written_again(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    agent, replay = tiny("CartPole-v1").learn(60), tmp_path / "agent-replay.zip"
    agent.save(tmp_path / "agent.zip", include=["replay_buffer"])
    written = replay.stat().st_ino
    agent.replay_buffer.sample(4, 5)  # the next draw is another, and the agent's file says so
    agent.save_replay_buffer(tmp_path / "elsewhere.zip")
    agent.save(tmp_path / "agent.zip", include=["replay_buffer"])
    assert replay.stat().st_ino == written
    assert read_manifest(tmp_path / "agent.zip")["run"]["replay"]["file"] == str(replay.resolve())
    again = Dreamer.load(tmp_path / "agent.zip", device="cpu")
    again.load_replay_buffer(replay)
    for one in (agent, again):
        one.learn(WHOLE - 60, reset_num_timesteps=False)
    assert_same(again, agent)
    agent.save(tmp_path / "agent.zip", include=["replay_buffer"])
    assert replay.stat().st_ino != written
    replay.write_bytes(b"of somebody else")
    agent.save(tmp_path / "agent.zip", include=["replay_buffer"])
    assert len(SequenceReplay.load(replay)) == len(agent.replay_buffer)


def test_writing_them_does_not_change_the_run(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    assert_same(tiny("CartPole-v1").learn(60, CheckpointEvery(tmp_path, 7)), tiny("CartPole-v1").learn(60))


def test_checkpoints_of_a_run_that_went_further_are_not_overwritten(tiny: Any, tmp_path: Path) -> None:
    tiny("CartPole-v1").learn(50, CheckpointEvery(tmp_path, 20))
    with pytest.raises(CheckpointError, match=r"checkpoint-000000050\.zip, of a run that went further"):
        tiny("CartPole-v1").learn(50, CheckpointEvery(tmp_path, 20))
    assert last_checkpoint(tmp_path).name == "checkpoint-000000050.zip"


def test_what_a_killed_writer_left_is_passed_over_and_removed(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny("CartPole-v1").learn(40, CheckpointEvery(tmp_path, 20, keep=2))
    (tmp_path / ".checkpoint-000000060.zip.abc.tmp").write_bytes(b"half")
    newest = tmp_path / "checkpoint-000000040.zip"
    newest.write_bytes(newest.read_bytes()[:-100])  # as if the disk had lost its end
    assert last_checkpoint(tmp_path).name == "checkpoint-000000020.zip"
    assert "checkpoint-000000040.zip cannot be read" in caplog.text
    resumed_agent = Dreamer.load(last_checkpoint(tmp_path), device="cpu")
    resumed_agent.learn(20, CheckpointEvery(tmp_path, 20), reset_num_timesteps=False)
    assert names(tmp_path) == ["checkpoint-000000040-replay.zip", "checkpoint-000000040.zip"]
    assert last_checkpoint(tmp_path).name == "checkpoint-000000040.zip"


def test_without_a_checkpoint_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        last_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(("every", "keep"), [(0, 1), (10, 0)])
def test_bad_arguments_are_refused(tmp_path: Path, every: int, keep: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        CheckpointEvery(tmp_path, every, keep)


# -- killed, or without room, at any moment of a save ---------------------------------------------------------


def killed_at(moment: str, call: int, folder: Path, train: Callable[[], Any]) -> None:
    """Run `train` in a forked process that SIGKILLs itself in the given call of `os.<moment>`."""
    pid = os.fork()
    if pid == 0:
        original, calls = getattr(os, moment), []

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(os, moment, deadly)
        train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


# A save syncs and renames the replay and its folder, then the checkpoint and its folder: the third one is from step 60.
@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("write", ["replay", "checkpoint"])
def test_killed_inside_a_save_the_last_checkpoint_is_whole(
    tiny: Any, assert_same: Any, tmp_path: Path, moment: str, write: str
) -> None:
    number = {"fsync": {"replay": 9, "checkpoint": 11}, "replace": {"replay": 5, "checkpoint": 6}}[moment][write]
    agent = tiny("CartPole-v1")
    killed_at(moment, number, tmp_path, lambda: agent.learn(WHOLE, CheckpointEvery(tmp_path, 20)))
    assert any(name.endswith(".tmp") for name in names(tmp_path))
    assert last_checkpoint(tmp_path).name == "checkpoint-000000040.zip"
    assert_same(resumed(tmp_path), tiny("CartPole-v1").learn(WHOLE))


def test_killed_while_it_collects_a_memory_mapped_replay_keeps_all_full_records(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1", buffer_folder=tmp_path / "replay", buffer_size=200)
    pid = os.fork()
    if pid == 0:
        agent.learn(WHOLE, lambda scope, _: scope["self"].num_timesteps < 33 or os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    os.waitpid(pid, 0)
    replay = SequenceReplay(200, agent.observation_space, agent.action_space, folder=tmp_path / "replay")
    assert replay.sample(4, 8).reward.shape == (8, 4)
    assert 33 <= len(replay) <= 40  # each episode brings one observation more than decisions


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Inside, no file may become larger than `size` bytes, as on a disk that is full (pytest's own report neither)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1000, 20_000], ids=["no room for the replay", "no room for the agent"])
def test_without_room_training_goes_on_and_the_last_checkpoint_stays(
    tiny: Any, assert_same: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    agent = tiny("CartPole-v1").learn(40, CheckpointEvery(tmp_path, 20))
    with no_room(size):
        agent.learn(30, CheckpointEvery(tmp_path, 20), reset_num_timesteps=False)
    assert agent.num_timesteps == 70
    assert "cannot be written" in caplog.text
    assert f"Training goes on; the last good checkpoint is {tmp_path}/checkpoint-000000040.zip." in caplog.text
    assert names(tmp_path) == ["checkpoint-000000040-replay.zip", "checkpoint-000000040.zip"]
    assert_same(resumed(tmp_path), tiny("CartPole-v1").learn(WHOLE))


def test_when_there_is_room_again_the_next_checkpoint_is_written(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1")
    with no_room(1000):
        agent.learn(50, CheckpointEvery(tmp_path, 20))
    with pytest.raises(CheckpointError):
        last_checkpoint(tmp_path)
    agent.learn(10, CheckpointEvery(tmp_path, 20), reset_num_timesteps=False)
    assert last_checkpoint(tmp_path).name == "checkpoint-000000060.zip"


def test_a_folder_that_cannot_be_written_is_told_and_training_goes_on(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    agent = tiny("CartPole-v1").learn(50, CheckpointEvery(tmp_path / "file" / "saved", 20))
    assert agent.num_timesteps == 50
    assert "cannot be written" in caplog.text
    assert "the last good checkpoint is none yet" in caplog.text


# -- signals --------------------------------------------------------------------------------------------------


def send(number: int, step: int) -> Callable[..., bool]:
    def press(scope: dict[str, Any], _: Any) -> bool:
        if scope["self"].num_timesteps == step:
            signal.raise_signal(number)
        return True

    return press


def test_sigterm_saves_says_where_and_ends_the_program(
    tiny: Any, assert_same: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        tiny("CartPole-v1", interrupt_folder=tmp_path).learn(WHOLE, send(signal.SIGTERM, 50))
    assert ended.value.code == 143
    (path,) = tmp_path.glob("dreamer-CartPole-v1-seed*-50-interrupted.zip")
    assert caplog.messages[1:] == [f"Interrupted after 50 decisions; saved to {path}."]
    assert signal.getsignal(signal.SIGTERM) is handler
    agent = Dreamer.load(path, device="cpu").learn(WHOLE - 50, reset_num_timesteps=False)
    assert_same(agent, tiny("CartPole-v1").learn(WHOLE))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_once_where_its_checkpoints_are(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    agent = tiny("CartPole-v1", interrupt_folder=tmp_path / "elsewhere")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        agent.learn(WHOLE, [ConvertCallback(send(number, 50)), CheckpointEvery(tmp_path / "saved", 20)])
    path = last_checkpoint(tmp_path / "saved")
    assert read_manifest(path)["run"]["num_timesteps"] == 50
    assert caplog.messages[1:] == [f"Interrupted after 50 decisions; saved to {path}."]
    assert not (tmp_path / "elsewhere").exists()


def test_a_burst_of_updates_ends_at_a_signal_and_is_done_later(
    tiny: Any, assert_same: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TD-MPC2 begins with 2500 updates: nobody waits for them."""
    update = Dreamer.update

    def interrupted(agent: Dreamer) -> None:
        update(agent)
        if agent._n_updates == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Dreamer, "update", interrupted)
    with pytest.raises(SystemExit):
        tiny("CartPole-v1", pretrain=40, interrupt_folder=tmp_path).learn(WHOLE)
    monkeypatch.undo()
    assert "A second signal stops at once" in caplog.messages[0]
    agent = Dreamer.load(next(tmp_path.glob("*-interrupted.zip")), device="cpu")
    assert (agent._n_updates, agent._updates_due) == (3, 37)
    agent.learn(WHOLE - agent.num_timesteps, reset_num_timesteps=False)
    assert_same(agent, tiny("CartPole-v1", pretrain=40).learn(WHOLE))


def test_the_last_checkpoint_is_the_finished_agent(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    """Though a callback wrote one at the same step, before its updates."""
    agent = tiny("CartPole-v1", train_ratio=32.0).learn(60, CheckpointEvery(tmp_path, 20))
    assert_same(Dreamer.load(last_checkpoint(tmp_path), device="cpu"), agent)


def test_an_interrupted_run_without_room_says_so(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    agent = tiny("CartPole-v1", interrupt_folder=tmp_path)
    with no_room(1000), caplog.at_level(logging.ERROR, "wmgym"), pytest.raises(SystemExit):
        agent.learn(WHOLE, send(signal.SIGTERM, 50))
    assert "Interrupted after 50 decisions, and not saved" in caplog.text
