"""Proposals: parts of the right shade, masks of SAM that look like the text, and nothing where nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sam_gym.sam.backend import SamBackend
from sam_gym.semantics import get_scorer
from sam_gym.semantics.proposals import MAPPED, ProposalSettings, Proposer, automatic_masks, match

BOXES = np.array([[10, 12, 40, 30], [60, 40, 90, 75]], np.float32)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """Two dark rectangles on a bright ground."""
    picture = np.full((100, 120, 3), 220, np.uint8)
    for x0, y0, x1, y1 in BOXES.astype(int):
        picture[y0:y1, x0:x1] = (70, 20, 120)
    return picture


class Likes:
    """A scorer for which a region is the likelier to be the text, the further left it lies."""

    def score(self, images: Any, masks: Any, targets: Any, distractors: Any) -> NDArray[np.float64]:
        assert len(images) == len(masks) == len(targets) == len(distractors)
        return np.array([1 - np.nonzero(mask)[1].mean() / mask.shape[1] for mask in masks])


LIKES: Any = Likes()


def test_the_rarer_shade_is_proposed(image: NDArray[np.uint8]) -> None:
    for picture in (image, 255 - image):
        found = Proposer("", settings=ProposalSettings("otsu"))(picture)
        assert len(found) == 2
        assert match(found, BOXES).min() > 0.8
        for one in found:
            x, y = one.point
            assert any(x0 < x < x1 and y0 < y < y1 for x0, y0, x1, y1 in BOXES)


def test_the_text_chooses_among_shades(image: NDArray[np.uint8]) -> None:
    found = Proposer("nucleus", LIKES, settings=ProposalSettings("shades", confidence=0.6))(image)
    assert (match(found, BOXES) > 0.8).tolist() == [True, False]
    both = Proposer("nucleus", LIKES, settings=ProposalSettings("shades", confidence=0.1))(image)
    assert both[0].confidence >= both[-1].confidence
    assert match(both, BOXES).min() > 0.8


@pytest.mark.parametrize("way", MAPPED)
def test_a_map_of_a_real_clip_gives_boxes_inside_the_image(image: NDArray[np.uint8], way: str) -> None:
    proposer = Proposer("nucleus", get_scorer("clip-micro", "cpu"), settings=ProposalSettings(way))
    heat = proposer.heat(image)
    assert heat.shape == image.shape[:2]
    assert 0 <= heat.min() < heat.max() <= 1
    for one in proposer(image):
        assert (one.box[:2] >= 0).all()
        assert (one.box[2:] <= (120, 100)).all()
        assert 0 <= one.confidence <= 1


def test_the_whole_image_and_nothing(image: NDArray[np.uint8]) -> None:
    assert Proposer("", settings=ProposalSettings("whole"))(image)[0].box.tolist() == [0, 0, 120, 100]
    flat = np.full((50, 50, 3), 9, np.uint8)
    assert Proposer("", settings=ProposalSettings("otsu"))(flat) == []
    assert match([], BOXES).tolist() == [0, 0]


@pytest.mark.weights
def test_sam_finds_what_stands_out(image: NDArray[np.uint8]) -> None:
    backend = SamBackend("mobile_sam", "cpu")
    settings = ProposalSettings("sam", points=6, confidence=0.1)
    assert len(automatic_masks(backend, image, settings)) >= 2
    assert match(Proposer("nucleus", LIKES, backend, settings)(image), BOXES).min() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nucleus",), "needs a text and what compares"),
        ((" ", LIKES), "needs a text"),
        (("nucleus", LIKES, None, ProposalSettings("sam")), "needs a backend"),
    ],
)
def test_what_is_missing_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Proposer(*arguments)
    with pytest.raises(ValueError, match="did you mean 'shades'"):
        ProposalSettings("shade")
