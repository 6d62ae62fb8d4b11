"""The commands in the README and in docs/ are such as their parsers take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.zoo import benchmark, compare, dream_training, enjoy, iterations, offline, take_cover, train

ROOT = Path(__file__).parents[1]
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "train": train.build_parser().parse_args,
    "enjoy": enjoy.build_parser().parse_args,
    "benchmark": benchmark.build_parser().parse_args,
    "compare": compare.build_parser().parse_args,
    "dream_training": dream_training.parse_arguments,
    "offline": offline.parse_arguments,
    "iterations": iterations.parse_arguments,
    "take_cover": take_cover.parse_arguments,
}


def commands() -> Iterator[Any]:
    """What follows `python -m agents.zoo` in blocks of bash, but for lines with a shell's variables."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for found in re.finditer(r"-m agents\.zoo[ .](\w+)([^&]*)", line):
                    name, options = found.groups()
                    if name in PARSERS and "$" not in line:
                        yield pytest.param(
                            name, shlex.split(options, comments=True), id=f"{page.stem}: {name}{options}"
                        )


@pytest.mark.parametrize(("name", "options"), list(commands()))
def test_a_command_is_understood(name: str, options: list[str]) -> None:
    PARSERS[name](options)


def test_there_are_many() -> None:
    assert len({case.values[0] for case in commands()}) >= 6
