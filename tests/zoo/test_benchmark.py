"""`benchmark` runs what is not done, resumes what was stopped; `tune`, and the commands by name."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

from agents import ALGORITHMS
from agents.arguments import argument_names
from agents.zoo import benchmark, tune
from agents.zoo.__main__ import COMMANDS
from agents.zoo.__main__ import main as zoo
from agents.zoo.benchmark import Benchmark, is_done
from agents.zoo.registry import register_algorithms
from agents.zoo.suites import Suite, read_suites
from wmgym import CheckpointError

TINY = ["deter=16", "stoch=4", "units=16", "batch_size=2", "batch_length=8", "horizon=3", "imagine_starts=8"]
TINY += ["learning_starts=40", "train_ratio=4"]

SUITE = {
    "tiny": {
        "about": "one small task",
        "agents": ["dreamer"],
        "envs": ["CartPole-v1"],
        "seeds": [0, 1],
        "env_steps": 80,
        "observation": "state",
    }
}


def write_result(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"complete": True, "env_steps": [0, 80], "action_repeat": 1, **changes}))
    return path


def test_what_is_done_and_what_is_not(tmp_path: Path) -> None:
    stopped = "Traceback (most recent call last):\n  ...\nKeyboardInterrupt\n"
    failed = "Traceback (most recent call last):\n  ...\nValueError: no\n"
    assert not is_done(tmp_path / "none.json", 80)
    assert is_done(write_result(tmp_path / "a.json"), 80)
    assert not is_done(write_result(tmp_path / "b.json", env_steps=[0, 40]), 80)  # it was asked for less
    assert is_done(write_result(tmp_path / "f.json", env_steps=[0, 78], action_repeat=3), 80)  # whole decisions
    assert not is_done(write_result(tmp_path / "c.json", complete=False), 80)
    assert not is_done(write_result(tmp_path / "d.json", complete=False, error=stopped), 80)
    assert is_done(write_result(tmp_path / "e.json", complete=False, error=failed), 80)
    assert not is_done(tmp_path / "e.json", 80, retry=True)


def test_a_suite_leaves_out_what_is_done(tmp_path: Path) -> None:
    suite = Suite("x", "", ("dreamer", "dreamer/pixels"), ("A-v0",), (0, 1), 80)
    write_result(tmp_path / "results/dreamer/A-v0/pixels-seed1.json")
    to_do = Benchmark(suite, str(tmp_path / "results"), str(tmp_path)).to_do()
    assert [(run.preset, run.seed) for run in to_do] == [("default", 0), ("pixels", 0), ("default", 1)]


STUB = """
import json, signal, sys, time
from pathlib import Path

path = Path(sys.argv[1])
if path.exists():  # the second time it goes on to its end
    path.write_text(json.dumps({"complete": True, "env_steps": [0, 80]}))
    sys.exit(0)

def stop(number, frame):
    path.write_text(json.dumps({"complete": False, "env_steps": [0], "error": "SystemExit: 143"}))
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
path.with_suffix(".begun").touch()
time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_suite_that_was_interrupted_tells_its_runs_goes_on_and_is_then_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Runs are stood for by processes that save when they are told to stop; `test_train` has the real ones."""
    (tmp_path / "suites.yml").write_text(yaml.safe_dump(SUITE))
    options = ["tiny", "--suites", str(tmp_path / "suites.yml"), "--processes", "2"]
    options += ["--results", str(tmp_path), "-f", str(tmp_path / "runs")]
    folder = tmp_path / "dreamer" / "CartPole-v1"
    folder.mkdir(parents=True)
    monkeypatch.setattr(
        Benchmark,
        "command",
        lambda self, run: [sys.executable, "-c", STUB, str(folder / f"default-seed{run.seed}.json")],
    )

    def stop_once_both_have_begun() -> None:
        while len(list(folder.glob("*.begun"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    stopping = threading.Thread(target=stop_once_both_have_begun)
    stopping.start()
    assert benchmark.main(options) == 130
    stopping.join()
    assert all("error" in json.loads(path.read_text()) for path in folder.glob("*.json"))
    assert benchmark.main(options) == 0
    assert [json.loads(path.read_text())["complete"] for path in folder.glob("*.json")] == [True, True]
    capsys.readouterr()
    assert benchmark.main(options) == 0
    assert "tiny: 0 of 2 runs to do." in capsys.readouterr().out


def test_a_run_that_fails_is_told_and_does_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Benchmark,
        "command",
        lambda self, run: [sys.executable, "-c", f"raise SystemExit({run.seed})"],
    )
    suite = Suite("x", "", ("dreamer",), ("A-v0",), (0, 1, 0), 80)
    failed = Benchmark(suite, str(tmp_path / "results"), str(tmp_path)).run(processes=2)
    assert [run.seed for run in failed] == [1]
    assert "dreamer-default-A-v0-1.log" in capfd.readouterr().out


def test_list_says_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["benchmark", "sac", "--list", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sac: 27 of 27 runs to do."
    assert "--algo sac --preset default --env dm_control/cartpole-swingup-v0 --seed 0 --env-steps 100000" in lines[1]


def test_an_option_of_train_is_not_taken_for_one_of_the_suites() -> None:
    args, options = benchmark.build_parser().parse_known_args(["nine", "--log", "there"])
    assert (args.log_folder, options) == ("runs/zoo", ["--log", "there"])


def test_a_suite_that_is_none_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["eight"])
    assert "planet-6" in capsys.readouterr().err
    (tmp_path / "suites.yml").write_text("x: {about: nothing else}")
    with pytest.raises(ValueError, match="'x'"):
        read_suites(tmp_path / "suites.yml")


def test_commands_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:] if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert {"train", "enjoy", "record", "benchmark", "plot", "tune"} <= set(listed)
    assert zoo(["fly"]) == 2
    assert "train" in capsys.readouterr().err
    assert zoo(["take_cover"]) == 2
    assert "python -m agents.zoo.take_cover" in capsys.readouterr().err


def test_an_error_in_what_was_asked_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, text in (
        (["enjoy", "--model", "nobody"], "error: nobody does not exist"),
        (["train", "--env", "CartPoll-v1"], "error: There is no environment 'CartPoll-v1'"),
        (["train", "--env", "CartPole-v1", "--preset", "nope"], "error: dreamer.yml has no preset 'nope'"),
        (["train", "--env", "CartPole-v1", "--set", "horizon"], "error: 'horizon' sets nothing: write name=value."),
    ):
        assert zoo(wrong) == 2, wrong
        told = capsys.readouterr().err
        assert told.splitlines()[-1].startswith(text), told
    with pytest.raises(CheckpointError):
        zoo(["--traceback", "enjoy", "--model", "nobody"])
    for wrong, text in (
        (["plot", "--suites", "nope"], "there is no suite 'nope'"),
        (["record", "--suite", "nine", "--model", "walker-walk"], "leave --out and --model out"),
    ):
        with pytest.raises(SystemExit):
            zoo(wrong)
        assert text in capsys.readouterr().err


def test_tables_of_other_results_leave_the_projects_pages_alone(tmp_path: Path) -> None:
    pages = {page: Path(page).read_text() for page in ("README.md", "docs/results.md", "docs/dream.md")}
    (tmp_path / "mine").mkdir()
    assert zoo(["benchmark", "--table", "--results", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "BENCHMARK.md").stat().st_size > 0
    assert {page: Path(page).read_text() for page in pages} == pages


def test_a_complete_run_that_is_too_short_is_begun_anew(tmp_path: Path) -> None:
    suite = Suite("x", "", ("dreamer",), ("A-v0",), (0,), 80)
    path = tmp_path / "dreamer" / "A-v0" / "default-seed0.json"
    path.parent.mkdir(parents=True)
    runs = Benchmark(suite, str(tmp_path), str(tmp_path))
    (run,) = suite.runs()
    for complete, steps, anew in ((True, 40, True), (False, 40, False), (True, 80, False)):
        path.write_text(json.dumps({"complete": complete, "env_steps": [0, steps]}))
        assert ("--anew" in runs.command(run)) is anew


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_tune_may_choose_the_algorithm_has(algo: str) -> None:
    register_algorithms()
    chosen = HYPERPARAMS_SAMPLER[algo](optuna.create_study().ask(), 1, 1, {})
    assert "learning_rate" in chosen
    assert set(chosen) <= set(argument_names(ALGORITHMS[algo]))


def test_tune_finds_something_for_a_stock_algorithm_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What RL Zoo chooses for PPO holds classes, which YAML does not."""
    file = tmp_path / "ppo.yml"
    file.write_text("default:\n  n_timesteps: 40\n  policy: MlpPolicy\n")
    options = ["--algo", "ppo", "--conf-file", str(file), "--env", "CartPole-v1", "--env-steps", "40", "--verbose", "0"]
    assert tune.main([*options, "--eval-episodes", "1", "-f", str(tmp_path), "--n-trials", "1"]) == 0
    (best,) = tmp_path.glob("tune/*.yml")
    entry = yaml.safe_load(best.read_text())["default"]
    assert "net_arch" in entry["policy_kwargs"]
    assert "activation_fn" not in entry["policy_kwargs"]
    assert "1 trials; the best is number 0" in capsys.readouterr().out


def test_tune_prints_the_best_of_its_trials_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--env",
        "CartPole-v1",
        "--env-steps",
        "60",
        "--eval-episodes",
        "2",
        "--verbose",
        "0",
        "-f",
        str(tmp_path),
    ]
    options += ["--env-kwargs", "sutton_barto_reward=True", "--set", *TINY]
    assert tune.main([*options, "--n-trials", "2"]) == 0
    assert "2 trials; the best is number" in capsys.readouterr().out
    assert tune.main([*options, "--n-trials", "1"]) == 0
    text = capsys.readouterr().out
    assert "3 trials; the best is number" in text
    assert "learning_rate:" in text
    (best,) = tmp_path.glob("tune/*.yml")
    entry = yaml.safe_load(best.read_text())["default"]
    assert entry["units"] == 16
    assert entry["env_kwargs"] == {"sutton_barto_reward": True}
    assert 1e-4 <= entry["learning_rate"] <= 3e-3
