"""Settings of worlds that are words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from wmgym.nets.coders import CoderConfig
from wmgym.worlds.config import HeadConfig, RSSMConfig
from wmgym.worlds.mdn_rnn import MDNRNNConfig
from wmgym.worlds.tdmpc import TOLD, TOLDConfig
from wmgym.worlds.tssm import TSSMConfig


@pytest.mark.parametrize(("config", "name"), [
    (HeadConfig, "likelihood"), (RSSMConfig, "latent"), (RSSMConfig, "cell"), (RSSMConfig, "init"), (RSSMConfig, "act"),
    (TSSMConfig, "latent"), (CoderConfig, "image"), (CoderConfig, "likelihood"), (MDNRNNConfig, "mixture"),
    (TOLDConfig, "reward"), (TOLDConfig, "norm"),
])  # fmt: skip
def test_a_word_that_is_misspelt_is_refused(config: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='xavier' is unknown: choose one of '"):
        config(**{name: "xavier"})


def test_a_world_without_a_deterministic_state_cannot_draw_as_dreamer_v3() -> None:
    with pytest.raises(ValueError, match="image='v3' draws from the deterministic state"):
        TOLD(spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(2), TOLDConfig(decoder=CoderConfig(image="v3")))
