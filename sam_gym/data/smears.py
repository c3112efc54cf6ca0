"""The procedural generator of blood smears: one or two white cells among red cells, with exact labels, from a seed.

Lobed, kidney-shaped and round nuclei, granular cytoplasm, red cells with and without pallor or an outline, stain and
light of any colour near the usual ones, each drawn anew for every smear (domain randomisation). It is what stands in
for the WBC crops where their terms forbid using them: clip-micro is trained on it. It imitates the look of a smear, not
haematology, and is no dataset of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam_gym._utils.naming import unknown
from sam_gym.data.synthetic import smooth_noise

SMEAR_SIZE = 128  # px; the side of a crop

CLASS_NAMES = ("background", "red cell", "cytoplasm", "nucleus")
BACKGROUND, RED_CELL, CYTOPLASM, NUCLEUS = range(4)

NUCLEI = ("many lobes", "round", "kidney", "two lobes")
"""What the nucleus of the cell in the middle may be asked to be: 3 to 5 lobes, round, kidney-shaped, 2 lobes."""

_Floats = npt.NDArray[np.float32]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Smear:
    """One generated crop of a smear; all arrays share the image frame (row, column).

    Attributes:
        image: uint8 (H, W, 3) RGB.
        cells: int32 (H, W), 0 = background, else the cell's id; red cells come first, then the white ones. A cell that
            others cover altogether leaves a gap in the ids.
        classes: uint8 (H, W), indices into `CLASS_NAMES`. A white cell is its cytoplasm and its nucleus.
    """

    image: npt.NDArray[np.uint8]
    cells: npt.NDArray[np.int32]
    classes: npt.NDArray[np.uint8]


def generate_smear(seed: int | np.random.Generator, size: int = SMEAR_SIZE, *, nucleus: str | None = None) -> Smear:
    """Generate one crop of a smear with a white cell near its middle. Equal arguments give equal bytes.

    Another version of NumPy or SciPy may draw or round otherwise.

    Args:
        seed: A seed >= 0, or a NumPy generator to draw from.
        size: Side of the square crop in px; at least 32.
        nucleus: One of `NUCLEI`, for the white cell in the middle; None draws it.

    Returns:
        The image and its labels.

    Raises:
        ValueError: `size` is too small, the seed is negative, or there is no such nucleus.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 px, got {size}")
    if nucleus not in (None, *NUCLEI):
        raise ValueError(unknown("nucleus", nucleus, NUCLEI))
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    # Light falls through: what lies on the slide absorbs, so layers multiply and only the background is bright.
    light = np.array([rng.uniform(0.85, 1.05), rng.uniform(0.8, 1.02), rng.uniform(0.45, 1.0)], np.float32)
    slope = 1 + rng.uniform(0, 0.08) * smooth_noise(rng, (size, size), 1.5 * size)
    image = light * slope[:, :, None]
    cells = np.zeros((size, size), np.int32)
    classes = np.full((size, size), BACKGROUND, np.uint8)

    _draw_red_cells(rng, image, cells, classes)
    for number in range(1 if rng.random() < 0.85 else 2):
        central = number == 0
        _draw_white_cell(rng, image, cells, classes, light, central, nucleus if central else None)
    _draw_debris(rng, image)
    return Smear(_expose(rng, image), cells, classes)


def _depth(rng: np.random.Generator, size: int, centre: npt.NDArray, radius: float, stretch: float) -> _Floats:
    """Distance in px, about, of each pixel to the outline of a wobbly ellipse; positive inside."""
    rows, cols = np.mgrid[0:size, 0:size].astype(np.float32)
    tilt = rng.uniform(0, np.pi)
    y, x = rows - np.float32(centre[0]), cols - np.float32(centre[1])
    u, v = np.cos(tilt) * x + np.sin(tilt) * y, (np.cos(tilt) * y - np.sin(tilt) * x) * stretch
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    for lobes in (2, 3, 5):
        outline += rng.uniform(0, 0.12 / lobes) * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    return (radius * outline - np.hypot(u, v)).astype(np.float32)


def _paint(image: _Floats, cover: _Floats, colour: npt.NDArray) -> None:
    """Lay a coat over the image, in place: `colour` (3,) or (H, W, 3) where `cover` is 1."""
    image += cover[:, :, None] * (colour - image)


def _draw_red_cells(
    rng: np.random.Generator, image: _Floats, cells: npt.NDArray[np.int32], classes: npt.NDArray[np.uint8]
) -> None:
    """From none to a crowd; filled, or hardly more than outlines; they overlap."""
    size = len(cells)
    radius = size * rng.uniform(0.08, 0.2)
    absorbed = rng.uniform(0.02, 0.45) * np.array([rng.uniform(0.0, 0.4), 1.0, rng.uniform(0.5, 1.2)])
    pallor, rim, width = rng.uniform(0, 0.9), rng.uniform(0, 0.35), rng.uniform(1.0, 2.2)
    for _ in range(rng.poisson(rng.uniform(0, 0.35) * (size / radius) ** 2 / np.pi)):
        centre = rng.uniform(-0.05 * size, 1.05 * size, 2)
        depth = _depth(rng, size, centre, radius * rng.uniform(0.8, 1.2), rng.uniform(1.0, 1.5))
        inside = depth > 0
        body = np.clip(depth / 2 + 0.5, 0, 1) * (1 - pallor * np.clip(depth / radius, 0, 1))
        line = rim * np.exp(-((depth / width) ** 2))
        image *= 1 - body[:, :, None] * absorbed.astype(np.float32)
        image *= 1 - line[:, :, None] * np.float32(0.6)
        classes[inside] = RED_CELL
        cells[inside] = int(cells.max()) + 1


def _draw_white_cell(
    rng: np.random.Generator,
    image: _Floats,
    cells: npt.NDArray[np.int32],
    classes: npt.NDArray[np.uint8],
    light: npt.NDArray,
    central: bool,
    shape: str | None,
) -> None:
    """A cell, darker along its outline, with its nucleus."""
    size = len(cells)
    radius = size * rng.uniform(0.15, 0.42)
    offset = rng.normal(0, 0.05 * size, 2) if central else rng.choice([-0.5, 0.5], 2) * size * rng.uniform(0.7, 1.0, 2)
    centre = size / 2 + offset
    depth = _depth(rng, size, centre, radius, rng.uniform(1.0, 1.25))
    cell = depth > 0
    if not cell.any():
        return
    tint = light * np.array([rng.uniform(0.5, 0.95), rng.uniform(0.45, 0.92), rng.uniform(0.55, 1.05)])
    granules = 1 + rng.uniform(0.01, 0.14) * smooth_noise(rng, (size, size), rng.uniform(1.5, 4.0))
    clouds = 1 + rng.uniform(0.0, 0.08) * smooth_noise(rng, (size, size), 0.3 * radius + 2)
    edge = 1 - rng.uniform(0, 0.35) * np.exp(-((depth / rng.uniform(1.2, 3.0)) ** 2))
    plasm = tint * (granules * clouds * edge)[:, :, None]
    _paint(image, np.clip(depth / 1.5 + 0.5, 0, 1), plasm.astype(np.float32))

    lobes = np.minimum(_nucleus(rng, size, centre, radius, shape), depth - 0.03 * radius)
    nucleus = cell & (lobes > 0)
    stain = rng.uniform(0.15, 0.6) * np.array([rng.uniform(0.6, 1.25), rng.uniform(0.25, 0.8), rng.uniform(0.8, 1.5)])
    chromatin = 1 + rng.uniform(0.03, 0.25) * smooth_noise(rng, (size, size), rng.uniform(2.5, 7.0))
    _paint(image, np.clip(lobes / 1.5 + 0.5, 0, 1), (stain * chromatin[:, :, None]).astype(np.float32))
    classes[cell] = CYTOPLASM
    classes[nucleus] = NUCLEUS
    cells[cell] = int(cells.max()) + 1


def _nucleus(rng: np.random.Generator, size: int, centre: npt.NDArray, radius: float, shape: str | None) -> _Floats:
    """Depth below the nucleus' outline: round, kidney-shaped, or of two to five lobes along an arc."""
    kind = str(rng.choice(["round", "kidney", "lobed"], p=[0.4, 0.25, 0.35])) if shape is None else shape
    if kind.endswith(("lobed", "lobes")):
        fewest, most = {"two lobes": (2, 2), "many lobes": (3, 5)}.get(kind, (2, 5))
        count, start, turn = int(rng.integers(fewest, most + 1)), rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.3)
        reach, lobe = radius * rng.uniform(0.38, 0.55), radius * rng.uniform(0.22, 0.36)
        parts = []
        for k in range(count):
            angle = start + k * turn
            place = centre + reach * np.array([np.sin(angle), np.cos(angle)])
            parts.append(_depth(rng, size, place, lobe * rng.uniform(0.8, 1.2), rng.uniform(1.0, 1.5)))
        return np.maximum.reduce(parts)
    share = rng.uniform(0.55, 0.95)
    shift = rng.normal(0, 0.3 * (1 - share) * radius, 2)
    depth = _depth(rng, size, centre + shift, share * radius, rng.uniform(1.0, 1.4))
    if kind == "kidney":
        angle = rng.uniform(0, 2 * np.pi)
        dent = centre + radius * rng.uniform(0.45, 0.8) * np.array([np.sin(angle), np.cos(angle)])
        depth = np.minimum(depth, -_depth(rng, size, dent, radius * rng.uniform(0.3, 0.5), 1.0))
    return depth


def _draw_debris(rng: np.random.Generator, image: _Floats) -> None:
    """Platelets and dirt: small dark specks, unlabelled."""
    size = len(image)
    for _ in range(rng.poisson(1.5)):
        depth = _depth(rng, size, rng.uniform(0, size, 2), size * rng.uniform(0.01, 0.04), rng.uniform(1.0, 2.0))
        _paint(image, rng.uniform(0.3, 0.9) * np.clip(depth / 1.5 + 0.5, 0, 1), rng.uniform(0.2, 0.7, 3))


def _expose(rng: np.random.Generator, image: _Floats) -> npt.NDArray[np.uint8]:
    """What the camera makes of it: blur, noise, saturation, contrast, brightness."""
    sigma = rng.uniform(0.3, 1.6)
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + np.float32(rng.uniform(0.003, 0.04)) * noise
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(rng.uniform(0.5, 1.4))
    image = (image - 0.5) * np.float32(rng.uniform(0.85, 1.2)) + np.float32(0.5 + rng.uniform(-0.08, 0.05))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
