"""Environments in processes of their own are replaced when they die or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

from wmgym import make_vec
from wmgym.guarded import FAULT, FaultyEnvironmentError
from wmgym.supervised import SupervisedVecEnv


class Deadly(gym.Wrapper):
    """Does something terrible when its third step finds the file `trap`, which it removes."""

    def __init__(self, what: str, trap: Path, forever: bool = False) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.what, self.trap, self.forever, self.steps = what, trap, forever, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.forever or (self.steps == 3 and self.trap.exists()):
            self.trap.unlink(missing_ok=True)
            self._act()
        return self.env.step(action)

    def _act(self) -> None:
        if self.what == "die":
            os._exit(3)
        if self.what == "raise":
            raise RuntimeError("the simulator crashed")
        time.sleep(1000)


@pytest.fixture
def vec(tmp_path: Path) -> Iterator[Any]:
    """Builds two environments, the second of which is deadly; closes them."""
    made: list[SupervisedVecEnv] = []

    def build(what: str, **options: Any) -> SupervisedVecEnv:
        forever = options.pop("forever", False)
        trap = tmp_path / "trap"
        trap.touch()
        fns = [lambda: gym.make("CartPole-v1"), lambda: Deadly(what, trap, forever)]
        # Forked, so that this test's classes need not be found by name, and a process is there at once.
        made.append(SupervisedVecEnv(fns, start_method="fork", **options))
        made[0].seed(0)
        return made[0]

    yield build
    made[0].close()


def steps(env: SupervisedVecEnv, count: int) -> list[Any]:
    env.reset()
    return [env.step(np.array([step % 2, step % 2])) for step in range(count)]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("die", "its process died (exit code 3)"),
        ("raise", "its process died (exit code 1)"),
        ("hang", "its process gave no answer for 3 s"),
    ],
)
def test_what_is_lost_is_replaced_and_its_episode_cut(vec: Any, what: str, named: str) -> None:
    env = vec(what, timeout=3.0 if what == "hang" else 120.0)
    results = steps(env, 8)
    faults = [[i for i, info in enumerate(infos) if FAULT in info] for *_, infos in results]
    assert faults == [[], [], [1], [], [], [], [], []]
    _, rewards, dones, infos = results[2]
    assert (rewards[1], dones[1], dones[0]) == (0.0, True, False)
    assert infos[1][FAULT] == named
    assert infos[1]["TimeLimit.truncated"]
    np.testing.assert_array_equal(infos[1]["terminal_observation"], results[1][0][1])
    assert (np.abs(results[2][0][1]) < 0.05).all()  # CartPole's first observation


def test_the_other_environment_notices_nothing(vec: Any) -> None:
    observed = np.stack([result[0][0] for result in steps(vec("die"), 8)])
    alone = SubprocVecEnv([lambda: gym.make("CartPole-v1")], start_method="fork")
    alone.seed(0)
    alone.reset()
    np.testing.assert_array_equal(observed, np.stack([alone.step(np.array([s % 2]))[0][0] for s in range(8)]))
    alone.close()


def test_the_same_loss_brings_the_same_run(vec: Any, tmp_path: Path) -> None:
    env = vec("die")
    one = np.stack([result[0] for result in steps(env, 8)])
    (tmp_path / "trap").touch()
    env.close()
    again = SupervisedVecEnv(
        [lambda: gym.make("CartPole-v1"), lambda: Deadly("die", tmp_path / "trap")], start_method="fork"
    )
    again.seed(0)
    np.testing.assert_array_equal(one, np.stack([result[0] for result in steps(again, 8)]))
    again.close()


def test_patience_ends(vec: Any) -> None:
    env = vec("die", forever=True, patience=3)
    with pytest.raises(FaultyEnvironmentError, match=r"Environment 1 was replaced 3 times.*exit code 3"):
        steps(env, 8)


def test_a_process_that_dies_between_steps_is_replaced(vec: Any) -> None:
    env = vec("die", timeout=60.0)
    env.reset()
    os.kill(env.processes[0].pid, signal.SIGKILL)
    *_, infos = env.step(np.array([0, 0]))
    assert infos[0][FAULT] == "its process died (exit code -9)"
    os.kill(env.processes[0].pid, signal.SIGKILL)
    assert env.reset().shape == (2, 4)


def test_replacing_leaks_no_descriptors(vec: Any) -> None:
    env = vec("die")
    env.reset()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        os.kill(env.processes[0].pid, signal.SIGKILL)
        env.step(np.array([0, 0]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_ctrl_c_in_a_terminal_leaves_the_environments_alone(vec: Any) -> None:
    env = vec("none")
    env.reset()
    for process in env.processes:
        os.kill(process.pid, signal.SIGINT)
    *_, infos = env.step(np.array([0, 0]))
    assert not any(FAULT in info for info in infos)


def test_make_vec_gives_supervised_and_guarded_environments() -> None:
    env = make_vec("CartPole-v1", 1, subprocess=True, seed=0, timeout=77.0)
    assert isinstance(env, SupervisedVecEnv)
    assert env.timeout == 77.0
    assert env.reset().shape == (1, 4)
    assert env.env_method("get_state")[0]["seed"] == 0
    env.close()


@pytest.mark.parametrize(("id", "kwargs", "text"), [
    ("CartPole-v9", {}, "no environment 'CartPole-v9'"),
    ("CartPole-v1", {"observation": "pixel"}, "observation='pixel' is unknown"),
])  # fmt: skip
def test_what_cannot_be_made_is_said_as_it_is_in_one_process(id: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_vec(id, 1, subprocess=True, **kwargs)


FORGETFUL = """
import os
import signal
import gymnasium as gym
from wmgym import make_vec


class Stubborn(gym.Wrapper):
    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ViZDoom does, in effect

    def close(self):
        os.write(1, b"closed\\n")  # the line at once: two processes share this stream, unbuffered perhaps


gym.register("Stubborn-v0", Stubborn)

if __name__ == "__main__":
    env = make_vec("Stubborn-v0", 2, subprocess=True)
    env.reset()
    print(*(process.pid for process in env.processes), flush=True)
"""


def test_a_program_that_forgets_to_close_ends_and_its_environments_are_closed(tmp_path: Path) -> None:
    (script := tmp_path / "forgetful.py").write_text(FORGETFUL)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    pids, *closed = done.stdout.splitlines()
    assert closed == ["closed"] * 2
    for pid in map(int, pids.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
