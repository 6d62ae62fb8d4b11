"""Many dreams: what they are a function of, and how they begin and end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from wmgym.dream import DreamEnv, DreamVectorEnv, StartStates, as_model
from wmgym.random import StreamNoise
from wmgym.spaces import as_dict
from wmgym.worlds.rssm import RSSM, RSSMConfig

from .toy import BOTH, PICTURE, PUSH, VECTOR, ToyState, toy_model, toy_world

ALL_MODES = list(AutoresetMode)
DISCRETE = spaces.Discrete(3, start=5)
PICTURE64 = spaces.Box(0, 255, (64, 64, 3), np.uint8)


def assert_close(one: Any, two: Any) -> None:
    one, two = as_dict(one), as_dict(two)
    assert one.keys() == two.keys()
    for key, array in one.items():
        assert array.dtype == two[key].dtype
        # A decoded picture is cut to whole numbers, which may amplify a rounding to one step of 255.
        np.testing.assert_allclose(array, two[key], atol=1 if array.dtype == np.uint8 else 1e-5)


def row(batch: Any, i: int) -> Any:
    return {key: array[i] for key, array in batch.items()} if isinstance(batch, dict) else batch[i]


def actions_for(space: spaces.Space, steps: int, num_envs: int) -> list[np.ndarray]:
    space.seed(11)
    return [np.stack([space.sample() for _ in range(num_envs)]) for _ in range(steps)]


# -- a dream is a function of model, seed and actions ---------------------------------------------------------


@pytest.mark.parametrize("observation", [VECTOR, PICTURE, BOTH], ids=["vector", "picture", "both"])
@pytest.mark.parametrize("action", [PUSH, DISCRETE], ids=["box", "discrete"])
def test_row_i_dreams_what_a_single_dream_with_seed_s_plus_i_dreams(observation: Any, action: Any) -> None:
    model = toy_model(observation, action, continue_logit=2.0)
    dreams = DreamVectorEnv(5, model, autoreset_mode="Disabled", horizon=20)
    singles = [DreamEnv(model, horizon=20) for _ in range(5)]
    batch, _ = dreams.reset(seed=40)
    for i, single in enumerate(singles):
        assert_close(row(batch, i), single.reset(seed=40 + i)[0])
    endings = 0
    for actions in actions_for(action, 50, 5):
        batch, rewards, terminated, truncated, _ = dreams.step(actions)
        for i, single in enumerate(singles):
            observation_i, reward, end, cut, _ = single.step(actions[i])
            assert_close(row(batch, i), observation_i)
            assert (reward, end, cut) == (pytest.approx(rewards[i], abs=1e-5), terminated[i], truncated[i])
        ended = terminated | truncated
        endings += ended.sum()
        if ended.any():
            batch, _ = dreams.reset(options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                assert_close(row(batch, i), singles[i].reset()[0])
    assert endings > 5


@pytest.mark.parametrize("latent", ["gaussian", "categorical"])
def test_an_rssm_dreams_alone_as_among_others(latent: Any) -> None:
    torch.manual_seed(0)
    config = RSSMConfig(latent=latent, stoch=6, classes=5, deter=32, hidden=32)
    world = RSSM(spaces.Dict({"image": PICTURE64, "speed": BOTH["speed"]}), PUSH, config)
    model = as_model(world, StartStates(world.initial(2), torch.tensor([True, True])))
    many = DreamVectorEnv(4, model, observation="latent", autoreset_mode="SameStep", horizon=20)
    one = DreamVectorEnv(1, model, observation="latent", autoreset_mode="SameStep", horizon=20)
    many.reset(seed=10), one.reset(seed=12)
    for actions in actions_for(PUSH, 50, 4):
        np.testing.assert_allclose(many.step(actions)[0][2], one.step(actions[2:3])[0][0], atol=1e-4)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_neighbours_and_their_number_change_nothing(mode: AutoresetMode) -> None:
    model = toy_model(continue_logit=1.0)
    few, many = (DreamVectorEnv(n, model, autoreset_mode=mode) for n in (2, 9))
    few.reset(seed=3), many.reset(seed=3)
    for actions in actions_for(PUSH, 60, 9):
        a, b = few.step(actions[:2]), many.step(actions)
        for one, two in zip(a[:4], b[:4], strict=True):
            assert_close(one, two[:2])


def test_the_same_seed_brings_the_same_dream_and_another_seed_another() -> None:
    def dream(seed: int) -> np.ndarray:
        dreams = DreamVectorEnv(3, toy_model(), horizon=7)
        seen = [dreams.reset(seed=seed)[0]]
        seen += [dreams.step(actions)[0] for actions in actions_for(PUSH, 30, 3)]
        return np.stack(seen)

    np.testing.assert_array_equal(dream(1), dream(1))
    assert not np.array_equal(dream(1), dream(2))


def test_the_constructors_seed_counts_for_the_first_reset_only() -> None:
    by_constructor, by_reset = DreamVectorEnv(2, toy_model(), seed=9), DreamVectorEnv(2, toy_model())
    np.testing.assert_array_equal(by_constructor.reset()[0], by_reset.reset(seed=9)[0])
    np.testing.assert_array_equal(by_constructor.reset()[0], by_reset.reset()[0])


def test_unseeded_environments_differ() -> None:
    dreams = [DreamVectorEnv(4, toy_model()) for _ in range(2)]
    for d in dreams:
        d.reset()
    zeros = np.zeros((4, 2), np.float32)
    assert not np.array_equal(dreams[0].step(zeros)[0], dreams[1].step(zeros)[0])


def test_an_episode_does_not_depend_on_how_the_last_one_went() -> None:
    dreams = DreamVectorEnv(1, toy_model(), autoreset_mode="Disabled", termination="never")
    ends = []
    for steps in (1, 13):
        dreams.reset(seed=5)
        for actions in actions_for(PUSH, steps, 1):
            dreams.step(actions)
        first, _ = dreams.reset()
        ends.append(np.concatenate([first, dreams.step(np.zeros((1, 2), np.float32))[0]]))
    np.testing.assert_array_equal(ends[0], ends[1])


def test_seeds_one_each_and_none_goes_on() -> None:
    dreams, other = DreamVectorEnv(2, toy_model()), DreamVectorEnv(2, toy_model())
    listed, _ = dreams.reset(seed=[50, 2**63 + 5])
    assert_close(listed[:1], other.reset(seed=50)[0][:1])
    dreams.reset(seed=[8, None])
    assert_close(dreams.step(np.zeros((2, 2)))[0][0], _first_step(8))


def _first_step(seed: int) -> np.ndarray:
    dream = DreamEnv(toy_model())
    dream.reset(seed=seed)
    return dream.step(np.zeros(2))[0]


# -- branching ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_state_replays_exactly(mode: AutoresetMode) -> None:
    termination = "never" if mode is AutoresetMode.DISABLED else "sample"
    make = {"autoreset_mode": mode, "horizon": 100 if termination == "never" else 9, "termination": termination}
    dreams = DreamVectorEnv(3, toy_model(BOTH, continue_logit=1.0), **make)
    dreams.reset(seed=0)
    actions = actions_for(PUSH, 30, 3)
    seen = [dreams.step(a)[0] for a in actions[:10]]
    state = dreams.get_state()
    future = [dreams.step(a) for a in actions[10:]]

    again = dreams.set_state(state)
    assert_close(again, seen[-1])
    elsewhere = DreamVectorEnv(3, toy_model(BOTH, continue_logit=1.0), **make)
    elsewhere.set_state(state)
    for a, then in zip(actions[10:], future, strict=True):
        for replay in (dreams.step(a), elsewhere.step(a)):
            for key, array in then[0].items():
                np.testing.assert_array_equal(replay[0][key], array)
            for one, two in zip(replay[1:4], then[1:4], strict=True):
                np.testing.assert_array_equal(one, two)


def test_a_state_is_untouched_by_later_steps() -> None:
    dreams = DreamVectorEnv(2, toy_model())
    dreams.reset(seed=0)
    state = dreams.get_state()
    before = state.world.x.clone()
    for actions in actions_for(PUSH, 3, 2):
        dreams.step(actions)
    assert torch.equal(state.world.x, before)
    assert not state.steps.any()
    assert not (state.counters - 1).any()


# -- ends and new beginnings ----------------------------------------------------------------------------------


def test_next_step_ignores_the_action_after_an_end() -> None:
    dreams = DreamVectorEnv(2, toy_model(), horizon=2, termination="never")
    assert dreams.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    _first, _ = dreams.reset(seed=0)
    dreams.step(np.zeros((2, 2)))
    _, _, terminated, truncated, infos = dreams.step(np.zeros((2, 2)))
    assert truncated.all()
    assert not terminated.any()
    assert infos == {}
    fresh, rewards, terminated, truncated, _ = dreams.step(np.full((2, 2), np.nan))
    assert not rewards.any()
    assert not terminated.any()
    assert not truncated.any()
    again = DreamVectorEnv(2, toy_model())
    again.reset(seed=0)
    assert_close(fresh, again.reset()[0])


def test_same_step_shows_the_new_beginning_and_keeps_the_end_in_the_info() -> None:
    make = {"horizon": 2, "termination": "never"}
    same = DreamVectorEnv(2, toy_model(BOTH), autoreset_mode=AutoresetMode.SAME_STEP, **make)
    plain = DreamVectorEnv(2, toy_model(BOTH), autoreset_mode=AutoresetMode.DISABLED, **make)
    same.reset(seed=0), plain.reset(seed=0)
    zeros = np.zeros((2, 2))
    assert same.step(zeros)[4] == {}
    plain.step(zeros)
    shown, reward, _, truncated, infos = same.step(zeros)
    last, plain_reward, *_ = plain.step(zeros)
    assert truncated.all()
    assert infos["_final_obs"].all()
    assert infos["_final_info"].all()
    np.testing.assert_array_equal(reward, plain_reward)
    for i in range(2):
        assert_close(infos["final_obs"][i], row(last, i))
    assert_close(shown, plain.reset()[0])


def test_same_step_leaves_those_alone_that_go_on() -> None:
    model = toy_model(continue_logit=1.0)
    same = DreamVectorEnv(6, model, autoreset_mode="SameStep")
    other = DreamVectorEnv(6, model, autoreset_mode="NextStep")
    same.reset(seed=1), other.reset(seed=1)
    zeros = np.zeros((6, 2))
    while True:
        shown, _, ended, _, infos = same.step(zeros)
        last, *_ = other.step(zeros)
        if 0 < ended.sum() < 6:
            break
        assert not ended.any()
    assert_close(shown[~ended], last[~ended])
    assert_close(np.stack(infos["final_obs"][ended]), last[ended])
    assert all(entry is None for entry in infos["final_obs"][~ended])


def test_disabled_waits_for_a_reset_and_resets_by_mask() -> None:
    dreams = DreamVectorEnv(3, toy_model(), autoreset_mode="Disabled", horizon=2, termination="never")
    dreams.reset(seed=0)
    dreams.step(np.zeros((3, 2)))
    mask = np.array([False, True, False])
    before = dreams.get_state().world.x
    dreams.reset(options={"reset_mask": mask})
    after = dreams.get_state()
    assert torch.equal(after.world.x[~mask], before[~mask])
    assert list(after.steps) == [1, 0, 1]
    _, _, _, truncated, _ = dreams.step(np.zeros((3, 2)))
    assert list(truncated) == [True, False, True]
    with pytest.raises(ResetNeeded, match=r"dreams \[0, 2\] have ended"):
        dreams.step(np.zeros((3, 2)))
    dreams.reset(options={"reset_mask": truncated})
    dreams.step(np.zeros((3, 2)))


@pytest.mark.parametrize(("termination", "logit", "share"), [
    ("never", -9.0, 0.0), ("threshold", 9.0, 0.0), ("threshold", -9.0, 1.0), ("sample", 60.0, 0.0),
    ("sample", -60.0, 1.0),
])  # fmt: skip
def test_terminations(termination: Any, logit: float, share: float) -> None:
    dreams = DreamVectorEnv(8, toy_model(continue_logit=logit), termination=termination, autoreset_mode="SameStep")
    dreams.reset(seed=0)
    assert np.mean([dreams.step(a)[2] for a in actions_for(PUSH, 5, 8)]) == share


def test_sampled_terminations_come_as_often_as_the_world_predicts() -> None:
    world = toy_world(continue_logit=1.0)
    torch.nn.init.zeros_(world.drift.weight), torch.nn.init.zeros_(world.drift.bias)
    starts = StartStates(ToyState(torch.zeros(1, 4), torch.zeros(1)), torch.tensor([True]))
    dreams = DreamVectorEnv(2000, as_model(world, starts), autoreset_mode="SameStep", temperature=0.0)
    dreams.reset(seed=0)
    share = dreams.step(np.zeros((2000, 2)))[2].mean()
    expected = 1 - 1 / (1 + np.exp(-1.0))
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000)


def test_the_horizon_comes_from_the_argument_else_from_the_file_else_is_the_default() -> None:
    model = toy_model()
    known = as_model(model.world, model.starts, {"max_episode_steps": 123})
    assert DreamVectorEnv(1, known).horizon == 123
    assert DreamVectorEnv(1, known, max_episode_steps=400).horizon == 400
    assert DreamVectorEnv(1, known, max_episode_steps=400, horizon=15).horizon == 15
    assert DreamVectorEnv(1, model).horizon == 1000


# -- where dreams begin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "expected"), [("episode", 3), ("any", 6)])
def test_starts_are_drawn_from_those_asked_for(start: Any, expected: int) -> None:
    model = toy_model()
    dreams = DreamVectorEnv(200, model, start=start, observation="latent")
    observation, _ = dreams.reset(seed=0)
    drawn = {round(float(x), 4) for x in observation[:, 0]}
    assert drawn == {round(float(x), 4) for x in model.starts.states.x[:expected, 0]}


def test_a_start_can_be_chosen() -> None:
    model = toy_model()
    dreams = DreamVectorEnv(3, model, observation="latent")
    xs = model.starts.states.x.numpy()
    np.testing.assert_array_equal(dreams.reset(options={"start": 4})[0], xs[[4, 4, 4]])
    np.testing.assert_array_equal(dreams.reset(options={"start": np.array([5, 0, 2])})[0], xs[[5, 0, 2]])


def test_a_dream_can_begin_from_an_observation() -> None:
    dreams = DreamVectorEnv(3, toy_model(BOTH), observation="latent")
    seen = BOTH.sample()
    batch = {key: np.stack([array] * 3) for key, array in seen.items()}
    observation, _ = dreams.reset(seed=0, options={"observation": batch})
    single, _ = DreamEnv(toy_model(BOTH), observation="latent").reset(seed=2, options={"observation": seen})
    assert_close(observation[2], single)
    assert not np.array_equal(observation[0], observation[1])  # each has its own draw


def test_a_dream_can_begin_from_a_world_state() -> None:
    dreams = DreamVectorEnv(2, toy_model(), observation="latent")
    state = ToyState(torch.full((2, 4), 0.25), torch.zeros(2))
    observation, _ = dreams.reset(options={"state": state})
    np.testing.assert_array_equal(observation, np.full((2, 4), 0.25, np.float32))
    dreams.step(np.zeros((2, 2)))
    assert torch.equal(state.x, torch.full((2, 4), 0.25))


def test_every_dream_can_begin_from_the_one_start_given() -> None:
    model = toy_model()
    dreams = DreamVectorEnv(2, model, observation="latent", start=4)
    for seed in (0, None):
        np.testing.assert_array_equal(dreams.reset(seed=seed)[0], model.starts.states.x.numpy()[[4, 4]])


def test_a_dream_can_begin_from_the_beginning_of_a_real_episode() -> None:
    model = toy_model(VECTOR)
    generator = np.random.default_rng(0)
    seen = generator.uniform(-1, 1, (6, 2, 3)).astype(np.float32)
    taken = generator.uniform(-1, 1, (6, 2, 2)).astype(np.float32)
    dreams = DreamVectorEnv(2, model, observation="latent")
    observation, _ = dreams.reset(seed=3, options={"prefix": {"observation": seen, "action": taken}})
    noise = StreamNoise(torch.tensor([3, 4]))
    state = model.world.initial(2)
    for t in range(6):
        batch = {"observation": torch.from_numpy(seen[t])}
        state = model.world.observe(state, torch.from_numpy(taken[t]), batch, torch.full((2,), t == 0), noise)
    np.testing.assert_allclose(observation, state.x.detach().numpy(), atol=1e-6)
    single = DreamEnv(model, observation="latent")
    alone, _ = single.reset(seed=4, options={"prefix": {"observation": seen[:, 1], "action": taken[:, 1]}})
    np.testing.assert_allclose(alone, observation[1], atol=1e-6)


# -- observations, actions, pictures --------------------------------------------------------------------------


def test_decoded_observations_are_of_the_real_space_and_latent_ones_are_features() -> None:
    dreams = DreamVectorEnv(4, toy_model(BOTH))
    assert dreams.single_observation_space == BOTH
    observation, _ = dreams.reset(seed=0)
    assert observation in dreams.observation_space
    assert np.abs(observation["speed"]).max() == np.float32(0.1)  # clipped to the bounds
    exact = spaces.Box(-0.1, 0.1, (3,), np.float64)  # a bound that no float32 equals
    observation, _ = DreamVectorEnv(64, toy_model(exact)).reset(seed=0)
    assert np.abs(observation).max() == 0.1
    assert all(row in exact for row in observation)
    latent = DreamVectorEnv(4, toy_model(BOTH), observation="latent")
    features, _ = latent.reset(seed=0)
    assert features in latent.observation_space
    assert features.shape == (4, 4)


def test_arrays_are_fresh_at_every_step() -> None:
    for observation in ("decoded", "latent"):
        dreams = DreamVectorEnv(2, toy_model(), observation=observation)
        first, _ = dreams.reset(seed=0)
        kept = dreams.get_state().world.x
        first[:] = 7.0
        assert torch.equal(dreams.get_state().world.x, kept)
        outs = [dreams.step(np.zeros((2, 2)))[:4] for _ in range(2)]
        for one, two in zip(*outs, strict=True):
            assert not np.shares_memory(one, two)


def test_box_actions_are_scaled_and_clipped() -> None:
    wide = toy_model(action=spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32)))
    unit = toy_model()
    steps = []
    for model, action in [(unit, [1, -1]), (wide, [2, 0]), (wide, [99, -99])]:
        dreams = DreamVectorEnv(1, model)
        dreams.reset(seed=0)
        steps.append(dreams.step(np.array([action], np.float32))[0])
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[0], steps[2])


def test_temperature_zero_takes_the_worlds_chance_away() -> None:
    dreams = DreamVectorEnv(2, toy_model(), temperature=0.0, termination="never")
    dreams.reset(seed=0, options={"start": 0})
    observation, *_ = dreams.step(np.zeros((2, 2)))
    np.testing.assert_allclose(observation[0], observation[1], atol=1e-6)
