from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import wmgym.real
from wmgym.real import make_env, make_vec
from wmgym.spaces import SpaceError

WALKER = "dm_control/walker-walk-v0"


class Countdown(gym.Env):
    """Reward 1, 2, 3, ... a step; terminates after `length` steps. Cannot render: it knows no render_mode."""

    observation_space = spaces.Dict(
        {"b": spaces.Box(-1, 1, (2, 2)), "a": spaces.Box(-np.inf, np.inf, (), np.float64), "c": spaces.Discrete(3)}
    )
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, length: int = 5, action_space: spaces.Space | None = None) -> None:
        self.action_space = action_space or spaces.Box(np.array([0.0, -4.0]), np.array([10.0, 4.0]), dtype=np.float64)
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action):
        self.last_action = action
        self.count += 1
        return self._observe(), float(self.count), self.count >= self.length, False, {}

    def _observe(self):
        return {"a": np.float64(self.count), "b": np.full((2, 2), 0.5, np.float32), "c": 1}


@pytest.fixture(autouse=True)
def _countdown():
    gym.register("Countdown-v0", Countdown, disable_env_checker=True)
    yield
    del gym.registry["Countdown-v0"]


# ---------------------------------------------------------------- state


@pytest.mark.parametrize(
    ("id", "size", "actions"),
    [
        (WALKER, 24, 6),
        ("dm_control/cartpole-swingup-v0", 5, 1),
        ("HalfCheetah-v5", 17, 6),
        ("Pendulum-v1", 3, 1),
    ],
)
def test_state_is_a_flat_float32_vector_and_actions_are_unit_boxes(id: str, size: int, actions: int) -> None:
    env = make_env(id, seed=0)
    observation, _ = env.reset()
    assert env.observation_space.shape == observation.shape == (size,)
    assert env.observation_space.dtype == observation.dtype == np.float32
    assert env.action_space == spaces.Box(-1.0, 1.0, (actions,), np.float32)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])


def test_discrete_actions_stay_discrete() -> None:
    assert make_env("CartPole-v1").action_space == spaces.Discrete(2)


def test_state_follows_the_order_of_the_dict_space_whatever_the_entries() -> None:
    env = make_env("Countdown-v0")
    observation, _ = env.reset()
    assert observation.tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 1.0, 0.0]  # a, b, c one-hot


def test_dm_control_entries_are_the_simulators_own() -> None:
    env = make_env(WALKER, seed=0)
    observation, _ = env.reset()
    physics = env.unwrapped.physics
    expected = np.concatenate([[physics.torso_height()], physics.orientations(), physics.velocity()])
    np.testing.assert_array_equal(observation, expected.astype(np.float32))


def test_observations_are_new_arrays_every_step() -> None:
    env = make_env(WALKER, seed=0)
    first, _ = env.reset()
    kept = first.copy()
    env.step(env.action_space.sample())
    np.testing.assert_array_equal(first, kept)


def test_actions_are_rescaled_and_clipped() -> None:
    env = make_env("Countdown-v0")
    env.reset()
    env.step(np.array([0.5, 2.0], np.float32))
    np.testing.assert_array_equal(env.unwrapped.last_action, [7.5, 4.0])
    assert env.unwrapped.last_action.dtype == np.float64


# ---------------------------------------------------------------- repeat and ends


def test_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = make_env("Countdown-v0", action_repeat=3, length=5)
    env.reset()
    action = np.zeros(2, np.float32)
    assert env.step(action)[1:4] == (1.0 + 2.0 + 3.0, False, False)
    assert env.step(action)[1:4] == (4.0 + 5.0, True, False)
    assert env.unwrapped.count == 5


@pytest.mark.parametrize(("id", "steps"), [(WALKER, 500), ("Pendulum-v1", 200)])
def test_a_time_limit_is_a_truncation_after_the_usual_repeat(id: str, steps: int) -> None:
    env = make_env(id, seed=0)
    env.reset()
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(steps)]
    assert ends[-1] == (False, True)
    assert not any(terminated or truncated for terminated, truncated in ends[:-1])


def test_a_fall_is_a_termination() -> None:
    env = make_env("CartPole-v1", seed=0)
    env.reset()
    ends = [env.step(0)[2:4]]
    while not any(ends[-1]):
        ends.append(env.step(0)[2:4])
    assert ends[-1] == (True, False)


def test_repeat_one_and_two_see_the_same_simulation() -> None:
    action = np.full(6, 0.3, np.float32)
    once, twice = make_env(WALKER, action_repeat=1, seed=0), make_env(WALKER, seed=0)
    once.reset(seed=3), twice.reset(seed=3)
    rewards = [once.step(action), once.step(action)]
    observation, reward, *_ = twice.step(action)
    np.testing.assert_array_equal(observation, rewards[1][0])
    assert reward == rewards[0][1] + rewards[1][1]


# ---------------------------------------------------------------- seeds


def _rollout(env: gym.Env, steps: int = 20) -> np.ndarray:
    rows = []
    for _ in range(steps):
        observation, reward, *_ = env.step(env.action_space.sample())
        rows.append(np.append(observation, reward))
    return np.array(rows)


@pytest.mark.parametrize("id", [WALKER, "HalfCheetah-v5", "Pendulum-v1"])
def test_same_seed_same_episode(id: str) -> None:
    one, two, other = make_env(id, seed=1), make_env(id, seed=1), make_env(id, seed=2)
    first = one.reset()[0]
    np.testing.assert_array_equal(first, two.reset()[0])
    assert (first != other.reset()[0]).any()
    np.testing.assert_array_equal(_rollout(one), _rollout(two))


def test_the_simulation_is_gymnasiums_own() -> None:
    ours, raw = make_env("HalfCheetah-v5"), gym.make("HalfCheetah-v5")
    np.testing.assert_array_equal(ours.reset(seed=0)[0], raw.reset(seed=0)[0].astype(np.float32))
    for action in np.random.default_rng(0).uniform(-1, 1, (50, 6)).astype(np.float32):
        observation, reward, *_ = ours.step(action)
        expected, expected_reward, *_ = raw.step(action)
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        assert reward == expected_reward


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("id", [WALKER, "dm_control/quadruped-walk-v0", "HalfCheetah-v5", "InvertedPendulum-v5"])
def test_pixels_of_mujoco(needs_rendering, id: str) -> None:
    env = make_env(id, observation="pixels", size=48, seed=0)
    observation, _ = env.reset()
    assert env.observation_space == spaces.Box(0, 255, (48, 48, 3), np.uint8)
    assert env.observation_space.contains(observation)
    assert observation.std() > 5  # a picture of something
    kept = observation.copy()
    for _ in range(5):
        later = env.step(env.action_space.sample())[0]
    assert (later != kept).any()
    np.testing.assert_array_equal(observation, kept)
    env.close()


def test_both_gives_picture_and_state(needs_rendering) -> None:
    env = make_env(WALKER, observation="both", seed=0)
    observation, _ = env.reset(seed=4)
    assert observation["image"].shape == (64, 64, 3)
    np.testing.assert_array_equal(observation["state"], make_env(WALKER).reset(seed=4)[0])
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_pixels_of_classic_control(id: str) -> None:
    env = make_env(id, observation="both", size=32, seed=0)
    observation, _ = env.reset()
    assert observation["image"].shape == (32, 32, 3)
    assert observation["image"].std() > 0
    assert env.render().shape[0] > 32


def test_picture_environments_are_resized() -> None:
    pytest.importorskip("Box2D")
    env = make_env("CarRacing-v3", observation="pixels", size=64, seed=0)
    observation, _ = env.reset()
    assert observation.shape == env.observation_space.shape == (64, 64, 3)
    with pytest.raises(SpaceError, match="observation='pixels'"):
        make_env("CarRacing-v3")


def test_without_fast_render_the_pixels_are_dm_controls_own(needs_rendering) -> None:
    slow = make_env(WALKER, observation="pixels", fast_render=False)
    fast = make_env(WALKER, observation="pixels")
    picture, quick = slow.reset(seed=0)[0], fast.reset(seed=0)[0]
    raw = gym.make(WALKER, render_mode="rgb_array", render_kwargs={"height": 64, "width": 64, "camera_id": 0})
    raw.reset(seed=0)
    np.testing.assert_array_equal(picture, raw.render())
    difference = np.abs(picture.astype(int) - quick).mean()
    assert 0 < difference < 20  # the same scene without its shadows


def test_films_and_observations_are_separate(needs_rendering) -> None:
    env = make_env(WALKER, observation="pixels", render_size=96, seed=0)
    before, _ = env.reset(seed=1)
    assert env.render().shape == (96, 96, 3)
    np.testing.assert_array_equal(env.reset(seed=1)[0], before)


def test_a_film_from_state_changes_no_episode(needs_rendering) -> None:
    for id in (WALKER, "HalfCheetah-v5"):
        filmed, quiet = make_env(id, seed=0), make_env(id, seed=0)
        filmed.reset(), quiet.reset()
        for _ in range(5):
            action = filmed.action_space.sample()
            assert filmed.render().shape == (240, 240, 3)
            np.testing.assert_array_equal(filmed.step(action)[0], quiet.step(action)[0])


def test_closing_one_environment_spares_the_pictures_of_another(needs_rendering) -> None:
    ids = (WALKER, "HalfCheetah-v5")
    alive = [make_env(id, observation="pixels") for id in ids]
    pictures = [env.reset(seed=0)[0] for env in alive]
    for id in ids:
        passing = make_env(id, observation="pixels")
        passing.reset(seed=1)
        passing.close()
    for env, picture in zip(alive, pictures, strict=True):
        np.testing.assert_array_equal(env.reset(seed=0)[0], picture)


def test_cameras_by_name_and_number(needs_rendering) -> None:
    named = make_env(WALKER, observation="pixels", camera="back").reset(seed=0)[0]
    numbered = make_env(WALKER, observation="pixels", camera=1).reset(seed=0)[0]
    usual = make_env(WALKER, observation="pixels").reset(seed=0)[0]
    np.testing.assert_array_equal(named, numbered)
    assert (named != usual).any()


def test_composer_environments_whose_model_is_new_every_episode(needs_rendering) -> None:
    env = make_env("dm_control/reach_duplo_features-v0", observation="pixels", seed=0)
    first = env.reset(seed=1)[0]
    env.reset(seed=2)
    np.testing.assert_array_equal(env.reset(seed=1)[0], first)


# ---------------------------------------------------------------- checkers


@pytest.mark.parametrize("id", [WALKER, "HalfCheetah-v5", "CartPole-v1"])
def test_sb3_accepts_it_without_a_warning(id: str, recwarn: pytest.WarningsRecorder) -> None:
    sb3_check_env(make_env(id, seed=0))
    assert not [str(warning.message) for warning in recwarn if "stable_baselines3" in warning.filename]


def test_gymnasium_accepts_pixels(needs_rendering) -> None:
    check_env(make_env(WALKER, observation="pixels", seed=0), skip_render_check=True)


# ---------------------------------------------------------------- vectors


def test_subprocesses_give_what_the_process_itself_gives(needs_rendering) -> None:
    options = {"n_envs": 2, "seed": 5, "observation": "pixels", "size": 32}
    inside = make_vec(WALKER, **options)
    inside.reset()  # this process has rendered: a fork would hang from here on
    inside.seed(5)
    outside = make_vec(WALKER, subprocess=True, **options)
    try:
        here, there = inside.reset(), outside.reset()
        np.testing.assert_array_equal(here, there)
        assert (here[0] != here[1]).any()
        actions = np.full((2, 6), 0.5, np.float32)
        for _ in range(3):
            for a, b in zip(inside.step(actions)[:3], outside.step(actions)[:3], strict=True):
                np.testing.assert_array_equal(a, b.astype(a.dtype))  # SB3: float32 rewards here, float64 there
        states = outside.env_method("get_state")
        assert [state["seed"] for state in states] == [5, 6]
        np.testing.assert_array_equal(states[1]["actions"], np.repeat(actions[1:], 3, 0))
    finally:
        outside.close()


def test_vector_environments_report_episodes_and_truncation() -> None:
    venv = make_vec("Pendulum-v1", n_envs=2, seed=0)
    venv.reset()
    for _ in range(200):
        _, _, dones, infos = venv.step(np.zeros((2, 1), np.float32))
    assert dones.all()
    assert [info["episode"]["l"] for info in infos] == [200, 200]
    assert all(info["TimeLimit.truncated"] for info in infos)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "dm_control/walker-wolk-v0"}, "Did you mean 'dm_control/walker-walk-v0'"),
        ({"id": "CartPol-v1"}, "Did you mean 'CartPole-v1'"),
        ({"id": "Zzzzqqq-v7"}, "gym.register"),
        ({"id": 64}, "is the id of an environment, a string, not int"),
        ({"id": WALKER, "observation": "pixel"}, "'pixel' is unknown: use one of"),
        ({"id": WALKER, "size": 0}, "size must be a whole number of pixels"),
        ({"id": WALKER, "size": 64.0}, "size must be a whole number of pixels"),
        ({"id": WALKER, "render_size": 10_000}, "render_size must be"),
        ({"id": WALKER, "action_repeat": 0}, "action_repeat must be a whole number, 1 or more, not 0"),
        ({"id": WALKER, "action_repeat": 1.5}, "action_repeat must be"),
        ({"id": WALKER, "camera": 9}, "has the cameras \\['side', 'back'\\]"),
        ({"id": WALKER, "camera": "front"}, "has the cameras"),
        ({"id": "CartPole-v1", "camera": 0}, "only MuJoCo's environments have cameras"),
        ({"id": "CartPole-v1", "observation": "pixels", "render_mode": None}, "render_mode='rgb_array'"),
        ({"id": "Countdown-v0", "observation": "pixels"}, "render_mode='rgb_array'"),
        ({"id": "Countdown-v0", "action_space": spaces.Box(-np.inf, np.inf, (2,))}, "infinite bounds"),
        ({"id": "Countdown-v0", "action_space": spaces.MultiDiscrete([2, 3])}, "MultiDiscrete.*not supported"),
        ({"id": "Countdown-v0", "action_space": spaces.Box(-1, 1, (2, 2))}, "not supported"),
        ({"id": "Countdown-v0", "action_space": spaces.Box(-1, 1, (2,), np.int64)}, "floating point"),
    ],
)
def test_bad_arguments_name_the_thing_and_the_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(**arguments)


def test_an_action_with_nan_is_refused() -> None:
    env = make_env(WALKER, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(6, np.nan, np.float32))


def test_no_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="n_envs must be 1 or more"):
        make_vec("CartPole-v1", n_envs=0)


def test_mujoco_4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wmgym.real.importlib.metadata, "version", lambda name: "4.0.0")
    with pytest.raises(RuntimeError, match=r"mujoco 4.0.0 is installed.*mujoco>=3.17,<4"):
        make_env(WALKER)
