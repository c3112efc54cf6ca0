"""Zero-shot accuracy: how it is counted, which regions are asked about, and what the shipped clip-micro reaches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sam_gym._utils.fetching import sha256_of
from sam_gym.semantics.models import MICRO_FOLDER, untrained_micro
from sam_gym.semantics.regions import Region
from sam_gym.semantics.scorer import RegionScorer, get_scorer
from sam_gym.semantics.zero_shot import TASKS, ZeroShotResult, classify, task_regions

FLOORS = {"WBC": 0.9, "DSB with edges": 0.8, "VNC": 0.7}
"""Accuracy on validation regions that new weights must not fall below."""
CARD = Path(__file__).resolve().parents[2] / "docs" / "clip-micro.md"


def task(name):
    return next(task for task in TASKS if task.name == name)


def test_accuracy_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    result = ZeroShotResult(("a", "b"), np.array([0, 0, 1, 1]), probabilities)
    assert result.right.tolist() == [True, True, False, True]
    assert result.by_class == {"a": 1.0, "b": 0.5}
    assert result.accuracy == 0.75
    assert result.chance == 0.5
    uneven = ZeroShotResult(("a", "b"), np.array([0, 1, 1, 1]), probabilities)
    assert uneven.accuracy == pytest.approx((1 + 1 / 3) / 2)  # 1 of 1 "a", 1 of 3 "b"; classes count the same


def test_an_untrained_model_gives_probabilities():
    image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.bool_)
    mask[5:20, 5:20] = True
    regions = [Region(image, mask, "nucleus"), Region(image, ~mask, "background")]
    with torch.random.fork_rng():
        clip = untrained_micro()
    clip.model.eval()
    result = classify(RegionScorer(clip), regions, ("nucleus", "background"))
    assert result.probabilities.shape == (2, 2)
    assert np.allclose(result.probabilities.sum(axis=1), 1)
    with pytest.raises(ValueError, match="no regions of 'membrane'"):
        classify(RegionScorer(clip), regions, ("nucleus", "background", "membrane"))


@pytest.mark.parametrize("name", ["WBC", "DSB with edges", "VNC"])
def test_regions_are_fixed_and_of_the_tasks_classes(name, real_folder):
    regions, again = task_regions(task(name), "val"), task_regions(task(name), "val")
    assert {region.text for region in regions} == set(task(name).texts)
    assert len(regions) == len(again)
    for one, other in zip(regions, again, strict=True):
        assert one.text == other.text
        assert np.array_equal(one.mask, other.mask)


def test_the_shipped_model_tells_real_regions_apart(real_folder):
    for name, least in FLOORS.items():
        result = classify(get_scorer(device="cpu"), task_regions(task(name), "val"), task(name).texts)
        assert result.accuracy > least, f"{name}: {result.by_class}"


def test_the_shipped_weights_are_those_of_the_model_card():
    weights = MICRO_FOLDER / "weights.safetensors"
    assert weights.stat().st_size <= 10e6
    assert sha256_of(weights) in CARD.read_text(encoding="utf-8")
