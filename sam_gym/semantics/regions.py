"""Captioned regions that clip-micro learns from: (image, mask, class text), drawn from a seed.

Three kinds of scene: generated electron-microscopy-like sections, generated blood smears, and the training images of
DSB 2018 (CC0). No pixel of ISBI, VNC or WBC is among them, whose terms would reach the weights. How a region becomes an
image for CLIP is the business of `views`, and what it is called that of `captions`.

A score will be asked about masks that an agent made, so regions are not only clean objects: outlines are roughened, all
objects of a class in sight may be one region, background has the shapes of objects, and whole windows that hold little
of anything count as what most of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sam_gym.data import SegmentationData
from sam_gym.data.smears import CYTOPLASM, NUCLEUS, RED_CELL, generate_smear
from sam_gym.data.synthetic import generate, smooth_noise
from sam_gym.semantics.captions import EDGE

MIN_PIXELS = 24
"""Smaller regions are not drawn: at the size that clip-micro sees they are a smudge."""
MIN_WINDOW, MAX_WINDOW = 32, 256  # px; what lies farther from a region is cut away
HARDLY_ANY = 0.2
"""A whole window with a smaller share of objects is called what the rest of it is."""
_TRIES = 200

Bools = NDArray[np.bool_]
Labels = NDArray[np.integer]
Rng = np.random.Generator
Window = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Region:
    """A region of an image, and what it is.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        mask: bool (H, W), at least `MIN_PIXELS` of it True.
        text: One of `captions.CLASSES`.
    """

    image: NDArray[np.uint8]
    mask: Bools
    text: str


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and where its classes are: text -> integer labels (H, W), 0 = not there, else an object's id.

    For a class of background the labels are those of what is *not* it.
    """

    image: NDArray[np.uint8]
    labels: Mapping[str, Labels]


def section_scene(rng: Rng) -> Scene:
    """A generated section."""
    section = generate(rng)
    inside = np.where(section.mitochondria > 0, 0, section.cells)
    labels = {"mitochondrion": section.mitochondria, "membrane": section.cells == 0, "cell interior": inside}
    return Scene(section.image, {text: array.astype(np.int16) for text, array in labels.items()})


def smear_scene(rng: Rng) -> Scene:
    """A generated smear."""
    smear = generate_smear(rng)
    cells, classes = smear.cells, smear.classes
    white = np.where(np.isin(classes, (CYTOPLASM, NUCLEUS)), cells, 0)
    labels = {
        "white blood cell": white,
        "red blood cell": np.where(classes == RED_CELL, cells, 0),
        "nucleus of a white blood cell": np.where(classes == NUCLEUS, cells, 0),
        "cytoplasm of a white blood cell": np.where(classes == CYTOPLASM, cells, 0),
        # Red cells are part of the background of white ones, but half of the smears show it without any.
        "background of a blood smear": white if rng.random() < 0.5 else cells,
    }
    return Scene(smear.image, {text: array.astype(np.int16) for text, array in labels.items()})


def nuclei_scenes(data: SegmentationData) -> list[Scene]:
    """Images whose objects are nuclei."""
    scenes = []
    for index in range(len(data.image_ids)):
        nuclei = data.labels(index)
        scenes.append(Scene(data.image(index), dict.fromkeys(("nucleus", EDGE, "background"), nuclei)))
    return scenes


@dataclass(frozen=True, eq=False)
class _Found:
    """One class in one scene, and the bounding boxes of its objects."""

    image: NDArray[np.uint8]
    labels: Labels
    boxes: list[Window]


class RegionSource:
    """Draws regions of every class out of its scenes.

    Args:
        scenes: Of any kinds, in any order.

    Attributes:
        texts: The classes that it has scenes for, in order of their first scene.
    """

    def __init__(self, scenes: list[Scene]) -> None:
        self._found: dict[str, list[_Found]] = {}
        for scene in scenes:
            for text, labels in scene.labels.items():
                if boxes := [(box[0], box[1]) for box in ndimage.find_objects(labels) if box is not None]:
                    self._found.setdefault(text, []).append(_Found(scene.image, labels, boxes))
        self.texts = tuple(self._found)

    def draw(self, text: str, rng: Rng) -> Region:
        """A region of this class, turned and mirrored at random, in light of random strength and colour.

        Raises:
            KeyError: No scene has the class.
            RuntimeError: None of very many tries gave a region of `MIN_PIXELS`.
        """
        found = self._found[text]
        look, shape = _SHAPES.get(text, (_window_on_object, _object))
        for _ in range(_TRIES):
            where = found[int(rng.integers(len(found)))]
            window = look(where, rng)
            mask = shape(where.labels[window], rng)
            if mask is None or int(mask.sum()) < MIN_PIXELS:
                continue
            turn = int(rng.integers(8))
            return Region(_relight(_turn(where.image[window], turn), rng), _turn(mask, turn), text)
        raise RuntimeError(f"no region of {text!r} with at least {MIN_PIXELS} px in {_TRIES} tries")


# ------------------------------------------------------------------------------------------------ shapes of regions


def _window_on_object(found: _Found, rng: Rng) -> Window:
    """A window around an object, from tightly to five times its extent."""
    rows, cols = found.boxes[int(rng.integers(len(found.boxes)))]
    extent = max(rows.stop - rows.start, cols.stop - cols.start)
    side = int(np.clip(extent * rng.uniform(1.1, 5.0) + 4, MIN_WINDOW, MAX_WINDOW))
    return _window(found.labels.shape, (rows.start + rows.stop) // 2, (cols.start + cols.stop) // 2, side, rng)


def _window_on_pixel(found: _Found, rng: Rng) -> Window:
    """A window of any size around a pixel of a class, for nets that fill the image."""
    y, x = divmod(int(rng.choice(np.flatnonzero(found.labels))), found.labels.shape[1])
    return _window(found.labels.shape, y, x, int(rng.uniform(MIN_WINDOW, 0.75 * MAX_WINDOW)), rng)


def _window(shape: tuple[int, ...], y: int, x: int, side: int, rng: Rng) -> Window:
    slices = []
    for centre, length in ((y, shape[0]), (x, shape[1])):
        start = int(np.clip(centre - side * rng.uniform(0.35, 0.65), 0, max(0, length - side)))
        slices.append(slice(start, min(length, start + side)))
    return slices[0], slices[1]


def _object(labels: Labels, rng: Rng) -> Bools | None:
    """One object, or all in sight; its outline may be roughened."""
    ids = np.unique(labels[labels > 0])
    if not len(ids):
        return None
    mask = labels > 0 if rng.random() < 0.3 else labels == rng.choice(ids)
    return _roughen(mask, rng)


def _interior(labels: Labels, rng: Rng) -> Bools | None:
    """A cell without its mitochondria, a part of one, or a window of which nearly all is inside cells."""
    kind = rng.random()
    if kind < 0.15 and (labels > 0).mean() > 1 - HARDLY_ANY:
        return np.ones(labels.shape, np.bool_)
    mask = _object(labels, rng)
    if mask is not None and kind > 0.6:
        mask = mask & _blob(mask, rng)
    return mask


def _membrane(labels: Labels, rng: Rng) -> Bools:
    """All membranes in sight, those in a blob, or the pieces nearest a place; drawn exactly or a little too wide."""
    mask = labels > 0
    if rng.random() < 0.6:
        mask = mask & _blob(mask, rng)
    if rng.random() < 0.4:
        mask = ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 3)))
    return mask


def _edge(labels: Labels, rng: Rng) -> Bools | None:
    """A ring on both sides of an object's outline, or a part of it."""
    mask = _object(labels, rng)
    if mask is None:
        return None
    band = ring(mask, rng.uniform(0.06, 0.16))
    return band & _blob(band, rng) if rng.random() < 0.3 else band


def _background(labels: Labels, rng: Rng) -> Bools | None:
    """Where no object is: in the shape of one, everywhere, or a whole window with hardly anything in it."""
    objects, kind = labels > 0, rng.random()
    if kind < 0.2 and objects.mean() < HARDLY_ANY:
        return np.ones(labels.shape, np.bool_)
    if kind < 0.4:
        return ~objects
    ids = np.unique(labels[objects])
    return displaced(labels == rng.choice(ids), objects, rng) if len(ids) else None


_SHAPES: Mapping[str, tuple[Callable[[_Found, Rng], Window], Callable[[Labels, Rng], Bools | None]]] = {
    "membrane": (_window_on_pixel, _membrane),
    "cell interior": (_window_on_object, _interior),
    EDGE: (_window_on_object, _edge),
    "background": (_window_on_object, _background),
    "background of a blood smear": (_window_on_object, _background),
}
"""How a window and a region in it are chosen, where it is not simply an object."""


def ring(mask: Bools, width: float) -> Bools:
    """A band along a mask's outline, as wide inside as outside: `width` x sqrt(area), at least a pixel each."""
    pixels = max(1, round(width * float(np.sqrt(mask.sum()))))
    band = np.zeros_like(mask)
    for box in ndimage.find_objects(mask.astype(np.uint8)):  # none or one; the rest of a large image is left alone
        near = tuple(slice(max(0, side.start - pixels - 1), side.stop + pixels + 1) for side in box)
        inner = ndimage.binary_erosion(mask[near], iterations=pixels)
        band[near] = ndimage.binary_dilation(mask[near], iterations=pixels) & ~inner
    return band


def displaced(mask: Bools, forbidden: Bools, rng: Rng) -> Bools | None:
    """The mask moved to where it meets least of `forbidden`, cut there; None where less than half of it is left.

    So background gets the shapes of objects, and shape alone says nothing.

    Args:
        mask: bool (H, W), not empty.
        forbidden: bool (H, W), where the result must not be.
        rng: Draws 40 places, anywhere in the image.

    Returns:
        bool (H, W), or None.
    """
    rows, cols = np.nonzero(mask)
    best: Bools | None = None
    kept = (len(rows) - 1) // 2
    for _ in range(40):
        y = rows - rows.min() + int(rng.integers(-(np.ptp(rows) // 2) - 1, mask.shape[0]))
        x = cols - cols.min() + int(rng.integers(-(np.ptp(cols) // 2) - 1, mask.shape[1]))
        inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
        y, x = y[inside], x[inside]
        free = ~forbidden[y, x]
        if int(free.sum()) > kept:
            kept, best = int(free.sum()), np.zeros(mask.shape, np.bool_)
            best[y[free], x[free]] = True
    return best


def _blob(mask: Bools, rng: Rng) -> Bools:
    """A wobbly disk around a pixel of the mask, of a size between a tenth of the image's and half of it."""
    rows, cols = np.nonzero(mask)
    if not len(rows):
        return mask
    at = int(rng.integers(len(rows)))
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    radius = rng.uniform(0.1, 0.5) * min(mask.shape)
    wobble = 0.25 * smooth_noise(rng, mask.shape, max(4.0, radius))
    return np.hypot(y - rows[at], x - cols[at]) < radius * (1 + wobble)


def _roughen(mask: Bools, rng: Rng) -> Bools:
    """In a third of the cases: an outline that is off by up to a fifth of the object's radius, in and out."""
    if rng.random() > 1 / 3 or mask.all():
        return mask
    radius = float(np.sqrt(mask.sum() / np.pi))
    depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return depth + rng.uniform(0, 0.1) * radius * smooth_noise(rng, mask.shape, max(3.0, radius / 2)) > 0


# ------------------------------------------------------------------------------------------------- looks of images


def _turn(array: NDArray, turn: int) -> NDArray:
    """One of the eight orientations of an image or a mask."""
    turned = np.rot90(array, turn % 4)
    return np.ascontiguousarray(turned[:, ::-1] if turn >= 4 else turned)


def _relight(image: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    """Brightness and contrast off by up to a fifth, and where there is colour the balance of the channels.

    Black stays black: in fluorescence, nuclei may be hardly brighter than what is around them.
    """
    coloured = bool((image != image[:, :, :1]).any())
    gain = rng.uniform(0.8, 1.2) * (rng.uniform(0.88, 1.12, 3) if coloured else np.ones(3))
    curve = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.15, 0.15))
    columns = np.rint(np.clip(np.multiply.outer(curve, gain), 0, 255)).astype(np.uint8)  # a row for each value
    return np.take_along_axis(columns, image.reshape(-1, 3), axis=0).reshape(image.shape)
