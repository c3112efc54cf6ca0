"""Regions: what is drawn is what its text says, and everything follows from the seed."""

import numpy as np
import pytest

from sam_gym.semantics.captions import CLASSES, EDGE
from sam_gym.semantics.regions import (
    MIN_PIXELS,
    RegionSource,
    Scene,
    displaced,
    nuclei_scenes,
    ring,
    section_scene,
    smear_scene,
)


@pytest.fixture(scope="module")
def source(disks):
    scenes = [section_scene(np.random.default_rng(seed)) for seed in (0, 1)]
    scenes += [smear_scene(np.random.default_rng(seed)) for seed in range(6)]
    return RegionSource([*scenes, *nuclei_scenes(disks)])


def marked(text: str) -> Scene:
    """A scene whose pixels are bright where the class is (for background: where objects are)."""
    y, x = np.mgrid[:120, :120]
    labels = np.where((y % 40 < 14) & (x % 40 < 14), 1 + y // 40 * 3 + x // 40, 0)
    image = np.repeat(np.where(labels > 0, 200, 60).astype(np.uint8)[:, :, None], 3, axis=2)
    return Scene(image, {text: labels})


def test_every_class_can_be_drawn(source):
    assert set(source.texts) == set(CLASSES)
    for text in CLASSES:
        for seed in range(4):
            region = source.draw(text, np.random.default_rng(seed))
            assert region.text == text
            assert region.image.dtype == np.uint8
            assert region.image.shape == (*region.mask.shape, 3)
            assert region.mask.dtype == np.bool_
            assert region.mask.sum() >= MIN_PIXELS
            assert max(region.mask.shape) <= 256


def test_the_seed_decides(source):
    for text in CLASSES:
        one, again, other = (source.draw(text, np.random.default_rng(seed)) for seed in (5, 5, 6))
        assert np.array_equal(one.image, again.image)
        assert np.array_equal(one.mask, again.mask)
        assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("text", ["mitochondrion", "membrane", "cell interior", "white blood cell", "nucleus"])
def test_masks_lie_on_their_class(text):
    source = RegionSource([marked(text)])
    for seed in range(20):
        region = source.draw(text, np.random.default_rng(seed))
        bright = region.image[:, :, 0] > (int(region.image.min()) + int(region.image.max())) / 2
        assert bright[region.mask].mean() > 0.6  # outlines may be off by a little


@pytest.mark.parametrize("text", ["background", "background of a blood smear"])
def test_background_lies_elsewhere(text):
    source = RegionSource([marked(text)])
    for seed in range(20):
        region = source.draw(text, np.random.default_rng(seed))
        bright = region.image[:, :, 0] > (int(region.image.min()) + int(region.image.max())) / 2
        assert bright[region.mask].mean() < 0.2


def test_edges_lie_on_both_sides():
    source = RegionSource([marked(EDGE)])
    for seed in range(20):
        region = source.draw(EDGE, np.random.default_rng(seed))
        bright = region.image[:, :, 0] > (int(region.image.min()) + int(region.image.max())) / 2
        assert 0.1 < bright[region.mask].mean() < 0.9


def test_classes_that_are_nowhere():
    scene = Scene(np.zeros((64, 64, 3), np.uint8), {"nucleus": np.zeros((64, 64), np.int32)})
    assert RegionSource([scene]).texts == ()
    speck = np.zeros((64, 64), np.int32)
    speck[3:5, 3:5] = 1
    with pytest.raises(RuntimeError, match="no region of 'nucleus' with at least 24 px"):
        RegionSource([Scene(scene.image, {"nucleus": speck})]).draw("nucleus", np.random.default_rng(0))


def test_displaced_keeps_the_shape_and_avoids_objects():
    mask = np.zeros((60, 60), np.bool_)
    mask[5:15, 5:12] = True
    forbidden = np.zeros_like(mask)
    forbidden[:, :30] = True
    moved = displaced(mask, forbidden, np.random.default_rng(0))
    assert moved is not None
    assert not (moved & forbidden).any()
    assert 35 <= moved.sum() <= 70
    assert displaced(mask, np.ones_like(mask), np.random.default_rng(0)) is None


def test_ring_by_hand():
    mask = np.zeros((20, 20), np.bool_)
    mask[5:15, 5:15] = True
    band = ring(mask, 0.1)  # a pixel inside and one outside
    assert band.sum() == (10 * 10 - 8 * 8) + 4 * 10
    assert band[4, 10]
    assert band[5, 10]
    assert not band[6, 10]
