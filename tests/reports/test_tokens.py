"""What a writer sees: pooled features, small masks, marks in the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from sam_gym.reports.tokens import (
    CELLS,
    MASK_SIZE,
    ImageTokens,
    RegionTokens,
    draw_marks,
    image_features,
    region_features,
    region_maps,
)
from sam_gym.sam.backend import ImageEmbedding


def embedding_of(height: int, width: int) -> ImageEmbedding:
    """16 x 16 features that are the row and the column of the image they stand for, in pixels; the rest is padding."""
    longest = max(height, width)
    step = longest / 16
    features = torch.full((2, 16, 16), -1e6)
    rows, columns = round(16 * height / longest), round(16 * width / longest)
    features[0, :rows, :columns] = (torch.arange(rows)[:, None] + 0.5) * step
    features[1, :rows, :columns] = (torch.arange(columns) + 0.5) * step
    return ImageEmbedding("key", features, (height, width), (64 * height // longest, 64 * width // longest))


@pytest.mark.parametrize(("height", "width"), [(96, 96), (48, 96), (96, 24)])
def test_features_are_means_under_the_masks_and_of_cells(height: int, width: int) -> None:
    masks = np.zeros((3, height, width), np.bool_)
    masks[0, : height // 2, : width // 2] = True
    masks[1, :] = True
    masks[2, height // 2 :, : width // 4] = True
    found = region_features(embedding_of(height, width), masks)
    centres = [ndimage.center_of_mass(mask) for mask in masks]
    np.testing.assert_allclose(found.numpy(), np.array(centres) + 0.5, atol=1e-3)
    pooled = image_features(embedding_of(height, width))
    assert pooled.shape == (2, CELLS, CELLS)
    np.testing.assert_allclose(pooled.mean(dim=(1, 2)).numpy(), (height / 2, width / 2), rtol=1e-5)
    assert region_features(embedding_of(height, width), masks[:0]).shape == (0, 2)


def test_maps_are_masks_at_a_small_size() -> None:
    mask = np.zeros((1, 4 * MASK_SIZE, 2 * MASK_SIZE), np.bool_)
    mask[0, 4:8, 2:3] = True
    maps = region_maps(mask)
    assert maps.shape == (1, MASK_SIZE, MASK_SIZE)
    assert maps[0, 1, 1] == 0.5
    assert maps.sum() == 0.5
    assert region_maps(mask[:0]).shape == (0, MASK_SIZE, MASK_SIZE)


def test_marks_are_outlines_and_numbers_at_the_deepest_pixel() -> None:
    image = np.full((120, 120, 3), 90, np.uint8)
    masks = [np.zeros((120, 120), np.bool_) for _ in range(3)]
    masks[0][10:50, 10:50], masks[2][70:110, 70:110] = True, True
    drawn = draw_marks(image, masks)
    assert (image == 90).all()  # another array
    outside = ~(masks[0] | masks[2])
    assert (drawn[outside] == 90).all()
    for mask in (masks[0], masks[2]):
        rim = mask & ~ndimage.binary_erosion(mask)
        assert len(np.unique(drawn[rim], axis=0)) == 1  # one colour
        y, x = (int(round(v)) for v in ndimage.center_of_mass(mask))
        assert (drawn[y - 5 : y + 6, x - 5 : x + 6] > 200).all(axis=2).any()  # the white of a number
    assert len(np.unique(drawn[masks[0] & ~ndimage.binary_erosion(masks[0])], axis=0)) == 1
    assert (drawn[10, 10] != drawn[70, 70]).any()
    np.testing.assert_array_equal(draw_marks(image, [masks[1]]), image)


def test_tokens_go_region_by_region() -> None:
    torch.manual_seed(0)
    features, maps = torch.rand(2, 3, 5), torch.rand(2, 3, MASK_SIZE, MASK_SIZE)
    both, alone = RegionTokens(5, 7), RegionTokens(5, 7, spatial=False)
    assert (both(features, maps).shape, alone(features, maps).shape) == ((2, 6, 7), (2, 3, 7))
    other = features.clone()
    other[:, 1] += torch.rand(5)
    changed = (both(other, maps) != both(features, maps)).any(dim=2).any(dim=0)
    assert changed.tolist() == [False, False, True, False, False, False]
    moved = maps.clone()
    moved[:, 2] = 1 - moved[:, 2]
    changed = (both(features, moved) != both(features, maps)).any(dim=2).any(dim=0)
    assert changed.tolist() == [False] * 5 + [True]
    assert ImageTokens(5, 7)(torch.rand(2, 5, 4, 4)).shape == (2, 16, 7)
