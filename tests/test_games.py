"""The games of World Models, shown and played as in its paper."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from wmgym.games import DoomScreen, HeldRace, LeftStayRight, SteerGasBrake, TopRows, doom_options
from wmgym.real import make_env, make_vec, repeat_of
from wmgym.wrappers import ActionRepeat


class Game(gym.Env):
    """Shows the number of the step as a screen, black at the end as ViZDoom does; remembers what was done."""

    def __init__(self, action: spaces.Space) -> None:
        self.observation_space = spaces.Dict(
            gamevariables=spaces.Box(-1, 1, (1,)), screen=spaces.Box(0, 255, (12, 8, 3), np.uint8)
        )
        self.action_space = action
        self.done: list[Any] = []

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.done = []
        return self._see(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.done.append(action)
        ended = len(self.done) == 3
        return self._see(0 if ended else 1 + len(self.done)), 1.0, ended, False, {}

    def _see(self, value: int) -> dict[str, np.ndarray]:
        return {"gamevariables": np.zeros(1, np.float32), "screen": np.full((12, 8, 3), value, np.uint8)}


def test_the_screen_of_an_end_is_the_last_one_again() -> None:
    env = DoomScreen(Game(spaces.Discrete(3)))
    assert env.observation_space.shape == (12, 8, 3)
    seen = [env.reset()[0], *(env.step(0)[0] for _ in range(3))]
    assert [int(screen.max()) for screen in seen] == [1, 2, 3, 3]
    assert int(env.reset()[0].max()) == 1


def test_the_top_rows_stay() -> None:
    env = TopRows(DoomScreen(Game(spaces.Discrete(3))), 400 / 480)
    assert env.reset()[0].shape == env.observation_space.shape == (10, 8, 3)


def test_three_numbers_steer_a_car() -> None:
    game = Game(spaces.Box(np.array([-1, 0, 0], np.float32), 1.0))
    env = SteerGasBrake(game)
    env.reset()
    env.step(np.array([-1.0, -1.0, -1.0], np.float32))
    env.step(np.array([0.5, 0.0, 0.25], np.float32))
    np.testing.assert_allclose(game.done, [[-1, 0, 0], [0.5, 0.5, 0.25]])
    assert all(game.action_space.contains(action) for action in game.done)


def test_doom_skips_frames_by_itself_and_ends_after_a_minute() -> None:
    assert doom_options("VizdoomTakeCover-v1", 4)["max_episode_steps"] == 525
    assert doom_options("VizdoomTakeCover-v1", 1)["max_episode_steps"] == 2100
    assert "max_episode_steps" not in doom_options("VizdoomBasic-v1", 4)


def test_left_stay_right() -> None:
    vizdoom = pytest.importorskip("vizdoom")
    pytest.importorskip("vizdoom.gymnasium_wrapper")  # registers the environments
    own = gym.make("VizdoomTakeCover-v1").unwrapped
    buttons = own.game.get_available_buttons()  # type: ignore[attr-defined]
    wanted = [vizdoom.Button.MOVE_LEFT, None, vizdoom.Button.MOVE_RIGHT]
    for action, button in enumerate(wanted):
        pressed = own.button_map[LeftStayRight(own).action(action)]  # type: ignore[attr-defined]
        assert [b for b, down in zip(buttons, pressed) if down] == ([] if button is None else [button])
    own.close()


def test_take_cover() -> None:
    pytest.importorskip("vizdoom")
    env = make_env("VizdoomTakeCover-v1", observation="pixels", action_repeat=4, seed=0)
    assert env.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == spaces.Discrete(3)
    observation, _ = env.reset(seed=1)
    assert observation in env.observation_space
    assert repeat_of(DummyVecEnv([lambda: env])) == 4
    total, ended = 0.0, False
    while not ended:
        observation, reward, ended, truncated, _ = env.step(1)
        total += reward
        assert reward <= 4  # one for each tic survived
        assert not truncated
    assert observation.max() > 0  # the last screen, not black
    assert 50 < total < 2100
    env.close()


def test_distant_walls_of_take_cover_hold_still_and_hits_are_seen() -> None:
    pytest.importorskip("vizdoom")
    env = make_env("VizdoomTakeCover-v1", observation="pixels", action_repeat=4, seed=0)
    env.reset(seed=2)
    seen = np.stack([env.step(2 * (t // 6 % 2))[0] for t in range(24)]).astype(float)  # to and fro
    rows = np.median(seen.mean(3), 2)  # (T, 64): of each row what is not monsters or fire
    assert rows.std(0).max() < 8  # 14 where the game is drawn at 160x120
    red, ended = False, False
    while not ended:  # standing still
        observation, _, ended, *_ = env.step(1)
        red = red or np.median(observation[..., 0].astype(int) - observation[..., 1]) > 40
    assert red
    env.close()


def test_take_cover_is_the_same_for_the_same_seed_and_can_be_restored() -> None:
    pytest.importorskip("vizdoom")
    one, two = (make_vec("VizdoomTakeCover-v1", seed=5, observation="pixels", action_repeat=4) for _ in range(2))
    try:
        np.testing.assert_array_equal(one.reset(), two.reset())
        for action in (0, 0, 2, 1):
            seen = one.step(np.array([action]))[0]
        restored = two.env_method("set_state", one.env_method("get_state")[0])[0]
        np.testing.assert_array_equal(restored, seen[0])
    finally:
        one.close()
        two.close()


def test_car_racing_is_cropped_and_steered_as_in_the_paper() -> None:
    pytest.importorskip("Box2D")
    env = make_env("CarRacing-v3", observation="pixels", seed=0)
    assert env.observation_space.shape == (64, 64, 3)
    assert env.action_space == spaces.Box(-1.0, 1.0, (3,), np.float32)
    observation, _ = env.reset()
    # The panel of indicators, black at the bottom of the game's own picture, is not seen.
    assert observation[-2:].mean() > 40
    env.close()


def test_a_held_race_draws_the_last_picture_of_each_action_alone() -> None:
    pytest.importorskip("Box2D")
    held, plain = HeldRace(gym.make("CarRacing-v3"), 4), ActionRepeat(gym.make("CarRacing-v3"), 4)
    pictures = [env.reset(seed=3)[0][:84] for env in (held, plain)]
    action = np.array([0.1, 0.9, 0.0], np.float32)
    for _ in range(12):
        (seen, *rest), (expected, *others) = (env.step(action) for env in (held, plain))
        np.testing.assert_array_equal(seen[:84], expected[:84])
        assert rest == others
    assert (seen[:84] != pictures[0]).any()  # it has driven
    held.close()
    plain.close()
