"""Region-text agreement: the formula by hand, the exploits that it withstands, and one call of the scorer a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from sam_gym.envs import agreement as agreement_module
from sam_gym.envs.agreement import FLOOR, Agreement
from sam_gym.envs.prompt import PromptSettings
from sam_gym.envs.semantic import SemanticSettings
from sam_gym.sam import ImageEmbedding

SIDE = 100
STOP = 2 * 16 * 16
Judge = Callable[[NDArray[np.bool_]], float]


class Scorer:
    """Stands for a CLIP: says of a region what a function says."""

    text_dim = 3

    def __init__(self, judge: Judge) -> None:
        self.judge, self.calls = judge, []

    def score(self, images: Sequence, masks: Sequence, targets: Sequence, distractors: Sequence) -> NDArray[np.float64]:
        self.calls.append((list(images), list(masks), list(targets), [tuple(one) for one in distractors]))
        return np.array([self.judge(mask) if mask.any() else 0.0 for mask in masks])

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.eye(3)[: len(texts)]


@pytest.fixture
def scored_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Judge], Scorer]:
    """`scored_by(judge)`: from now on, in place of every CLIP."""

    def patch(judge: Judge) -> Scorer:
        scorer = Scorer(judge)
        monkeypatch.setattr(agreement_module, "_scorer", lambda clip, device: scorer)
        return scorer

    return patch


def disc(x: float, y: float, radius: float) -> NDArray[np.bool_]:
    line, column = np.mgrid[:SIDE, :SIDE] + 0.5
    return (column - x) ** 2 + (line - y) ** 2 < radius**2


TARGET = disc(50, 45, 25) | disc(85, 85, 9)
SLIVER = np.zeros_like(TARGET)
SLIVER[45:47, 30:70] = True
CORNER = np.zeros_like(TARGET)
CORNER[:12, :12] = True
WHOLE = np.ones_like(TARGET)
NOTHING = np.zeros_like(TARGET)


def measured(meter: Agreement, *masks: NDArray[np.bool_]) -> list[float]:
    """Agreement of masks of an image of 100 x 100 px that fills its view."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    embedding = ImageEmbedding("", torch.zeros(1, 25, 25), (SIDE, SIDE), (SIDE, SIDE))
    scene = meter.scene(image, np.array([0, 0, SIDE], np.float32), embedding)
    logits = torch.stack([torch.as_tensor(mask) for mask in masks]).float() - 0.5
    return meter.of([scene] * len(masks), logits).tolist()


def semantic() -> Agreement:
    return Agreement("nucleus", SemanticSettings(device="cpu"))


def purity(mask: NDArray[np.bool_]) -> float:
    """A CLIP that sees what share of a region is target."""
    return float((mask & TARGET).sum() / mask.sum())


def presence(mask: NDArray[np.bool_]) -> float:
    """A CLIP that names a region after any sixth of the target in it, however much else there is."""
    return 0.95 if (mask & TARGET).sum() > TARGET.sum() / 6 else 0.02


# ------------------------------------------------------------------------------------------------------- the formula


def test_the_formula_by_hand(scored_by: Callable) -> None:
    """A part of 20 x 20 px of which CLIP is sure and one of 10 x 10 px of which it is half sure; rings 5 px wide."""
    mask = np.zeros_like(TARGET)
    mask[10:30, 10:30], mask[60:70, 60:70] = True, True
    scorer = scored_by(lambda region: {400: 1.0, 100: 0.5}.get(int(region.sum()), 0.25))
    (got,) = measured(semantic(), mask)
    ring = 30 * 30 - 400 + 20 * 20 - 100
    p, rest = (400 * 1.0 + 100 * 0.5) / 500, 100 * 100 - 500 - ring
    assert FLOOR == 0.05
    assert got == pytest.approx(2 * p * 500 / (500 + p * 500 + 0.25 * ring + 0.05 * rest))
    assert [int(region.sum()) for region in scorer.calls[0][1]] == [400, 100, ring]


def test_of_many_parts_the_largest_speak_for_all(scored_by: Callable) -> None:
    mask = np.zeros_like(TARGET)
    for row in range(5):
        for column in range(5):
            mask[20 * row : 20 * row + 2 + row, 20 * column : 20 * column + 3] = True
    scorer = scored_by(lambda region: 1.0 if region.sum() < 100 else 0.0)
    (got,) = measured(semantic(), mask)
    seen = [int(region.sum()) for region in scorer.calls[0][1][:-1]]
    assert seen == [18] * 5 + [15] * 5 + [12] * 5 + [9]
    assert got == pytest.approx(2 * mask.sum() / (2 * mask.sum() + FLOOR * (10_000 - mask.sum())))


def test_with_a_clip_that_sees_every_pixel_it_is_highest_for_the_target(scored_by: Callable) -> None:
    scored_by(purity)
    rivals = [disc(50 + dx, 45 + dy, r) for dx in (-20, 0, 20) for dy in (-20, 0, 20) for r in (8, 16, 25, 32, 45)]
    best, *others = measured(semantic(), TARGET, disc(85, 85, 9), *rivals)
    assert best == pytest.approx(2 / (2 + FLOOR * (WHOLE.sum() / TARGET.sum() - 1)))
    assert max(others) < best
    assert min(others) > 0


@pytest.mark.parametrize("judge", [purity, presence, lambda mask: 0.95], ids=["purity", "presence", "yes to all"])
@pytest.mark.parametrize("exploit", [WHOLE, SLIVER, CORNER, NOTHING], ids=["whole", "sliver", "corner", "nothing"])
def test_exploits_are_worth_little(scored_by: Callable, judge: Judge, exploit: NDArray[np.bool_]) -> None:
    """Even if CLIP calls every region by the target's name."""
    scored_by(judge)
    right, cheat = measured(semantic(), TARGET, exploit)
    assert cheat < 0.35
    assert right > 2 * cheat


def test_a_clip_that_is_fooled_by_a_corner_alone_gives_less_for_it_than_for_the_target(scored_by: Callable) -> None:
    """It takes the corner for the target and the rest for free of it: the area is what is left to count."""
    fooled = lambda mask: 1.0 if not (mask & ~CORNER).any() or not (mask & ~TARGET).any() else 0.0  # noqa: E731
    scored_by(fooled)
    right, cheat = measured(semantic(), TARGET, CORNER)
    assert right > cheat + 0.4


def test_each_part_that_is_found_pays(scored_by: Callable) -> None:
    scored_by(purity)
    one, other = disc(50, 45, 25), disc(85, 85, 9)
    small, large, both = measured(semantic(), other, one, one | other)
    assert small < large < both
    assert measured(semantic(), one | other | disc(10, 85, 9))[0] < both


def test_growing_into_the_target_pays_step_by_step(scored_by: Callable) -> None:
    scored_by(purity)
    grown = measured(semantic(), *(disc(50, 45, r) for r in range(2, 26, 3)), TARGET)
    assert (np.diff(grown) > 0).all()
    spilled = measured(semantic(), *(TARGET | disc(50, 45, r) for r in range(25, 50, 4)))
    assert (np.diff(spilled) < 0).all()


def test_other_objects_of_the_class_do_no_harm_to_one(scored_by: Callable) -> None:
    """As in tasks about single objects: they may lie outside, but not in the ring; a part of it lies in itself."""
    others = disc(15, 15, 12) | disc(85, 15, 12)
    scored_by(lambda mask: float((mask & (TARGET | others)).sum() / mask.sum()))
    meter = Agreement("cell interior", PromptSettings(device="cpu"))
    masks = (disc(50, 45, 25), disc(50, 45, 12), SLIVER, disc(50, 45, 34), WHOLE)
    right, part, sliver, spilled, whole = measured(meter, *masks)
    assert right > 0.8
    assert max(part, sliver, spilled, whole) < right - 0.1
    assert whole == 0


def test_only_what_lies_in_the_image_counts(scored_by: Callable) -> None:
    scorer = scored_by(lambda mask: 0.5)
    meter = semantic()
    image = np.zeros((50, 100, 3), np.uint8)
    embedding = ImageEmbedding("", torch.zeros(1, 25, 25), (50, 100), (50, 100))
    scene = meter.scene(image, np.array([0, -25, 100], np.float32), embedding)
    meter.of([scene], torch.ones(1, 100, 100))
    part, ring = scorer.calls[0][1]
    assert part[25:75].all()
    assert part.sum() == 50 * 100
    assert not ring.any()


@pytest.mark.parametrize("settings", [SemanticSettings, PromptSettings])
def test_it_does_not_depend_on_who_else_is_asked_about(tiny_clip: str, settings: Callable[..., Any]) -> None:
    """To the last bit, with a real scorer and views of several sizes."""
    meter = Agreement("nucleus", settings(device="cpu", clip=tiny_clip))
    rng = np.random.default_rng(0)
    scenes, masks = [], torch.as_tensor(rng.normal(size=(5, 25, 25)), dtype=torch.float32)
    for row, (height, width) in enumerate([(100, 100), (60, 100), (33, 70), (90, 40), (100, 100)]):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        side = max(height, width)
        frame = ImageEmbedding("", torch.zeros(1, 25, 25), (height, width), (height * 100 // side, width * 100 // side))
        view = np.array([(width - side) / 2 + row, (height - side) / 2, side], np.float32)
        scenes.append(meter.scene(image, view, frame))
    together = meter.of(scenes, masks)
    alone = [float(meter.of([scene], masks[row : row + 1])[0]) for row, scene in enumerate(scenes)]
    assert together.tolist() == alone
    assert len(set(alone)) == 5
    assert min(alone) > 0


# -------------------------------------------------------------------------------------------------------- the reward


@pytest.mark.parametrize("task", ["SamPromptSemantic", "SamPrompt", "SamBoxRefine"])
def test_rewards_sum_to_the_gain_in_agreement(
    make_env: Callable, scored_by: Callable, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    env_id = f"{task}-VNCMitochondria-v0"
    scored_by(lambda mask: (int(mask.sum()) % 89 + 1) / 90)
    monkeypatch.setattr(agreement_module, "LARGEST", 1.0)  # masks of random weights are nearly everything
    settings = {"max_prompts": 4}
    env = make_env(env_id, reward="clip", **settings).unwrapped
    mixed = make_env(env_id, reward={"iou": 1.0, "clip": 0.5}, **settings).unwrapped
    for each in (env, mixed):
        each.reset(seed=3)
        each.action_space.seed(0)
    before = float(env.engine._agreed[0])
    assert (before == 0) == (task == "SamPromptSemantic")
    total = 0.0
    for _ in range(4):
        action = env.action_space.sample()
        iou = mixed.engine.info(0)["iou"]
        reward, other = env.step(action)[1], mixed.step(action)
        assert other[1] == pytest.approx(other[-1]["iou"] - iou + 0.5 * reward, abs=1e-12)
        total += reward
    assert total == pytest.approx(float(env.engine._agreed[0]) - before, abs=1e-12)
    assert total != 0


def test_one_call_of_the_scorer_a_step(make_vec: Callable[..., VectorEnv], scored_by: Callable) -> None:
    """About those that act and those that begin with a mask; target text against its rivals."""
    scorer = scored_by(lambda mask: 0.5)
    env = make_vec(3, "SamPrompt-WBC-v0", reward="clip", autoreset_mode="SameStep", max_prompts=2)
    env.reset(seed=0)
    for actions in ([1, STOP, 2], [3, 4, 5], [STOP] * 3):
        env.step(np.array(actions))
    counts = [len({id(image) for image in call[0]}) for call in scorer.calls]
    assert counts == [3, 3, 5, 3]  # reset; 2 act and 1 begins; 3 act and 2 begin; none acts and 3 begin
    assert {text for call in scorer.calls for text in call[2]} == {"white blood cell"}
    rivals = {others for call in scorer.calls for others in call[3]}
    assert rivals == {("red blood cell", "background of a blood smear")}


def test_nobody_is_asked_without_the_reward(make_env: Callable, scored_by: Callable, tiny_clip: str) -> None:
    scorer = scored_by(lambda mask: 0.5)
    for env_id in ("SamPromptSemantic-WBC-v0", "SamPrompt-WBC-v0"):
        env = make_env(env_id)
        env.reset(seed=0)
        env.step(100)
    assert not scorer.calls


def test_an_unknown_clip_is_named_when_the_environment_is_made(make_env: Callable[..., gymnasium.Env]) -> None:
    arguments: list[dict[str, Any]] = [{"env_id": "SamPromptSemantic-WBC-v0"}, {"env_id": "SamPrompt-WBC-v0"}]
    for each in arguments:
        with pytest.raises(RuntimeError, match="unknown CLIP model 'clip-mirco'"):
            make_env(**each, clip="clip-mirco", reward="clip")
