"""SamProofread: wrong masks are wrong in the way they say, the same for everybody, and what SAM is given first."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from sam_gym._utils.boxes import tight_box
from sam_gym.data import SegmentationData, load_data
from sam_gym.envs import SamProofreadEnv, SamProofreadVectorEnv
from sam_gym.envs.posing import Pose
from sam_gym.envs.proofread import ERRORS, wrong_mask
from sam_gym.evaluation import evaluate
from sam_gym.prompters import box_only, oracle_clicks

ID = "SamProofread-Synthetic-v0"


def make(n: int = 1, **settings: Any) -> SamProofreadVectorEnv:
    return gymnasium.make_vec(
        ID, num_envs=n, split="val", autoreset_mode="Disabled",
        **{"checkpoint": "tiny_random", "device": "cpu", **settings},
    )  # type: ignore[return-value]  # fmt: skip


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("error", ERRORS)
def test_wrong_masks_are_wrong_as_their_names_say(error: str) -> None:
    data, rng, ious = load_data("synthetic-em", "val"), np.random.default_rng(0), []
    for row in range(0, len(data.objects), 9):
        image, object_id = int(data.objects.image_index[row]), int(data.objects.object_id[row])
        truth = data.mask(image, object_id)
        wrong = wrong_mask(data.labels(image), object_id, error, rng)
        assert wrong.any()
        if error in ("grown", "merged"):
            assert (wrong | truth == wrong).mean() > 0.999
        if error in ("shrunk", "cut"):
            assert not (wrong & ~truth).any()
        ious.append(iou(wrong, truth))
    assert 0.3 < np.mean(ious) < 0.85
    assert np.max(ious) < 1


@pytest.mark.parametrize("attention", ["full", "foveated"])
@pytest.mark.parametrize("error", [*ERRORS, "box"])
def test_an_episode_begins_with_its_wrong_mask(attention: str, error: str) -> None:
    env = make(4, mask_error=error, attention=attention)
    observations, infos = env.reset(seed=1)
    for row in range(4):
        labels = env.engine.data.labels(int(env.episodes.image[row]))
        shown, truth = env.mask(row), labels == env.episodes.object_id[row]
        assert infos["iou"][row] == pytest.approx(iou(shown, truth), abs=1e-6)
        assert env.episodes.decoded[row]
        if error != "box":
            assert observations["state"][row, 1] == 0  # SAM has not been asked
            np.testing.assert_allclose(
                env.episodes.cue[row], tight_box(shown), atol=5
            )  # the tiny SAM draws in pixels of 4 px
    again, _ = make(4, mask_error=error, attention=attention).reset(seed=1)
    np.testing.assert_array_equal(observations["maps"], again["maps"])


def test_sam_is_given_the_mask_and_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    env, sent = make(2, mask_error="cut"), []
    decode = env.engine.backend.decode

    def recording(embeddings: Any, prompts: Any, **more: Any) -> Any:
        sent.append(prompts)
        return decode(embeddings, prompts, **more)

    monkeypatch.setattr(env.engine.backend, "decode", recording)
    env.reset(seed=0)
    assert sent == []
    first = np.stack([env.engine.present(row)[1] for row in range(2)])
    env.step(np.array([40, 300]))
    np.testing.assert_array_equal(sent[0].boxes, env.episodes.cue)
    np.testing.assert_array_equal(sent[0].mask_logits, first)
    assert sent[0].has_mask.all()


def test_a_given_mask_comes_back_at_full_size_and_is_all_that_an_agent_sees() -> None:
    """Also where nobody knows the truth: what is observed follows from the mask that was given."""
    data = load_data("synthetic-em", "val")
    mask = wrong_mask(data.labels(0), int(data.objects.object_id[2]), "shifted", np.random.default_rng(3))
    every = range(len(data.image_ids))
    images, labels = [data.image(i) for i in every], [np.roll(data.labels(i), 31) for i in every]
    other = SegmentationData("other", "val", "other", data.image_ids, images, labels)
    seen = []
    for known in (data, other):
        env = gymnasium.make(ID, checkpoint="tiny_random", device="cpu", images=known).unwrapped
        assert isinstance(env, SamProofreadEnv)
        observation, _ = env.reset(options={"image": 0, "object": int(data.objects.object_id[2]), "mask": mask})
        assert iou(env.engine.mask(0), mask) > 0.97
        seen.append((observation, env.step(70)[0]))
    for one, two in zip(*seen, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, two[name])


@pytest.mark.parametrize("mask", [np.zeros((256, 256), bool), np.ones((4, 4), bool), 3, np.full((256, 256), 7)])
def test_masks_that_are_none(mask: Any) -> None:
    env = make().engine
    with pytest.raises(ValueError, match=r"reset option 'mask' must be 256 x 256 of 0 and 1"):
        env.pose(np.random.default_rng(0), {"image": 0, "mask": mask})


def test_posed_alike_errors_are_alike_and_unknown_ones_are_named() -> None:
    env = make()
    objects = env.engine.data.objects
    image, object_id = int(objects.image_index[4]), int(objects.object_id[4])
    options = {"image": image, "object": object_id, "cue": objects.box[4].tolist()}
    poses: list[Pose] = [env.engine.pose(np.random.default_rng(seed), options) for seed in (0, 1)]
    np.testing.assert_array_equal(poses[0].mask, poses[1].mask)
    with pytest.raises(ValueError, match="did you mean 'shifted'"):
        make(mask_error="shiftd")


@pytest.mark.weights
def test_clicks_put_wrong_masks_right() -> None:
    env = make(8, checkpoint="mobile_sam", attention="foveated")
    before, after = (evaluate(prompter, env, max_objects=24, progress=False) for prompter in (box_only, oracle_clicks))
    assert before.gain.mean == 0
    assert after.gain.mean > 0.05
