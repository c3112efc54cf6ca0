"""Copies of training images as another microscope might have taken them: nearer or farther, other light, blur, noise.

SAM sees each copy as an image of its own, so that its embedding differs too; symmetries, which cost nothing, are made
elsewhere. Everything follows from the images and a seed. Validation and test splits are never copied.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam_gym.data.mixture import MixedData
from sam_gym.data.segmentation import SegmentationData

ZOOM = (0.75, 1.3)
"""How large things become in a copy, against the whole image."""
GAMMA = (0.7, 1.4)
CONTRAST = (0.7, 1.3)
BRIGHTNESS = 0.08
COLOUR = 0.12
"""Gain of each colour; where the image is grey, of all alike."""
BLUR = 1.2
"""Largest standard deviation in px; every other copy has some."""
NOISE = 0.05
"""Largest standard deviation as a share of the range; every other copy has some."""

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


@lru_cache(maxsize=8)
def with_copies(data: SegmentationData, copies: int) -> SegmentationData:
    """Images of a split and so many altered copies of each; their ids end in "~1", "~2" ...

    Args:
        data: A training split.
        copies: Of each image.

    Returns:
        All images, the originals first. Objects that a copy cuts off are smaller in it, or missing.

    Raises:
        ValueError: The split is another one.
    """
    if isinstance(data, MixedData):
        return data.changed(lambda part: with_copies(part, copies))
    if data.split != "train":
        raise ValueError(f"copies={copies} are for training: split {data.split!r} of {data.name} is taken as it is")
    ids, images, labels = ([*column] for column in (data.image_ids, data._images, data._labels))
    for index, image_id in enumerate(data.image_ids):
        for copy in range(1, copies + 1):
            image, label = altered(data.image(index), data.labels(index), np.random.default_rng([index, copy]))
            ids.append(f"{image_id}~{copy}")
            images.append(image)
            labels.append(label)
    limits = {"min_area": data.min_area, "max_area": data.max_area}
    return SegmentationData(data.name, data.split, data.source, ids, images, labels, **limits)


def altered(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """One copy: zoomed, then seen in another light.

    Args:
        image: uint8 (H, W, 3).
        labels: int32 (H, W).
        rng: Draws what is altered, and how much.

    Returns:
        The same of another size: of fewer px where the copy is nearer, of more where it is farther; SAM enlarges either
        to the same square.
    """
    image, labels = _zoomed(image, labels, float(np.exp(rng.uniform(*np.log(ZOOM)))), rng)
    pixels = image.astype(np.float32) / 255
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    middle = pixels.mean()
    pixels = pixels ** rng.uniform(*GAMMA)
    pixels = (pixels - middle) * rng.uniform(*CONTRAST) + middle + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    pixels = pixels * (1 + rng.uniform(-COLOUR, COLOUR, 1 if grey else 3)).astype(np.float32)
    if rng.random() < 0.5:
        sigma = rng.uniform(0, BLUR)
        pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0))
    if rng.random() < 0.5:
        shape = (*pixels.shape[:2], 1) if grey else pixels.shape
        pixels = pixels + rng.normal(0, rng.uniform(0, NOISE), shape)
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8), labels


def _zoomed(image: Image, labels: Labels, zoom: float, rng: np.random.Generator) -> tuple[Image, Labels]:
    """A part of the image; or the image and its mirror images around it, in which nothing is labelled."""
    sizes = [max(8, round(side / zoom)) for side in labels.shape]
    if zoom > 1:
        starts = [int(rng.integers(side - size + 1)) for side, size in zip(labels.shape, sizes, strict=True)]
        part = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        return image[part], labels[part]
    margins = []
    for side, size in zip(labels.shape, sizes, strict=True):
        before = int(rng.integers(size - side + 1))
        margins.append((before, size - side - before))
    return np.pad(image, (*margins, (0, 0)), mode="symmetric"), np.pad(labels, margins)
