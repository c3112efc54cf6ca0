"""Views of regions: what is shown, what is not, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam_gym.semantics.views import VIEWS, region_views, whole_views

CLIP = SimpleNamespace(image_size=32, mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3))


def normalised(colour: tuple[int, int, int]) -> torch.Tensor:
    return (torch.tensor(colour) / 255 - torch.tensor(CLIP.mean)) / torch.tensor(CLIP.std)


def two_colours() -> tuple[np.ndarray, np.ndarray]:
    """A red square of 16 px in a green image, and its mask."""
    mask = np.zeros((64, 64), bool)
    mask[24:40, 20:36] = True
    return np.where(mask[..., None], np.uint8([200, 0, 0]), np.uint8([0, 200, 0])), mask


def test_background_is_mean_kept_or_blurred() -> None:
    image, mask = two_colours()
    views = {view: region_views([image], [mask], CLIP, view, margin=0.5)[0] for view in VIEWS}
    for view in VIEWS:  # the square is twice the object: it fills the middle half
        assert torch.allclose(views[view][:, 16, 16], normalised((200, 0, 0)), atol=0.02)
    assert torch.equal(views["masked"][:, :6].abs().sum(), torch.tensor(0.0))
    assert torch.allclose(views["cropped"][:, 2, 2], normalised((0, 200, 0)), atol=0.02)
    near_edge = views["blurred"][:, 16, 6]  # green, mixed with the red beside it
    red, green = normalised((200, 0, 0))[0], normalised((0, 200, 0))[0]
    assert green + 0.02 < near_edge[0] < red - 0.02
    assert not any(torch.equal(views[a], views[b]) for a, b in [VIEWS[:2], VIEWS[1:], VIEWS[::2]])


def test_masked_view_shows_nothing_outside_of_the_mask(regions) -> None:
    images, masks = regions
    white = [np.full_like(image, 255) for image in images]  # nowhere the mean colour
    outside = region_views(white, masks, CLIP) == 0
    assert 0.3 < outside.float().mean() < 0.9
    assert not region_views(images, masks, CLIP)[outside].any()
    assert region_views(images, masks, CLIP, "cropped")[outside].any()


def test_view_does_not_depend_on_what_is_outside_of_its_square(regions) -> None:
    images, masks = regions
    image, mask = images[4].copy(), masks[4]
    before = region_views([image], [mask], CLIP, "cropped")
    image[:14] = 0  # the ellipse spans rows 22 to 38
    image[46:] = 255
    assert torch.equal(region_views([image], [mask], CLIP, "cropped"), before)


def test_beyond_the_edge_is_the_mean_colour() -> None:
    image = np.full((40, 40, 3), 255, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[:20, :20] = True
    view = region_views([image], [mask], CLIP, "cropped", margin=0.5)[0]  # 40 px about (10, 10): a quarter is beyond
    assert torch.equal(view[:, :8, :], torch.zeros(3, 8, 32))
    assert torch.equal(view[:, :, :8], torch.zeros(3, 32, 8))
    assert torch.allclose(view[:, 8:, 8:], normalised((255, 255, 255))[:, None, None].expand(3, 24, 24), atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_sizes_may_be_mixed_and_neighbours_do_not_matter(regions, view: str) -> None:
    images, masks = regions
    together = region_views(images, masks, CLIP, view)
    assert (together.dtype, together.shape) == (torch.float32, (5, 3, 32, 32))
    for index in range(5):
        alone = region_views(images[index : index + 1], masks[index : index + 1], CLIP, view)
        assert torch.equal(alone[0], together[index])


def test_any_mask_has_a_view() -> None:
    image = np.full((30, 50, 3), 90, np.uint8)
    image.setflags(write=False)  # as those of data sets
    corner, line, everything = np.zeros((3, 30, 50), bool)
    corner[29, 49] = line[:, 7] = everything[:] = True
    views = region_views([image] * 3, [corner, line, everything], CLIP)
    assert torch.isfinite(views).all()
    assert (views.flatten(1).abs().amax(1) > 0).all()


def test_tiles_cover_the_image_once() -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    image[:32, 32:64] = 255  # tile 0, 1 of 4 x 4
    tiles = whole_views([image, 255 - image], CLIP, tiles=4)
    assert tiles.shape == (2, 4, 4, 3, 32, 32)
    white = normalised((255, 255, 255))[0]
    bright = torch.isclose(tiles[:, :, :, 0, 16, 16], white)
    assert bright[0].nonzero().tolist() == [[0, 1]]
    assert torch.equal(bright[1], ~bright[0])


def test_bad_input_is_named(regions) -> None:
    images, masks = regions
    for wrong, said in [
        ((images, masks[:-1]), "5 images and 4 masks"),
        (([], []), "at least one image"),
        ((images[:1], [masks[0].astype(np.uint8)]), "mask 0 must be bool .* got uint8"),
        ((images[:2], [masks[0], masks[2]]), r"mask 1 must be bool \(40, 40\) like its image, got bool \(64, 48\)"),
        ((images[:1], [np.zeros_like(masks[0])]), "mask 0 is empty"),
        (([images[0][..., 0]], masks[:1]), "image 0 must be uint8"),
        (([images[0] / 255], masks[:1]), "image 0 must be uint8 .* got float64"),
    ]:
        with pytest.raises(ValueError, match=said):
            region_views(*wrong, CLIP)
    with pytest.raises(ValueError, match="did you mean 'masked'"):
        region_views(images, masks, CLIP, "mask")
    with pytest.raises(ValueError, match="at least one tile"):
        whole_views(images, CLIP, 0)
