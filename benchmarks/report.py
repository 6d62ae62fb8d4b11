"""What the benchmarks of speed write: a JSON file each, and a section of RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents.zoo.results import describe_commit, describe_machine
from wmgym.files import atomic_writer

FOLDER = Path(__file__).parent
_PACKAGES = ("torch", "numpy", "gymnasium", "dm_control", "mujoco")


def facts() -> dict[str, Any]:
    """How, where and when something is measured; call it before measuring, for the load of other programs."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "load_before": round(os.getloadavg()[0], 1),
        "processors": os.cpu_count() or 1,
    }


def heading(result: dict[str, Any]) -> str:
    """The facts of `facts` in a paragraph, with a warning where other programs were running."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    text = f"{result['date']}; {result['machine']}; {versions}; commit {result['commit']}. `{result['command']}`."
    if result["load_before"] > 0.3 * result["processors"]:
        text += (
            f" **The machine was shared**: load {result['load_before']:g} on {result['processors']} processors before "
            "it began. Times are longer than they would be alone; ratios were measured in alternation."
        )
    return text


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def unmeasured_on_gpu(options: str) -> str:
    """What is said of a GPU where there is none: the options of the benchmark that would measure it."""
    return f"On a GPU: unmeasured (`{options}` measures it where there is one)."


def save(name: str, title: str, result: dict[str, Any], text: str, folder: Path = FOLDER) -> None:
    """Write `results/<name>.json`, and the section `title` of RESULTS.md with the heading and `text`."""
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = folder / "RESULTS.md"
    whole = page.read_text() if page.exists() else "# Benchmarks\n"
    if begin not in whole:
        whole = f"{whole.rstrip()}\n\n## {title}\n\n{begin}\n{end}\n"
    before, rest = whole.split(begin)
    page.write_text(f"{before}{begin}\n\n{heading(result)}\n\n{text}\n\n{end}{rest.split(end)[1]}")
