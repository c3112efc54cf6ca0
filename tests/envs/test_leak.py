"""The agent never sees the ground truth: change it, and only rewards and infos change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from sam_gym.data import SegmentationData, load_data
from sam_gym.data.whole_class import whole_class
from sam_gym.data.windows import windows_of
from sam_gym.envs import agreement, engine
from sam_gym.envs.base import EngineEnv
from sam_gym.sam import PromptBatch

Labels = NDArray[np.int32]

JUDGED = ("iou", "dice", "f1", "grounded_f1")
"""What an info has by the truth."""

MODES = [
    ("SamPrompt-ISBI-v0", "grid"),
    ("SamPrompt-ISBI-v0", "point"),
    ("SamPrompt-ISBI-v0", "box"),
    ("SamBoxRefine-ISBI-v0", "continuous"),
    ("SamBoxRefine-ISBI-v0", "discrete"),
    ("SamPrefer-ISBI-v0", "choice"),
    ("SamPromptSemantic-VNCMitochondria-v0", "grid"),
    ("SamReport-VNCMitochondria-v0", "regions"),
]
"""Every task in every action mode."""


def eroded(labels: Labels) -> Labels:
    """Every object loses its rim, so that no tight box stays the same."""
    return labels * ndimage.binary_erosion(labels > 0, iterations=3)


def shifted(labels: Labels) -> Labels:
    return np.roll(labels, (37, -53), axis=(0, 1))


def permuted(labels: Labels) -> Labels:
    """Every object is another one, mostly far away."""
    ids = np.unique(labels)[1:]
    table = np.zeros(labels.max() + 1, labels.dtype)
    table[ids] = np.roll(ids, 7)
    return table[labels]


def spy_on(env: EngineEnv, monkeypatch: pytest.MonkeyPatch) -> list[PromptBatch]:
    """What is sent to the backend from now on."""
    sent: list[PromptBatch] = []
    backend = env.engine.backend
    decode = type(backend).decode

    def recording(embeddings: Any, prompts: PromptBatch, **kwargs: Any) -> Any:
        sent.append(prompts)
        return decode(backend, embeddings, prompts, **kwargs)

    monkeypatch.setattr(backend, "decode", recording)
    return sent


@pytest.fixture
def environment(tiny: dict[str, Any], tiny_clip: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineEnv]:
    """An environment over given data."""

    def make(env_id: str, data: SegmentationData, **settings: Any) -> EngineEnv:
        monkeypatch.setattr(engine, "load_data", lambda *_: data)
        monkeypatch.setattr(engine, "load_whole_class", lambda *_: whole_class(data))
        monkeypatch.setattr(engine, "load_windows", lambda *_: windows_of(data, None, 10**6, 1))
        return gymnasium.make(env_id, **{**tiny, "clip": tiny_clip, **settings}).unwrapped

    return make


def as_bytes(prompts: PromptBatch) -> list:
    arrays = [prompts.points, prompts.labels, prompts.boxes, prompts.has_mask]
    if prompts.mask_logits is not None:  # nobody was given one
        arrays.append(prompts.mask_logits.numpy())
    return [array.tobytes() for array in arrays]


def assert_equal_worlds_and_other_rewards(
    a: EngineEnv,
    b: EngineEnv,
    reset: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    same: Callable,
    equal_rewards: bool = False,
) -> None:
    """Play equal actions in both, and compare all that an agent or SAM is told."""
    sent = [spy_on(a, monkeypatch)]
    assert a.engine.backend is b.engine.backend
    said = []
    for env in (a, b):
        begin = len(sent[0])
        env.action_space.seed(4)
        replies = [env.reset(**reset)]
        masks = []
        while True:
            if isinstance(env.action_space, gymnasium.spaces.Discrete):
                masks.append(env.action_masks())
                allowed = masks[-1].astype(np.int8)
                if (stop := env.engine.actions.stop) is not None:
                    allowed[stop] = 0
                action = env.action_space.sample(mask=allowed)
            else:
                action = env.action_space.sample()
                action[-1] = -1  # do not stop
            replies.append(env.step(action))
            if replies[-1][2]:
                break
        prompts = [as_bytes(batch) for batch in sent[0][begin:]]
        said.append(
            {
                "observations": [reply[0] for reply in replies],
                "ends": [reply[2:4] for reply in replies[1:]],
                "masks": masks,
                "prompts": prompts,
                "rewards": [reply[1] for reply in replies[1:]],
                "quality": [reply[-1]["iou"] for reply in replies],
                "seen": [{k: v for k, v in reply[-1].items() if k not in JUDGED} for reply in replies],
            }
        )
    for key in ("observations", "ends", "masks", "prompts", "seen"):
        same(said[0][key], said[1][key])
    assert len(said[0]["prompts"]) == len(said[0]["rewards"]) + a.settings.has_cue
    assert (said[0]["rewards"] == said[1]["rewards"]) == equal_rewards
    assert said[0]["quality"] != said[1]["quality"]


@pytest.mark.parametrize(("env_id", "action_mode"), MODES)
@pytest.mark.parametrize("change", [eroded, shifted, permuted])
def test_another_truth_is_another_reward_and_nothing_else(
    tiny: dict[str, Any],
    environment: Callable[..., EngineEnv],
    same: Callable[[Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Labels], Labels],
    env_id: str,
    action_mode: str,
) -> None:
    """Sections with their own and wrong labels; the cue is posed, since it is all that may depend on the truth."""
    real = load_data("isbi2012", "val", tiny["data"])
    images = [real.image(name) for name in real.image_ids]
    labels = [real.labels(name) for name in real.image_ids]
    wrong = SegmentationData(
        real.name, real.split, real.source, real.image_ids, images, [change(each) for each in labels], min_area=1
    )
    settings = {"action_mode": action_mode, "reward": {"iou": 1.0, "dice": 0.5}}
    a, b = environment(env_id, real, **settings), environment(env_id, wrong, **settings)
    table = real.objects
    row = int(np.argsort(table.area)[len(table) // 2])
    pose = {"image": int(table.image_index[row]), "object": int(table.object_id[row]), "cue": table.box[row]}
    assert (real.mask(pose["image"], pose["object"]) != wrong.mask(pose["image"], pose["object"])).any()
    if not a.settings.has_cue:
        if change is permuted:
            return  # together the objects are what they were
        pose = {"image": pose["image"]}
    assert_equal_worlds_and_other_rewards(a, b, {"seed": 8, "options": pose}, monkeypatch, same)


@pytest.mark.parametrize(("env_id", "action_mode"), MODES)
def test_equal_boxes_are_equal_episodes(
    environment: Callable[..., EngineEnv],
    same: Callable[[Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
    env_id: str,
    action_mode: str,
) -> None:
    """Nothing posed: two objects of equal tight boxes, one full and one thin, begin and go on alike."""
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    full, thin = np.zeros((80, 120), np.int32), np.zeros((80, 120), np.int32)
    full[20:60, 30:90] = 1
    thin[20:60, 30] = thin[59, 30:90] = 1
    a, b = (
        environment(
            env_id,
            SegmentationData("isbi2012", "val", "isbi2012", ["one"], [image], [labels], min_area=1),
            action_mode=action_mode,
            min_area=1,
        )
        for labels in (full, thin)
    )
    assert_equal_worlds_and_other_rewards(a, b, {"seed": 3}, monkeypatch, same)


@pytest.mark.parametrize("env_id", ["SamPrompt-ISBI-v0", "SamPromptSemantic-VNCMitochondria-v0"])
def test_the_clip_reward_knows_no_truth(
    environment: Callable[..., EngineEnv],
    same: Callable[[Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
    env_id: str,
) -> None:
    """Whatever the truth is, an agent that is rewarded by agreement gets the same of it."""
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (80, 120, 3), dtype=np.uint8), np.zeros((2, 80, 120), np.int32)
    labels[0, 20:60, 30:90] = 1
    labels[1, :15, 70:] = 1
    a, b = (
        environment(
            env_id,
            SegmentationData("isbi2012", "val", "isbi2012", ["one"], [image], [each], min_area=1),
            reward="clip",
            max_prompts=4,
        )
        for each in labels
    )
    pose = {"image": 0} if not a.settings.has_cue else {"image": 0, "object": 1, "cue": (20, 10, 100, 70)}
    monkeypatch.setattr(agreement, "_scorer", _Scorer)
    monkeypatch.setattr(agreement, "LARGEST", 1.0)  # masks of random weights are nearly everything
    assert_equal_worlds_and_other_rewards(a, b, {"options": pose}, monkeypatch, same, equal_rewards=True)
    assert a.engine._agreed[0] > 0


class _Scorer:
    """Another number for every region; the CLIP of random weights says nearly 0 or 1 of all."""

    def __init__(self, clip: str, device: str) -> None:
        pass

    def score(self, images: Any, masks: list[NDArray[np.bool_]], *_: Any) -> NDArray[np.float64]:
        return np.array([(int(mask.sum()) % 89 + 1) / 90 for mask in masks])
