"""SamReport: what becomes a region, what is observed of it, what the report of it is worth, who acts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sam_gym.data.windows import WindowData
from sam_gym.envs import SamReportEnv, SamReportVectorEnv, references
from sam_gym.envs.observations import MAPS
from sam_gym.envs.rendering import NEGATIVE, POSITIVE
from sam_gym.evaluation import evaluate
from sam_gym.prompters import RandomPrompter, grid, oracle_clicks, oracle_regions
from sam_gym.reports import describe, parse, regions_of
from sam_gym.sb3 import Cloner, CloneSettings, LightPolicy

ID = "SamReport-Synthetic-v0"
SIDE, REPORT = 128, 256
TINY = {"checkpoint": "tiny_random", "device": "cpu", "split": "val"}
Make = Callable[..., SamReportVectorEnv]


def squares(*places: tuple[int, int, int]) -> NDArray[np.int32]:
    """Labels: squares of row, column and side."""
    labels = np.zeros((SIDE, SIDE), np.int32)
    for number, (row, column, side) in enumerate(places, start=1):
        labels[row : row + side, column : column + side] = number
    return labels


FEW = squares((8, 8, 32), (8, 70, 20), (100, 110, 16))
NONE = squares()
MANY = squares(*((10 + 30 * (i // 4), 4 + 32 * (i % 4), 14) for i in range(12)))


@pytest.fixture
def make(tiny_clip: str) -> Make:
    def make(*labels: NDArray[np.int32], n: int = 1, **settings: Any) -> SamReportVectorEnv:
        images = None
        if labels:
            noise = [np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for i in range(len(labels))]
            names = [f"window-{i}" for i in range(len(labels))]
            images = WindowData("synthetic-mitochondria", "val", "squares", names, noise, labels)
        settings = {**TINY, "clip": tiny_clip, "autoreset_mode": "Disabled", "images": images, **settings}
        return gymnasium.make_vec(ID, num_envs=n, **settings).unwrapped  # type: ignore[return-value]

    return make


def respond(env: SamReportVectorEnv, monkeypatch: pytest.MonkeyPatch, mask: Callable[[int, int], NDArray]) -> None:
    """From now on SAM's mask at full size is what `mask(x, y)` says of the last click."""
    apply = env.engine.actions.apply
    last: list[list[int]] = []

    def noted(episodes: Any, rows: NDArray, actions: NDArray) -> None:
        apply(episodes, rows, actions)
        last[:] = [np.round(episodes.sent_points[row, 0]).astype(int).tolist() for row in rows]

    monkeypatch.setattr(env.engine.actions, "apply", noted)
    monkeypatch.setattr(env.engine.attention, "mask", lambda seen, logits: torch.as_tensor(mask(*last.pop(0))))


def exact(env: SamReportVectorEnv, labels: NDArray[np.int32], monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM outlines the object that is clicked, and nothing where there is none."""
    respond(env, monkeypatch, lambda x, y: (labels == labels[y, x]) & (labels > 0))


def cell(x: float, y: float) -> int:
    return int(y / SIDE * 16) * 16 + int(x / SIDE * 16)


def act(env: SamReportVectorEnv, action: int) -> tuple[dict, float, bool, dict]:
    observation, reward, terminated, _, info = env.step(np.array([action]))
    return observation, float(reward[0]), bool(terminated[0]), {k: v[0] for k, v in info.items() if k[0] != "_"}


def test_the_whole_truth_is_worth_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(FEW)
    exact(env, FEW, monkeypatch)
    _, info = env.reset()
    assert info["text"][0] == "No mitochondrion is seen."
    assert (info["f1"][0], info["grounded_f1"][0], info["regions"][0]) == (0, 0, 0)
    rewards, clicked = [], []
    while True:
        action = int(oracle_regions({}, env)[0])
        clicked.append(action)
        _, reward, terminated, info = act(env, action)
        rewards.append(reward)
        if terminated:
            break
    objects = [FEW[8 * (action // 16) + 4, 8 * (action % 16) + 4] for action in clicked[:-1]]
    assert (objects, clicked[-1]) == ([1, 2, 3], REPORT)  # from the largest to the smallest
    assert (info["f1"], info["grounded_f1"], info["iou"], info["prompts"], info["regions"]) == (1, 1, 1, 3, 3)
    assert sum(rewards) == pytest.approx(1 - 3 * 0.01)
    assert rewards[-1] == 0
    truth = describe(regions_of(FEW, "mitochondrion"), ["mitochondrion"])
    assert parse(info["text"], strict=True).facts == tuple(one.fact for one in truth)
    assert info["facts"] == tuple(str(one.fact) for one in truth)


def test_what_becomes_a_region(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(FEW, max_prompts=6)
    masks = [squares((0, 0, 40)) > 0, squares((0, 0, 40)) > 0, squares((0, 20, 40)) > 0, squares((0, 28, 40)) > 0,
             squares((90, 90, 7)) > 0, squares((90, 90, 8)) > 0]  # fmt: skip
    answers = iter(masks)
    respond(env, monkeypatch, lambda x, y: next(answers))
    env.reset()
    counts = []
    for k in range(6):
        observation, _, terminated, info = act(env, 5 * k)
        counts.append(info["regions"])
        assert observation["state"][0, -1] == pytest.approx(info["regions"] / 6)
    # the same again is none; half of it new is one, if all has 50 px; and each has only pixels of its own
    assert counts == [1, 1, 2, 2, 2, 3]
    assert terminated
    assert [one.area for one in env.engine.regions(0)] == [1600, 800, 64]
    np.testing.assert_array_equal(env.mask(), masks[0] | masks[2] | masks[5])


def test_what_is_observed(make: Make) -> None:
    n = 4
    env, short = make(n=n), make(n=n, observation="reference")
    observations, _ = env.reset(seed=1)
    small, _ = short.reset(seed=1)
    assert observations["maps"].shape == (n, 7, 64, 64)
    assert not observations["maps"][:, [3, 5, 6]].any()
    found = np.zeros((n, 64, 64), np.uint8)
    joined = np.zeros(n, np.int32)
    for step in range(4):
        before = env.episodes.regions.copy()
        actions = np.arange(n) * 17 + 61 * step
        observations, _, _, _, infos = env.step(actions)
        small = short.step(actions)[0]
        new = env.episodes.regions > before
        joined += new
        found[new] = np.maximum(found, observations["maps"][:, MAPS.index("mask")])[new]
        np.testing.assert_array_equal(observations["maps"][:, 5], found)
        clicks = observations["maps"][:, 6].reshape(n, 16, 4, 16, 4)[:, :, 1, :, 1] > 0
        np.testing.assert_array_equal(clicks.reshape(n, -1), env.episodes.used)
        assert infos["regions"].tolist() == joined.tolist()
    assert joined.any()
    tensors = {name: torch.as_tensor(array) for name, array in small.items()}
    for name in ("mask", "regions"):
        tensors[name] = tensors[name].float() / 255  # as SB3 does
    resolved = references.resolve(tensors, 16)
    for name, array in observations.items():
        expected = array / np.float32(255) if name == "maps" else array
        np.testing.assert_allclose(resolved[name].numpy(), expected, atol=1e-6)


def test_sam_is_given_the_newest_click_and_one_of_its_three_masks_is_taken(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas = {}
    for granularity in ("smallest", "middle", "largest"):
        env = make(n=3, granularity=granularity)
        sent: list[Any] = []
        decode = partial(type(env.backend).decode, env.backend)

        def spy(embeddings: Any, prompts: Any, sent: list = sent, decode: Any = decode, **asked: Any) -> Any:
            made = decode(embeddings, prompts, **asked)
            sent.append((prompts, made.statistics.area))
            return made

        monkeypatch.setattr(env.backend, "decode", spy)
        env.reset(seed=0)
        assert not sent  # nothing is decoded to begin with
        for step in range(3):
            actions = np.array([7, 130, 201]) + 20 * step
            env.step(actions)
            prompts, three = sent[-1]
            x, y = prompts.points[:, 0].T
            side = env.episodes.view[:, 2]
            np.testing.assert_allclose((y + 0.5) / side * 16 - 0.5, actions // 16)
            np.testing.assert_allclose((x + 0.5) / side * 16 - 0.5, actions % 16)
            assert prompts.points.shape == (3, 1, 2)
            assert not prompts.has_mask.any()
        areas[granularity] = three.sort(dim=1).values
        masks = [env.engine.attention.mask(*env.engine.present(row)).sum() for row in range(3)]
        rank = ("smallest", "middle", "largest").index(granularity)
        assert torch.stack(masks).tolist() == areas[granularity][:, rank].tolist()
    assert (areas["smallest"][:, 0] < areas["smallest"][:, 2]).all()


def test_nothing_to_see_is_worth_saying(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(NONE, FEW)
    respond(env, monkeypatch, lambda x, y: squares((60, 60, 20)) > 0)
    for first in (cell(5, 5), REPORT):
        _, info = env.reset(options={"image": 0})
        assert (info["f1"][0], info["iou"][0]) == (1, 1)
        _, reward, _, info = act(env, first)
        assert reward == (0 if first == REPORT else pytest.approx(-1.01))
        assert oracle_regions({}, env).tolist() == [REPORT]


def test_more_objects_than_regions(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(MANY)
    exact(env, MANY, monkeypatch)
    env.reset()
    for _ in range(8):
        _, _, terminated, info = act(env, int(oracle_regions({}, env)[0]))
    assert terminated
    assert info["regions"] == 8
    assert info["text"].startswith("Eight mitochondria are seen. Eight mitochondria are of medium size.")
    assert 0 < info["f1"] < 1


def test_true_numbers_of_wrong_regions_are_not_grounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = squares((20, 20, 20))
    for reward, worth in (("f1", 1.0), ("grounded_f1", None)):
        env = make(one, reward=reward, prompt_cost=0.0)
        respond(env, monkeypatch, lambda x, y: squares((40, 40, 20)) > 0)  # also in the upper left
        env.reset()
        _, gained, _, info = act(env, 0)
        assert info["f1"] == 1
        assert 0 < info["grounded_f1"] < 0.5  # that nothing touches and nothing is at the edge is right all the same
        assert gained == pytest.approx(worth or info["grounded_f1"])


def test_the_oracle_passes_over_what_was_clicked_and_what_is_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(FEW)
    respond(env, monkeypatch, lambda x, y: squares((8, 69, 21)) > 0)  # whatever is clicked, the second object is found
    env.reset()
    act(env, int(oracle_regions({}, env)[0]))
    last = oracle_regions({}, env)
    assert FEW[8 * (last[0] // 16) + 4, 8 * (last[0] % 16) + 4] == 3
    act(env, int(last[0]))
    assert oracle_regions({}, env).tolist() == [REPORT]


def test_prompters_on_exact_masks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(FEW)
    exact(env, FEW, monkeypatch)
    worth = {}
    for name, prompter in (("random", RandomPrompter(0)), ("grid", grid), ("oracle", oracle_regions)):
        record = evaluate(prompter, env, progress=False)
        worth[name] = record.returns[0], record.prompts[0]
    assert worth["oracle"] == (pytest.approx(0.97), 3)
    assert worth["random"][1] == worth["grid"][1] == 8
    assert max(worth["random"][0], worth["grid"][0]) < 0.97
    env.reset()
    clicks = []
    for _ in range(8):
        clicks.append(int(grid({}, env)[0]))
        act(env, clicks[-1])
    assert len(set(clicks)) == 8
    assert len({click // 16 for click in clicks}) == len({click % 16 for click in clicks}) == 3
    with pytest.raises(ValueError, match="each click makes a region"):
        oracle_clicks({}, env)
    with pytest.raises(ValueError, match="needs SamReport"):
        oracle_regions({}, gymnasium.make_vec("SamPrompt-Synthetic-v0", **TINY).unwrapped)


def test_the_picture_shows_regions_and_both_texts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(FEW, render_mode="rgb_array")
    exact(env, FEW, monkeypatch)
    env.reset()
    begun = env.render()[0]
    act(env, cell(24, 24))
    after = env.render()[0]
    assert begun.shape == after.shape == (792, 448, 3)

    def coloured(picture: NDArray, colour: tuple) -> bool:
        return bool((picture[512:, :224] == colour).all(axis=2).any())  # in the report's column

    assert (coloured(begun, NEGATIVE), coloured(begun, POSITIVE)) == (True, False)
    assert (coloured(after, NEGATIVE), coloured(after, POSITIVE)) == (True, True)


def test_the_oracle_can_be_cloned(tiny_clip: str, tmp_path: Path) -> None:
    env: Any = gymnasium.make_vec(ID, num_envs=8, autoreset_mode="SameStep", clip=tiny_clip, **TINY).unwrapped
    torch.manual_seed(0)
    policy = LightPolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3)
    settings = CloneSettings(total_timesteps=160, round_steps=5, gradient_steps=20, batch_size=16, oracle_until=1.0,
                             own_actions=0.0, learning_rate=3e-3)  # fmt: skip
    losses: list[float] = []
    cloner = Cloner(policy, env, settings, tmp_path, seed=0, gamma=1.0, reward_scale=1.0)
    cloner.run(lambda _, found: losses.append(found["kl_to_oracle"]))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"granularity": "small"}, "did you mean 'smallest'"),
        ({"action_mode": "grid"}, "there is 'regions'"),
        ({"returns": "best_predicted"}, "all regions"),
        ({"copies": 2}, "copies=2 is outside 0..0"),
        ({"reward": "f2"}, "unknown reward term 'f2'"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamReportEnv(dataset="synthetic-mitochondria", **{**TINY, **wrong})


def test_rewards_of_reports_and_images_of_others_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="only SamReport"):
        gymnasium.make("SamPrompt-Synthetic-v0", reward="f1", **TINY)
    plain = gymnasium.make("SamPrompt-Synthetic-v0", **TINY).unwrapped.engine.data  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="WindowData"):
        make(images=plain)
