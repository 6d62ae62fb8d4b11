"""Run a suite, or make the tables from the result files.

python -m agents.zoo benchmark nine --processes 2     # skips what is done, resumes what was interrupted
python -m agents.zoo benchmark --table                # zoo_configs/BENCHMARK.md, and in README.md and docs/
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from agents.zoo.dream_tables import dream_overview, dream_section, read_dream_rows, read_dreams
from agents.zoo.published import read_published
from agents.zoo.results import result_path
from agents.zoo.suites import Run, Suite, read_suites
from agents.zoo.tables import benchmark_page, group, overview, put_between_markers, read_files

_STOPPED = ("KeyboardInterrupt", "SystemExit")
_RESULTS = "zoo_configs/results"
_OVERVIEWS, _DREAM_PAGES = ["README.md", "docs/results.md"], ["docs/dream.md"]
"""This project's pages, which are made from its results alone."""


def is_done(path: Path, env_steps: int, retry: bool = False) -> bool:
    """Whether a run needs no more work: it reached its end, or failed on the way and is not to be tried again.

    A run that was only interrupted is not done.
    """
    if not path.is_file():
        return False
    run = json.loads(path.read_text())
    if "error" in run:
        stopped = run["error"].strip().splitlines()[-1].startswith(_STOPPED)
        return not (stopped or retry)
    # A run ends with a whole decision.
    return bool(run["complete"] and run["env_steps"] and run["env_steps"][-1] > env_steps - run.get("action_repeat", 1))


class Benchmark:
    """Runs a suite in processes of its own.

    Args:
        suite: what to run.
        results: folder of the result files.
        log_folder: folder of agents, evaluations and what is needed to resume.
        options: further options for every `train`.
        retry: whether runs that failed are tried again.
    """

    def __init__(
        self, suite: Suite, results: str, log_folder: str, options: Sequence[str] = (), retry: bool = False
    ) -> None:
        self.suite, self.results, self.log_folder = suite, results, log_folder
        self.options, self.retry = list(options), retry
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def to_do(self) -> list[Run]:
        """The runs that are not done."""
        return [run for run in self.suite.runs() if not is_done(self._path(run), self.suite.env_steps, self.retry)]

    def run(self, processes: int) -> list[Run]:
        """Run what is to be done, `processes` at a time; returns those that failed.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after every process has saved.
        """
        with ThreadPoolExecutor(processes) as pool:
            waiting = {run: pool.submit(self._train, run) for run in self.to_do()}
            try:
                return [run for run, status in waiting.items() if status.result()]
            except KeyboardInterrupt:
                self._interrupt()
                raise

    def _path(self, run: Run) -> Path:
        return result_path(self.results, run.algo, run.env_id, run.preset, run.seed)

    def command(self, run: Run) -> list[str]:
        """The command line of a run."""
        named = {"--algo": run.algo, "--preset": run.preset, "--env": run.env_id, "--seed": run.seed}
        named |= {"--env-steps": self.suite.env_steps, "--results": self.results, "--log-folder": self.log_folder}
        pairs = [str(part) for pair in named.items() for part in pair]
        switches = ["--verbose", "0", *(["--anew"] if self._is_shorter(run) else []), *self.options]
        return [sys.executable, "-m", "agents.zoo", "--traceback", "train", *pairs, *switches]

    def _is_shorter(self, run: Run) -> bool:
        """Whether a run was completed that is shorter than the suite's."""
        path = self._path(run)
        if not path.is_file() or is_done(path, self.suite.env_steps):
            return False
        return bool(json.loads(path.read_text())["complete"])

    def _train(self, run: Run) -> int:
        """One run; returns its exit status."""
        name = f"{run.algo}, {run.preset} on {run.env_id}, seed {run.seed}"
        log = Path(self.log_folder) / f"{run.algo}-{run.preset}-{run.env_id.replace('/', '-')}-{run.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if is_done(self._path(run), self.suite.env_steps, self.retry):  # by another benchmark, meanwhile
            return 0
        with log.open("ab") as output:
            process = self._start(run, output)
            if process is None:
                return 0
            print(f"Starts: {name}", flush=True)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        ended = f"Failed, see {log}" if status and not self._stopping.is_set() else "Ended"
        print(f"{ended}: {name}", flush=True)
        return status

    def _start(self, run: Run, output: IO[bytes]) -> subprocess.Popen[bytes] | None:
        """The process of a run; None once the benchmark is stopping."""
        # Small networks: more threads than one a process only wait for one another.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        with self._lock:
            if self._stopping.is_set():
                return None
            # In a session of its own, Ctrl-C in a terminal reaches it once, from here: a second one would not let it
            # save.
            process = subprocess.Popen(
                self.command(run), stdout=output, stderr=output, env=environment, start_new_session=True
            )
            self._running.add(process)
        return process

    def _interrupt(self) -> None:
        with self._lock:
            self._stopping.set()
            for process in self._running:
                process.terminate()  # SIGTERM: SIGINT may be ignored, and both save


def write_tables(
    results: str | Path, page: str | Path, overviews: Sequence[str | Path], dream_pages: Sequence[str | Path] = ()
) -> None:
    """Write the benchmark's page, and between the markers of others the overviews of real and of dreamt runs."""
    files, dreams = read_files(results), read_dreams(results)
    benchmark = benchmark_page(files, read_suites().values(), read_published())
    Path(page).write_text(f"{benchmark}\n{dream_section(dreams)}\n")
    for path in overviews:
        put_between_markers(path, overview(group(files.values())))
    for path in dream_pages:
        put_between_markers(path, dream_overview(dreams, read_dream_rows()))


def build_parser() -> argparse.ArgumentParser:
    """The command line; what it does not know goes to every `train`."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.zoo benchmark",
        allow_abbrev=False,  # or an option of train would be taken for the beginning of one of these
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to every train, such as --device cuda or --eval-every 20000.",
    )
    parser.add_argument("suite", nargs="?", help="a name in the suites' file")
    parser.add_argument("--suites", help="another file than zoo_configs/suites.yml")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--retry", action="store_true", help="try runs again that failed")
    parser.add_argument("--list", action="store_true", help="say what is to be done and stop")
    parser.add_argument("--results", default=_RESULTS, help="folder of result files")
    parser.add_argument("-f", "--log-folder", default="runs/zoo", help="folder of agents and logs")
    parser.add_argument("--table", action="store_true", help="make the tables instead of running anything")
    parser.add_argument("--page", help="where --table writes (default: BENCHMARK.md beside the folder of results)")
    parser.add_argument("--overviews", nargs="*", help="pages with markers (default: this project's, for its results)")
    parser.add_argument("--dream-pages", nargs="*", help="pages with the dreamt ones (default: likewise)")
    return parser


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Suite:
    suites: dict[str, Any] = read_suites(args.suites)
    if args.suite not in suites:
        parser.error(f"name a suite: {', '.join(suites)}")
    return suites[args.suite]


def main(arguments: list[str] | None = None) -> int:
    """Run a suite or make the tables; returns the exit status."""
    parser = build_parser()
    args, options = parser.parse_known_args(arguments)
    if args.table:
        own = Path(args.results).resolve() == Path(_RESULTS).resolve()
        page = args.page or Path(args.results).parent / "BENCHMARK.md"
        overviews = args.overviews if args.overviews is not None else _OVERVIEWS if own else []
        dream_pages = args.dream_pages if args.dream_pages is not None else _DREAM_PAGES if own else []
        write_tables(args.results, page, overviews, dream_pages)
        return 0
    benchmark = Benchmark(_chosen(parser, args), args.results, args.log_folder, options, args.retry)
    to_do = benchmark.to_do()
    print(f"{benchmark.suite.name}: {len(to_do)} of {len(benchmark.suite.runs())} runs to do.", flush=True)
    if args.list:
        print("\n".join(" ".join(benchmark.command(run)[1:]) for run in to_do))
        return 0
    # The runs must be told on SIGTERM too, and on SIGINT even where a shell that started this in the background let
    # it be ignored.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = benchmark.run(args.processes)
    except KeyboardInterrupt:
        print("Interrupted; every run has saved. The same command goes on.")
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
