"""Films of a world beside the real environment: both do the same, the dream without looking."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from agents.base import WorldModelAgent
from agents.zoo.painting import rendered, state_of
from wmgym.dream import DreamEnv
from wmgym.films import write_film
from wmgym.rendering import Picture
from wmgym.worlds.base import State

_HEADER, _GAP, _MARGIN, _FONT_SIZE = 32, 8, 10, 18
_INK, _PAPER = (20, 20, 20), (245, 245, 245)


def film_path(text: str) -> Path:
    """The file that a command line names for a film; known to be an mp4 before there is work to lose."""
    if Path(text).suffix != ".mp4":
        raise argparse.ArgumentTypeError(f"a film is a file that ends in .mp4, not {text}.")
    return Path(text)


class Moment(NamedTuple):
    """One step of a real episode."""

    picture: Picture
    state: State  # the posterior, (1, ...)
    action: np.ndarray  # chosen there, in the environment's units


def film_dream(
    agent: WorldModelAgent,
    env: gym.Env,
    path: str | Path,
    steps: int = 250,
    watched: int = 10,
    dreamt: int = 40,
    fps: int = 25,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Film a real episode of `agent`, and beside it the dream of the same actions.

    For `watched` steps the world filters what the environment shows, and its picture is drawn from the posterior.
    For the next `dreamt` steps it sees nothing: it predicts from that state and the agent's actions alone. Then it
    may look again, and so on; the labels say which is which.

    Args:
        agent: its world should decode pictures (`agents.zoo.painting.paint`), or it is seen as bars.
        env: the real environment, as the agent sees it, with `render_mode="rgb_array"`.
        path: of the mp4.
        steps: decisions; fewer if the episode ends.
        watched: how many of them the world may see in a row; 1 or more.
        dreamt: how many it then dreams.
        fps: frames, which are decisions, a second.
        size: height and width of each of the two pictures, even.
        seed: of the episode.

    Returns:
        The path written.

    Raises:
        ValueError: if the environment cannot draw, or a number cannot be.
    """
    if watched < 1 or dreamt < 0:
        raise ValueError(f"watched must be 1 or more and dreamt not negative: {watched}, {dreamt}.")
    moments = list(_episode(agent, env, steps, seed))
    blind = [max(0, step % (watched + dreamt) - watched + 1) for step in range(len(moments))]
    pictures = _dream(agent, moments, blind, seed)
    frames = [
        compose(moment.picture, picture, size, step, steps_blind)
        for step, (moment, picture, steps_blind) in enumerate(zip(moments, pictures, blind, strict=True))
    ]
    return write_film(path, frames, fps)


def compose(real: Picture, dreamt: Picture, size: int, step: int, blind: int) -> Picture:
    """One frame: the two pictures side by side below their labels, `(size + 32, 2 size + 8, 3)`.

    Args:
        real: of the environment.
        dreamt: of the world.
        size: height and width of each, even.
        step: of the episode, for the label.
        blind: since how many steps the world has not looked; 0 if it is looking.

    Example:
        >>> black = np.zeros((64, 64, 3), np.uint8)
        >>> compose(black, black, size=256, step=3, blind=1).shape
        (288, 520, 3)
    """
    canvas = Image.new("RGB", (2 * size + _GAP, size + _HEADER), _PAPER)
    for picture, left in ((real, 0), (dreamt, size + _GAP)):
        canvas.paste(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC), (left, _HEADER))
    # matplotlib brings this font along, so that labels look the same on every machine.
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _FONT_SIZE)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _HEADER / 2), "real", _INK, font, anchor="lm")
    draw.text((size - _MARGIN, _HEADER / 2), f"step {step}", _INK, font, anchor="rm")
    draw.text((size + _GAP + _MARGIN, _HEADER / 2), "dream", _INK, font, anchor="lm")
    label = f"alone for {blind}" if blind else "watching"
    draw.text((2 * size + _GAP - _MARGIN, _HEADER / 2), label, _INK, font, anchor="rm")
    return np.asarray(canvas)


def _episode(agent: WorldModelAgent, env: gym.Env, steps: int, seed: int) -> Iterator[Moment]:
    """A real episode, acting deterministically."""
    observation, _ = env.reset(seed=seed)
    carry: Any = None
    for _ in range(steps):
        action, carry = agent.predict(observation, carry, deterministic=True)
        yield Moment(rendered(env), state_of(agent, carry), action)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            return


def _dream(agent: WorldModelAgent, moments: Sequence[Moment], blind: Sequence[int], seed: int) -> Iterator[Picture]:
    """The world's picture of each moment, from the posterior where `blind` is 0."""
    # At temperature 0 the dream is the most likely one.
    dream = DreamEnv(
        agent.world, render_mode="rgb_array", temperature=0.0, termination="never", horizon=len(moments) + 1
    )
    for step, moment in enumerate(moments):
        if blind[step]:
            dream.step(moments[step - 1].action)
        else:
            dream.reset(seed=seed, options={"state": moment.state})
        yield rendered(dream)
