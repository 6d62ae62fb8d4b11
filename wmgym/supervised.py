"""Environments in processes of their own, which are replaced when they die or hang."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import CloudpickleWrapper, SubprocVecEnv
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs, _worker

from wmgym.guarded import FAULT, FaultyEnvironmentError

LOST = (EOFError, OSError)
"""What asking a process that is gone or hangs raises; ConnectionError and TimeoutError are kinds of OSError."""

_START_TIMEOUT = 300.0  # seconds: a process imports torch and MuJoCo, and the machine may be busy
_GRACE = 1.0  # seconds for the others, when one of them has used up the time of all
_LAST_GRACE = 5.0  # seconds for each, when the program ends
_RAISED = 1  # exit code of a process that an exception has ended
_PRELOADED = ["__main__", "wmgym.real"]


class SupervisedVecEnv(SubprocVecEnv):
    """A `SubprocVecEnv` that outlives its environments.

    A process that dies or gives no answer is replaced by a new one. The episode that it had is cut: the step comes out
    as done, with `info["fault"]` (what happened), `info["TimeLimit.truncated"]`, the last good observation and
    reward 0; agents leave such a step out of their replay. The processes ignore Ctrl-C, which is the program's to
    answer, and are closed with the program or with the last reference to this, if nobody has done it before.

    Args:
        env_fns: one function an environment.
        timeout: seconds that a step or reset may take.
        patience: how often in a row an environment is replaced without a good step between.
        start_method: of the processes; None: "forkserver" where there is one, else "spawn".

    Raises:
        FaultyEnvironmentError: from `step` and `reset`, when patience is at an end. What a function raises while it
            makes the first environment is raised here.

    Example:
        >>> env = SupervisedVecEnv([lambda: gym.make("CartPole-v1")])
        >>> _ = env.seed(0)
        >>> env.reset().shape
        (1, 4)
        >>> env.processes[0].kill()
        >>> _, _, dones, infos = env.step(np.array([0]))
        >>> bool(dones[0]), infos[0]["fault"]
        (True, 'its process died (exit code -9)')
        >>> env.close()
    """

    remotes: list[Any]
    processes: list[Any]

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        timeout: float = 120.0,
        patience: int = 10,
        start_method: str | None = None,
    ) -> None:
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":  # imported once, so that a new process is there at once
            self._context.set_forkserver_preload(_PRELOADED)
        self._makers = [CloudpickleWrapper(_Deaf(env_fn)) for env_fn in env_fns]
        self.timeout, self.patience = timeout, patience
        self._first_seeds: list[int | None] = [None] * len(env_fns)
        self._replaced = [0] * len(env_fns)
        self._in_a_row = [0] * len(env_fns)
        self._seen: list[Any] = [None] * len(env_fns)
        try:
            super().__init__([maker.var for maker in self._makers], start_method)
        except (EOFError, ConnectionError) as error:
            code = self._end_code(0)
            _close_all(self.remotes, self.processes, _GRACE)
            if code == _RAISED:
                env_fns[0]().close()  # raises here what the process could not tell
            raise FaultyEnvironmentError(
                f"The process of environment 0 died as it began (exit code {code})."
            ) from error
        self.remotes, self.processes = list(self.remotes), list(self.processes)
        # Before multiprocessing asks them to end and waits, which those of ViZDoom would not heed.
        self._at_exit = Finalize(self, _close_all, (self.remotes, self.processes, _LAST_GRACE), exitpriority=0)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """As every `VecEnv`'s; a process that is replaced goes on with a seed that follows from its own."""
        self._first_seeds = list(super().seed(seed))
        return self._first_seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions; what is lost is found by `step_wait`."""
        for index, action in enumerate(actions):
            _send(self.remotes[index], "step", action)
        self.waiting = True

    def step_wait(self) -> Any:
        """The results of all, replacing what is lost."""
        deadline = time.monotonic() + self.timeout
        results = [self._stepped(index, deadline) for index in range(self.num_envs)]
        self.waiting = False
        observations, rewards, dones, infos, reset_infos = zip(*results)
        self.reset_infos = list(reset_infos)
        self._seen = list(observations)
        return _stack_obs(observations, self.observation_space), np.stack(rewards), np.stack(dones), infos

    def reset(self) -> Any:
        """Begin an episode in all, replacing what is lost."""
        for index in range(self.num_envs):
            _send(self.remotes[index], "reset", (self._seeds[index], self._options[index]))
        deadline = time.monotonic() + self.timeout
        results = [self._begun(index, deadline) for index in range(self.num_envs)]
        observations, reset_infos = zip(*results)
        self.reset_infos = list(reset_infos)
        self._seen = list(observations)
        self._reset_seeds()
        self._reset_options()
        return _stack_obs(observations, self.observation_space)

    def close(self) -> None:
        """End the processes; one that does not answer is killed."""
        if self.closed:
            return
        self.closed = True
        self._at_exit.cancel()
        _close_all(self.remotes, self.processes, _GRACE if self.waiting else self.timeout)

    # -- one process ------------------------------------------------------------------------------------------

    def _stepped(self, index: int, deadline: float) -> tuple[Any, ...]:
        try:
            result = self._received(index, deadline)
        except LOST as error:
            fault = self._fault(index, error)
            observation, reset_info = self._renewed(index, fault)
            info = {FAULT: fault, "TimeLimit.truncated": True, "terminal_observation": self._seen[index]}
            return observation, 0.0, True, info, reset_info
        self._in_a_row[index] = 0
        return result

    def _begun(self, index: int, deadline: float) -> tuple[Any, dict[str, Any]]:
        try:
            return self._received(index, deadline)
        except LOST as error:
            return self._renewed(index, self._fault(index, error))

    def _renewed(self, index: int, fault: str) -> tuple[Any, dict[str, Any]]:
        """The first observation of a new process in place of a lost one."""
        while self._in_a_row[index] < self.patience:
            self._in_a_row[index] += 1
            self._replaced[index] += 1
            _end(self.remotes[index], self.processes[index])
            self._start(index)
            _send(self.remotes[index], "reset", (self._next_seed(index), {}))
            try:
                return self._received(index, time.monotonic() + _START_TIMEOUT)
            except LOST as error:
                fault = self._fault(index, error)
        raise FaultyEnvironmentError(
            f"Environment {index} was replaced {self.patience} times without a good step between, the last time "
            f"because {fault}."
        )

    def _start(self, index: int) -> None:
        self.remotes[index], work_remote = self._context.Pipe()
        arguments = (work_remote, self.remotes[index], self._makers[index])
        self.processes[index] = self._context.Process(target=_worker, args=arguments, daemon=True)
        self.processes[index].start()
        work_remote.close()

    def _received(self, index: int, deadline: float) -> Any:
        remote, process = self.remotes[index], self.processes[index]
        # The end of a process is asked for too: where it was forked, others may keep its pipe open.
        ready = wait([remote, process.sentinel], max(deadline - time.monotonic(), _GRACE))
        if not ready:
            raise TimeoutError
        if not remote.poll():
            raise EOFError
        return remote.recv()

    def _fault(self, index: int, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"its process gave no answer for {self.timeout:g} s"
        return f"its process died (exit code {self._end_code(index)})"

    def _end_code(self, index: int) -> int | None:
        self.processes[index].join(_GRACE)
        code: int | None = self.processes[index].exitcode
        return code

    def _next_seed(self, index: int) -> int | None:
        first = self._first_seeds[index]
        if first is None:
            return None
        return int(np.random.SeedSequence([first, self._replaced[index]]).generate_state(1)[0])


def _send(remote: Any, command: str, data: Any) -> None:
    with suppress(OSError):  # its process is gone: receiving, or joining, will say so
        remote.send((command, data))


def _close_all(remotes: Sequence[Any], processes: Sequence[Any], grace: float) -> None:
    """Close the environments, and end the processes that have not done it after `grace` seconds each."""
    for remote in remotes:
        _send(remote, "close", None)
    for remote, process in zip(remotes, processes, strict=True):
        process.join(grace)
        _end(remote, process)


def _end(remote: Any, process: Any) -> None:
    """Take a process away, whatever it is doing, with all that it held here."""
    process.kill()
    process.join()
    process.close()
    remote.close()


class _Deaf:
    """Makes an environment in a process that ignores Ctrl-C: in a terminal it reaches every process."""

    def __init__(self, env_fn: Callable[[], gym.Env]) -> None:
        self.env_fn = env_fn

    def __call__(self) -> gym.Env:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return self.env_fn()
