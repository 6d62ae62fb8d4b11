"""The examples of docs/dream.md run as they stand, with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib")
PAGE = Path(__file__).parents[1] / "docs" / "dream.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

_SMALL = [
    (r"learn\(\d+_000\)", "learn(256)"),
    (r"updates=\d+_000", "updates=3"),
    (r"agent, \d+_000", "agent, 40"),
    (r"learning_starts=\d_000", "learning_starts=100"),
    (r"gradient_steps=4", "gradient_steps=1"),
    (r"n_steps=64, batch_size=512", "n_steps=4, batch_size=64, n_epochs=1"),
    (r"evaluate_(real|dream)\((\w+), \"swingup.zip\"\)", r'evaluate_\1(\2, "swingup.zip", episodes=1)'),
    (r"(Dreamer\(.*)seed=0\)", r"\1seed=0, learning_starts=200, batch_size=2, train_ratio=8.0)"),
]


def smaller(block: str) -> str:
    """The example with fewer steps."""
    for pattern, small in _SMALL:
        block = re.sub(pattern, small, block)
    return block


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(smaller(block), names)
    said = capsys.readouterr().out
    assert said.count("real") == 5
    assert "the best first action is" in said
    assert names["dreamt"].num_timesteps >= 256
    assert names["recurrent"].num_timesteps >= 256
    assert names["model"].world.has_ensemble
    assert np.isfinite(names["rewards"]).all()
