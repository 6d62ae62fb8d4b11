"""The two games of World Models, shown and played as in its paper: Doom's Take Cover, and CarRacing.

`wmgym.make_env` puts these wrappers around the games by itself. Source: Ha & Schmidhuber 2018, and its code.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from wmgym.rendering import Picture
from wmgym.wrappers import ActionRepeat

DOOM = "Vizdoom"
TAKE_COVER = "VizdoomTakeCover-v1"
CAR_RACING = "CarRacing-v3"

TAKE_COVER_TICS = 2100
"""A minute of Doom: the paper ends an episode there, the game itself never."""

_SHOWN_ROWS = {TAKE_COVER: 400 / 480, CAR_RACING: 84 / 96}
"""How much of the screen the paper shows, from the top: without one's own weapon, without the panel of indicators."""


def is_doom(id: str) -> bool:
    """Whether an environment's id is one of ViZDoom's."""
    return id.startswith(DOOM)


def doom_options(id: str, frame_skip: int) -> dict[str, Any]:
    """What `gym.make` is told of a ViZDoom environment.

    Args:
        id: of the environment.
        frame_skip: tics (of 1/35 s) for which an action is held; the tics between are not drawn.
    """
    options: dict[str, Any] = {
        "frame_skip": frame_skip,
        # The paper's. Doom reads a texture at one point for each pixel: drawn smaller, distant walls flicker as one
        # moves, and no world model foretells that.
        "screen_resolution": "RES_640X480",
        # Else ViZDoom leaves its own in the working folder.
        "doom_config_path": str(Path(tempfile.gettempdir()) / "wmgym_vizdoom.ini"),
    }
    if id == TAKE_COVER:
        # Red for a moment when one is hit, as Doom is by itself: nothing else that is shown tells of it.
        options["render_screen_flashes"] = True
        options["max_episode_steps"] = -(-TAKE_COVER_TICS // frame_skip)
    return options


def as_in_paper(env: gym.Env, id: str) -> gym.Env:
    """The environment `id` with the paper's cropping and actions; any other environment as it is."""
    if is_doom(id) and isinstance(env.observation_space, spaces.Dict) and "screen" in env.observation_space.spaces:
        env = DoomScreen(env)
    if id in _SHOWN_ROWS:
        env = TopRows(env, _SHOWN_ROWS[id])
    if id == TAKE_COVER:
        env = LeftStayRight(env)
    if id == CAR_RACING and isinstance(env.action_space, spaces.Box):
        env = SteerGasBrake(env)
    return env


class HeldRace(ActionRepeat):
    """`ActionRepeat` for CarRacing, which draws a picture at every step: here the last of each action alone.

    Drawing is nine tenths of the game's time. The pictures are the same, but for the sum of rewards written in the
    panel, which is counted up to the last step.

    Example:
        >>> env = HeldRace(gym.make("CarRacing-v3"), 4)  # doctest: +SKIP
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """`repeat` steps, or fewer if the game ends, and what is then to be seen."""
        race: Any = self.env.unwrapped
        draw = race._render
        race._render = lambda mode: race.state.copy() if mode == "state_pixels" else draw(mode)
        try:
            _, reward, terminated, truncated, info = super().step(action)
        finally:
            del race._render
        race.state = draw("state_pixels")
        return race.state, reward, terminated, truncated, info


class DoomScreen(gym.Wrapper, RecordConstructorArgs):
    """Doom's screen alone, uint8 (H, W, 3). On reaching an end, of which ViZDoom has no picture, the last one again."""

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        assert isinstance(env.observation_space, spaces.Dict)
        self.observation_space = env.observation_space["screen"]
        self._screen: Picture = np.zeros(self.observation_space.shape or (), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._screen = observation["screen"]
        return self._screen, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Act, and see what there is to see."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not terminated:
            self._screen = observation["screen"]
        return self._screen, reward, terminated, truncated, info


class TopRows(gym.ObservationWrapper, RecordConstructorArgs):
    """The top of a picture.

    Args:
        env: shows uint8 pictures (H, W, C).
        share: of the rows, that is kept.

    Example:
        >>> env = gym.make("CarRacing-v3")  # doctest: +SKIP
        >>> TopRows(env, 84 / 96).observation_space.shape  # doctest: +SKIP
        (84, 96, 3)
    """

    def __init__(self, env: gym.Env, share: float) -> None:
        RecordConstructorArgs.__init__(self, share=share)
        gym.ObservationWrapper.__init__(self, env)
        height, *rest = env.observation_space.shape or ()
        self._rows = round(height * share)
        self.observation_space = spaces.Box(0, 255, (self._rows, *rest), np.uint8)

    def observation(self, observation: Picture) -> Picture:
        """The rows that are kept."""
        return observation[: self._rows]


class LeftStayRight(gym.ActionWrapper, RecordConstructorArgs):
    """Take Cover's three actions from left to right, so that one number can choose among them: its thirds."""

    _OWN = (2, 0, 1)  # ViZDoom counts: nothing, right, left

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self.action_space = spaces.Discrete(3)

    def action(self, action: Any) -> int:
        """The game's own action for 0 (left), 1 (stay) or 2 (right)."""
        return self._OWN[int(action)]


class SteerGasBrake(gym.ActionWrapper, RecordConstructorArgs):
    """CarRacing by three numbers in [-1, 1]: steering, gas `(a + 1) / 2`, brake `max(a, 0)`."""

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def action(self, action: NDArray[np.floating]) -> NDArray[np.floating]:
        """The game's own action."""
        steer, gas, brake = np.clip(action, -1.0, 1.0)
        return np.array([steer, (gas + 1) / 2, max(brake, 0.0)], np.float32)
