"""Wrong input is refused with an error that names the thing and the way out."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import Dreamer
from agents.policy import WorldModelPolicy
from wmgym import CheckpointError, save_world
from wmgym.nets.images import ImageSizeError
from wmgym.real import make_vec
from wmgym.spaces import SpaceError
from wmgym.worlds.rssm import RSSMConfig

BOX = spaces.Box(-1, 1, (2,))


class Case(NamedTuple):
    """What is done, with which error and which words in it."""

    name: str
    error: type[Exception]
    words: str
    act: Callable[..., Any]


def run(case: Case, *given: Any) -> None:
    with pytest.raises(case.error, match=case.words):
        case.act(*given)


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# -- making an agent ------------------------------------------------------------------------------------------

MAKING = [
    Case("unknown id", ValueError, "no environment 'CartPoll-v1'. Did you mean 'CartPole-v1'",
         lambda d, e: d("CartPoll-v1")),
    Case("policy first", ValueError, "first argument is the environment",
         lambda d, e: Dreamer("MlpPolicy", "CartPole-v1")),
    Case("policy class first", ValueError, "not the policy",
         lambda d, e: Dreamer(WorldModelPolicy, "CartPole-v1")),
    Case("unknown policy", ValueError, "'CnnLstmPolicy' is unknown: leave it out",
         lambda d, e: d("CartPole-v1", policy="CnnLstmPolicy")),
    Case("no env", ValueError, "Dreamer needs an environment: an id",
         lambda d, e: d(None)),
    Case("env of the wrong type", TypeError, "env must be an id, a gymnasium.Env or a VecEnv, not int",
         lambda d, e: d(42)),
    Case("vector env of Gymnasium", TypeError, "Give a VecEnv of stable-baselines3",
         lambda d, e: d(gym.make_vec("CartPole-v1", 2))),
    Case("Dict of Dict", SpaceError, "'a' is a Dict inside a Dict. Flatten it",
         lambda d, e: d(e(spaces.Dict(a=spaces.Dict(b=BOX))))),
    Case("empty Dict", SpaceError, "empty Dict",
         lambda d, e: d(e(spaces.Dict()))),
    Case("empty Box", SpaceError, "is empty",
         lambda d, e: d(e(spaces.Box(-1, 1, (0,))))),
    Case("Discrete observation", SpaceError, "is a Discrete space.*FlattenObservation",
         lambda d, e: d(e(spaces.Discrete(3)))),
    Case("matrix observation", SpaceError, "2 dimensions.*flatten",
         lambda d, e: d(e(spaces.Box(-1, 1, (2, 2))))),
    Case("float pictures", SpaceError, "must be uint8",
         lambda d, e: d(e(spaces.Box(0, 1, (8, 8, 3))))),
    Case("small pictures", ImageSizeError, "Pictures are 20x20.*multiples of 16.*Resize them",
         lambda d, e: d(e(spaces.Box(0, 255, (20, 20, 3), np.uint8)))),
    Case("channels first", SpaceError, r"channels first, \(3, 64, 64\)",
         lambda d, e: d(e(spaces.Box(0, 255, (3, 64, 64), np.uint8)))),
    Case("MultiDiscrete", SpaceError, "MultiDiscrete.* not supported: use a one-dim",
         lambda d, e: d(e(BOX, spaces.MultiDiscrete([2, 3])))),
    Case("infinite actions", SpaceError, "infinite bounds.*ClipAction",
         lambda d, e: d(e(BOX, spaces.Box(-np.inf, np.inf, (2,))))),
    Case("matrix of actions", SpaceError, "one-dimensional Box",
         lambda d, e: d(e(BOX, spaces.Box(-1, 1, (2, 2))))),
    Case("infinite actions in a VecEnv", SpaceError, "infinite",
         lambda d, e: d(DummyVecEnv([lambda: e(BOX, spaces.Box(-1, np.inf, (2,)))]))),
    Case("unknown argument", TypeError, "unexpected keyword argument 'batchsize'",
         lambda d, e: d("CartPole-v1", batchsize=4)),
    Case("unknown observation", ValueError, "observation='foo' is unknown: use one of",
         lambda d, e: d("CartPole-v1", observation="foo")),
    Case("no action repeat", ValueError, "action_repeat must be",
         lambda d, e: d("CartPole-v1", action_repeat=0)),
    Case("no environments", ValueError, "n_envs must be 1 or more",
         lambda d, e: d("CartPole-v1", n_envs=0)),
    Case("observation of an env", ValueError, "observation is for environments that are named by an id",
         lambda d, e: d(e(), observation="pixels")),
    Case("action repeat of an env", ValueError, "leave action_repeat out, or give the id",
         lambda d, e: d(e(), action_repeat=2)),
    Case("kwargs of an env", ValueError, "env_kwargs is for",
         lambda d, e: d(e(), env_kwargs={"size": 8})),
    Case("many of an env", ValueError, "n_envs is for",
         lambda d, e: d(e(), n_envs=3)),
    Case("unknown keys", ValueError, "'speed'.* must name some of",
         lambda d, e: d(e(), world_config=RSSMConfig(observed_keys=("speed",)))),
    *(
        Case(f"{name}={value!r}", ValueError, f"{name}.*must be a",
             lambda d, e, n=name, v=value: d("CartPole-v1", **{n: v}))
        for name, value in [
            ("batch_size", -1), ("batch_size", 0), ("batch_size", 2.5), ("batch_length", 1), ("train_ratio", 0),
            ("hold", 0), ("slips", 1.5), ("slips", "often"),
            ("train_ratio", -3), ("train_ratio", float("nan")), ("train_freq", 0), ("train_freq", (4, "step")),
            ("gradient_steps", -1), ("learning_starts", -1), ("pretrain", -1), ("buffer_size", 0),
            ("buffer_size", float("inf")), ("learning_rate", -1e-3), ("learning_rate", "lin_1e-3"),
            ("stats_window_size", 0), ("learning_rate", float("nan")), ("deter", 0), ("units", 8.5), ("horizon", 0),
            ("imagine_starts", 0), ("gamma", 1.5), ("lam", -0.1), ("slow_rate", "0.02"), ("clip", float("inf")),
            ("entropy_scale", float("nan")), ("actor_learning_rate", -1e-4),
        ]
    ),
    Case("gradient_steps alone", ValueError, "gradient_steps=8 is of every train_freq decisions: give train_freq too",
         lambda d, e: d("CartPole-v1", gradient_steps=8)),
    Case("unknown gradient", ValueError, "actor_gradient='pathwise' is unknown: choose one of 'auto', 'dynamics'",
         lambda d, e: d("CartPole-v1", actor_gradient="pathwise")),
    Case("a schedule that begins at 0", ValueError, "begin above 0",
         lambda d, e: d("CartPole-v1", learning_rate=lambda left: 1 - left)),
    Case("a replay shorter than sequences", ValueError, "keeps 7 steps.*batch_length=8",
         lambda d, e: d("CartPole-v1", buffer_size=14, n_envs=2)),
    Case("a replay that learning waits for", ValueError, "learning_starts=40.*raise the first",
         lambda d, e: d("CartPole-v1", buffer_size=30)),
]  # fmt: skip


@named(MAKING)
def test_making_an_agent(case: Case, tiny: Any, counter: Any) -> None:
    run(case, tiny, counter)


# -- acting ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def actor(tiny: Any, counter: Any) -> Dreamer:
    picture = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    return tiny(counter(spaces.Dict(image=picture, speed=BOX)))


def seen(rows: int | None = None, **changes: Any) -> dict[str, Any]:
    lead = () if rows is None else (rows,)
    observation = {"image": np.zeros((*lead, 64, 64, 3), np.uint8), "speed": np.zeros((*lead, 2), np.float32)}
    return {**observation, **changes}


ACTING = [
    Case("NaN", ValueError, "'speed' holds NaN or infinity",
         lambda a: a.predict(seen(speed=np.array([0, np.nan], np.float32)))),
    Case("infinity", ValueError, "'speed' holds NaN",
         lambda a: a.predict(seen(speed=np.array([0, np.inf], np.float32)))),
    Case("wrong shape", ValueError, r"'speed' has shape \(3,\), expected \(2,\) or a batch",
         lambda a: a.predict(seen(speed=np.zeros(3)))),
    Case("too many dimensions", ValueError, r"'speed' has shape \(1, 1, 2\)",
         lambda a: a.predict(seen(speed=np.zeros((1, 1, 2))))),
    Case("missing key", ValueError, r"lacks 'speed'; it has \['image'\]",
         lambda a: a.predict({"image": seen()["image"]})),
    Case("an array for a Dict", ValueError, "lacks 'image'",
         lambda a: a.predict(np.zeros(2))),
    Case("a picture of floats", ValueError, "'image' is a picture and must be uint8",
         lambda a: a.predict(seen(image=np.zeros((64, 64, 3))))),
    Case("a picture of another size", ValueError, "'image' has shape",
         lambda a: a.predict(seen(image=np.zeros((8, 8, 3), np.uint8)))),
    Case("state of another batch", ValueError, "for 2 environments.*state=None",
         lambda a: a.predict(seen(2), a.predict(seen(3))[1])),
    Case("state of another agent", ValueError, "the last predict returned",
         lambda a: a.predict(seen(1), (np.zeros((1, 4)), np.zeros((1, 1))))),
    Case("state of half", ValueError, "the last predict returned",
         lambda a: a.predict(seen(1), a.predict(seen(1))[1][:1])),
    Case("too few starts", ValueError, "one entry for each of 3 observations, not 2",
         lambda a: a.predict(seen(3), None, np.ones(2, bool))),
]  # fmt: skip


@named(ACTING)
def test_acting(case: Case, actor: Dreamer) -> None:
    assert actor.predict(seen(2))[0].shape == (2, 1)  # what is right is taken
    run(case, actor)


# -- files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, whole and broken."""
    folder = tmp_path_factory.mktemp("files")
    agent = tiny("CartPole-v1").learn(50)
    whole = agent.save(folder / "agent", include=["replay_buffer"]).read_bytes()
    save_world(folder / "world.zip", agent.world)
    (folder / "truncated.zip").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (folder / "flipped.zip").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    (folder / "text.zip").write_text("This is no zip.")
    with zipfile.ZipFile(folder / "foreign.zip", "w") as archive:
        archive.writestr("letter.txt", "Dear reader")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(folder / "ppo.zip")
    without = tiny(gym.make("CartPole-v1")).learn(50)
    without.save(folder / "without.zip")
    return folder


class OtherAgent(Dreamer):
    """An agent of another class."""


FILES = [
    Case("missing", CheckpointError, "gone.zip does not exist",
         lambda f, e: Dreamer.load(f / "gone.zip")),
    Case("a folder", CheckpointError, "is a folder, not a checkpoint: name the file in it",
         lambda f, e: Dreamer.load(f)),
    Case("truncated", CheckpointError, "truncated.zip cannot be read as a checkpoint",
         lambda f, e: Dreamer.load(f / "truncated.zip")),
    Case("bit-flipped", CheckpointError, "flipped.zip is damaged|flipped.zip cannot be read",
         lambda f, e: Dreamer.load(f / "flipped.zip")),
    Case("text", CheckpointError, "text.zip cannot be read as a checkpoint",
         lambda f, e: Dreamer.load(f / "text.zip")),
    Case("a foreign zip", CheckpointError, "foreign.zip is a zip, but not a checkpoint of wmgym",
         lambda f, e: Dreamer.load(f / "foreign.zip")),
    Case("of stable-baselines3", CheckpointError, r"ppo.zip.*PPO.load\(path\)",
         lambda f, e: Dreamer.load(f / "ppo.zip")),
    Case("a replay", CheckpointError, "agent-replay.zip is a zip, but not a checkpoint",
         lambda f, e: Dreamer.load(f / "agent-replay.zip")),
    Case("of another algorithm", CheckpointError, "holds a Dreamer, not a OtherAgent: use Dreamer.load",
         lambda f, e: OtherAgent.load(f / "agent.zip")),
    Case("a world alone", CheckpointError, "holds a world but no agent: open it as a dream",
         lambda f, e: Dreamer.load(f / "world.zip")),
    Case("another observation space", CheckpointError, "trained with the observation_space",
         lambda f, e: Dreamer.load(f / "agent.zip", env=e(spaces.Box(-1, 1, (5,)), spaces.Discrete(2)))),
    Case("another action space", CheckpointError, r"action_space Discrete\(2\), but the env given has Discrete\(3\)",
         lambda f, e: Dreamer.load(f / "agent.zip", env=_other_actions())),
    Case("an env of the wrong type", TypeError, "env must be an id",
         lambda f, e: Dreamer.load(f / "agent.zip", env=42)),
    Case("an unknown argument", TypeError, "unexpected keyword argument 'batchsize'",
         lambda f, e: Dreamer.load(f / "agent.zip", batchsize=3)),
    Case("a bad argument", ValueError, "batch_size must be a whole number",
         lambda f, e: Dreamer.load(f / "agent.zip", batch_size=-3)),
    Case("another size", CheckpointError, "agent.zip does not fit the agent it describes",
         lambda f, e: Dreamer.load(f / "agent.zip", units=16)),
    Case("learning without an env", ValueError, r"no environment to learn in: call set_env\(env\) first",
         lambda f, e: Dreamer.load(f / "without.zip").learn(9)),
    Case("an agent as replay", CheckpointError, "agent.zip is no replay",
         lambda f, e: Dreamer.load(f / "agent.zip").load_replay_buffer(f / "agent.zip")),
    Case("no replay to save", ValueError, "no replay to save: learn first",
         lambda f, e: Dreamer.load(f / "agent.zip").save_replay_buffer(f / "no")),
    Case("a replay of other environments", ValueError, "holds 1 streams, and this agent has 2 environments",
         lambda f, e: two_of_them(f).load_replay_buffer(f / "agent-replay.zip")),
    Case("an env of other spaces later", ValueError, "Observation spaces do not match",
         lambda f, e: Dreamer.load(f / "agent.zip").set_env(e())),
    Case("parameters of another agent", CheckpointError, "holds a world but no agent",
         lambda f, e: Dreamer.load(f / "agent.zip").set_parameters(f / "world.zip")),
]  # fmt: skip


def two_of_them(folder: Path) -> Dreamer:
    return Dreamer.load(folder / "agent.zip", env=make_vec("CartPole-v1", 2))


def _other_actions() -> gym.Env:
    env = gym.make("CartPole-v1").unwrapped
    own = make_vec("CartPole-v1").observation_space
    env.observation_space, env.action_space = own, spaces.Discrete(3)
    return env


@named(FILES)
def test_files(case: Case, files: Path, counter: Any) -> None:
    run(case, files, counter)


def test_a_refused_file_changes_nothing(files: Path) -> None:
    agent = Dreamer.load(files / "agent.zip", device="cpu")
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    with pytest.raises(CheckpointError):
        agent.set_parameters(files / "flipped.zip")
    assert all((value == before[name]).all() for name, value in agent.policy.state_dict().items())
