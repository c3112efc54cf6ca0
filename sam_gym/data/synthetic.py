"""The procedural generator: electron-microscopy-like sections with exact labels, made from a seed.

Cells with membranes, mitochondria with cristae, vesicles, tubules; then blur, noise, contrast and polarity, each drawn
anew for every section (domain randomisation). It needs no file and no network, so it is what tests, examples and a
machine without the real sections run on. It imitates the look of a section, not its biology: no number measured on it
says anything about real tissue, and whatever is made from it is marked `synthetic-em`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam_gym.data.spec import DatasetSpec, read_splits

NAME = "synthetic-em"
SECTION_SIZE = 256  # px; the side of the dataset's square sections

CLASS_NAMES = ("membrane", "cytoplasm", "mitochondrion", "vesicle")
MEMBRANE, CYTOPLASM, MITOCHONDRION, VESICLE = range(4)

_Floats = npt.NDArray[np.float32]
_Bools = npt.NDArray[np.bool_]
_INVERTED_SHARE = 0.1  # of all sections: bright membranes, as in a negative or a dark-field image


@dataclass(frozen=True, eq=False)
class Section:
    """One generated section; all arrays share the image frame (row, column).

    Attributes:
        image: uint8 (H, W, 3) RGB with three equal channels.
        cells: int32 (H, W), 0 = membrane, else the cell's id: 1, 2, ... in raster order. Each cell is one 4-connected
            region that holds its organelles, and no two cells are 4-neighbours.
        mitochondria: int32 (H, W), 0 = none, else the mitochondrion's id. Each is one 4-connected region in one cell.
        classes: uint8 (H, W), indices into `CLASS_NAMES`.
    """

    image: npt.NDArray[np.uint8]
    cells: npt.NDArray[np.int32]
    mitochondria: npt.NDArray[np.int32]
    classes: npt.NDArray[np.uint8]


def generate(
    seed: int | np.random.Generator,
    size: int | tuple[int, int] = SECTION_SIZE,
    *,
    cell_size: float | None = None,
    organelles: bool = True,
    inverted: bool | None = None,
) -> Section:
    """Generate one section. Equal arguments give equal bytes, also in another process.

    Another version of NumPy or SciPy may draw or round otherwise; `SegmentationData.hash` tells.

    Args:
        seed: A seed >= 0, or a NumPy generator to draw from.
        size: Side of a square section or (height, width), in px; at least 32.
        cell_size: Spacing of the cells' seeds in px, at least 8: most cells are about this wide, a few are many times
            larger. None draws it for each section from 24..40.
        organelles: Whether there are mitochondria, vesicles and tubules.
        inverted: Whether membranes are bright. None draws it: one section in ten is.

    Returns:
        The image and its labels.

    Raises:
        ValueError: `size` or `cell_size` is too small, or the seed is negative.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    if min(height, width) < 32:
        raise ValueError(f"size must be at least 32 px on each side, got {size}")
    if cell_size is not None and not cell_size >= 8:
        raise ValueError(f"cell_size must be at least 8 px, got {cell_size}")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)

    spacing = float(rng.uniform(24, 40)) if cell_size is None else float(cell_size)
    territories = _territories(rng, (height, width), spacing)
    membrane = _distance_to_border(territories) <= _membrane_half_width(rng, (height, width))
    membrane = ~_open(~membrane, rng.uniform(1.0, 3.5))  # membranes round the corners where cells meet
    cells = ndimage.label(~membrane)[0].astype(np.int32)
    depth = ndimage.distance_transform_edt(~membrane).astype(np.float32)

    shade = _cytoplasm(rng, cells) - _membrane_darkness(rng, membrane, depth)
    classes = np.where(membrane, MEMBRANE, CYTOPLASM).astype(np.uint8)
    mitochondria = np.zeros((height, width), np.int32)
    if organelles:
        _draw_tubules(rng, shade, depth)
        _draw_vesicles(rng, shade, classes, cells, depth)
        _draw_mitochondria(rng, shade, mitochondria, cells, depth)
        classes[mitochondria > 0] = MITOCHONDRION
    flip = rng.random() < _INVERTED_SHARE  # drawn always, so that `inverted` changes nothing else
    grey = _expose(rng, shade, flip if inverted is None else inverted)
    return Section(np.repeat(grey[:, :, None], 3, axis=2), cells, mitochondria, classes)


def _read(_root: Path, image_id: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Image and cell labels of one section of the dataset; its id ends in its seed."""
    section = generate(int(image_id.rsplit("-", 1)[1]))
    return section.image, section.cells


SPEC = DatasetSpec(
    name=NAME,
    title="Procedural electron-microscopy-like sections, cells as instances",
    licence="as sam_gym itself",
    citation="sam_gym.data.synthetic",
    splits=read_splits(NAME),
    read=_read,
    text="cell interior",
)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], period: float) -> _Floats:
    """Smooth noise of mean ~0, deviation ~1: random values `period` px apart, interpolated by cubic B-splines."""
    height, width = shape
    rows, cols = int(height / period) + 5, int(width / period) + 5
    grid = rng.standard_normal((rows, cols)).astype(np.float32)
    # Sums of four shifted copies rather than a matrix product, whose rounding depends on BLAS and its threads.
    offset = rng.uniform(0, 1, 2)
    field = _spline_rows(_spline_rows(grid, height, period, offset[0]).T, width, period, offset[1]).T
    return field * np.float32(2.1)  # a B-spline's weights shrink the deviation to 0.48


def _spline_rows(grid: _Floats, length: int, period: float, offset: float) -> _Floats:
    position = np.arange(length) / period + offset
    index = position.astype(np.intp)
    t = (position - index).astype(np.float32)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    total = weights[0] * grid[index]
    for k in range(1, 4):
        total = total + weights[k] * grid[index + k]
    return total / np.float32(6)


def _territories(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> npt.NDArray[np.int32]:
    """Index of the seed that owns each pixel: an additively weighted Voronoi diagram in warped coordinates.

    Pixel x belongs to the seed with the least |x - seed| - radius, so borders are curved, seeds of large radius make
    large round cells, and small seeds survive in the gaps between them, as thin processes do between thick ones.
    """
    height, width = shape
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32)
    for amplitude, period in ((0.30, 1.8), (0.05, 0.45)):  # of the spacing
        rows += np.float32(amplitude * spacing) * smooth_noise(rng, shape, period * spacing)
        cols += np.float32(amplitude * spacing) * smooth_noise(rng, shape, period * spacing)
    stretch, angle = rng.uniform(1.0, 1.7), rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    metric = (turn * [[stretch], [1.0]]).astype(np.float32)  # cells are elongated one way
    across, along = (metric[k, 0] * rows + metric[k, 1] * cols for k in (0, 1))

    margin = 3 * spacing  # large cells reach in from outside
    grid = np.mgrid[-margin : height + margin : spacing, -margin : width + margin : spacing].reshape(2, -1).T
    seeds = (grid + rng.uniform(-0.45, 0.45, grid.shape) * spacing).astype(np.float32)
    radii = (spacing * np.minimum(rng.gamma(0.45, 0.9, len(seeds)), 3.2)).astype(np.float32)

    owner = np.zeros(shape, np.int32)
    nearest = np.full(shape, np.inf, np.float32)
    for index in range(len(seeds)):
        # Farther away than this (its radius, the gaps between seeds, the warp), another seed is nearer.
        box = _window(seeds[index, 0], seeds[index, 1], radii[index] + 2 * spacing, shape)
        if box is None:
            continue
        centre = (metric * seeds[index]).sum(axis=1)
        distance = np.sqrt((across[box] - centre[0]) ** 2 + (along[box] - centre[1]) ** 2) - radii[index]
        np.copyto(owner[box], index + 1, where=distance < nearest[box])
        np.minimum(nearest[box], distance, out=nearest[box])
    return owner


def _distance_to_border(territories: npt.NDArray[np.int32]) -> _Floats:
    """Distance in px of each pixel to the nearest border; both pixels beside a border are at 0."""
    border = np.zeros(territories.shape, bool)
    for axis in (0, 1):
        change = np.diff(territories, axis=axis) != 0
        low, high = [slice(None), slice(None)], [slice(None), slice(None)]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        border[tuple(low)] |= change
        border[tuple(high)] |= change
    if not border.any():  # one cell fills the section
        return np.full(territories.shape, np.inf, np.float32)
    return ndimage.distance_transform_edt(~border).astype(np.float32)


def _open(mask: _Bools, radius: float) -> _Bools:
    """Morphological opening by a disk: what a disk of this radius in px can cover from within."""
    if mask.all():
        return mask
    core = ndimage.distance_transform_edt(mask) > radius
    if not core.any():
        return mask
    return ndimage.distance_transform_edt(~core) <= radius


def _membrane_half_width(rng: np.random.Generator, shape: tuple[int, ...]) -> _Floats:
    """Half width of the membranes in px, varying along them; where it is large they are cut at a slant."""
    base = rng.uniform(0.6, 1.6) * (1 + 0.3 * smooth_noise(rng, shape, 30))
    slanted = np.clip(smooth_noise(rng, shape, 28) - 1.9, 0, 1) * rng.uniform(0, 12)
    return np.maximum(base, 0).astype(np.float32) + slanted.astype(np.float32)


def _cytoplasm(rng: np.random.Generator, cells: npt.NDArray[np.int32]) -> _Floats:
    """Grey value of the cells' insides: a level for each cell, clumps in all of them, a gradient over the section."""
    shape = cells.shape
    levels = rng.normal(0, rng.uniform(0.015, 0.06), int(cells.max()) + 1).astype(np.float32)
    dense = rng.random(len(levels)) < 0.06  # some processes are packed and dark throughout
    levels[dense] -= np.float32(rng.uniform(0.05, 0.2))
    clumps = rng.uniform(0.03, 0.07) * smooth_noise(rng, shape, 2.6)
    clouds = rng.uniform(0.0, 0.05) * smooth_noise(rng, shape, 14)
    slope = rng.uniform(0.0, 0.05) * smooth_noise(rng, shape, 120)
    return (rng.uniform(0.58, 0.72) + levels[cells] + clumps + clouds + slope).astype(np.float32)


def _membrane_darkness(rng: np.random.Generator, membrane: _Bools, depth: _Floats) -> _Floats:
    """How much darker than cytoplasm each pixel is: full in the membrane, fading within a pixel or two beside it."""
    contrast = rng.uniform(0.26, 0.42) * np.clip(1 + 0.22 * smooth_noise(rng, membrane.shape, 25), 0.35, 1.5)
    return (contrast * np.exp(-((depth / rng.uniform(1.0, 1.9)) ** 2))).astype(np.float32)


def _draw_tubules(rng: np.random.Generator, shade: _Floats, depth: _Floats) -> None:
    """Thin dark squiggles in some places of the cytoplasm: the endoplasmic reticulum, unlabelled clutter."""
    shape = shade.shape
    lines = np.exp(-((smooth_noise(rng, shape, rng.uniform(7, 14)) / 0.12) ** 2))
    here = np.clip(smooth_noise(rng, shape, 35) - 0.8, 0, 1) * np.clip((depth - 3) / 3, 0, 1)
    shade -= (rng.uniform(0.05, 0.25) * lines * here).astype(np.float32)


def _draw_vesicles(
    rng: np.random.Generator,
    shade: _Floats,
    classes: npt.NDArray[np.uint8],
    cells: npt.NDArray[np.int32],
    depth: _Floats,
) -> None:
    """Small rings, dark-rimmed, in swarms; and single dark dots (microtubules, granules), which bear no label."""
    inside = np.flatnonzero(depth > 4)
    if not len(inside):
        return
    width = shade.shape[1]
    share = shade.size / 256**2
    for _ in range(rng.poisson(rng.uniform(3, 16) * share)):
        row, col = divmod(int(rng.choice(inside)), width)
        spread = rng.uniform(6, 22)
        for _ in range(rng.integers(2, 14)):
            y, x = row + rng.normal(0, spread), col + rng.normal(0, spread)
            radius, lumen, rim = rng.uniform(1.8, 3.8), rng.uniform(0.0, 0.10), rng.uniform(0.15, 0.34)
            box = _window(y, x, radius + 2, shade.shape)
            if box is None or not 0 <= int(y) < shade.shape[0] or not 0 <= int(x) < width:
                continue
            if depth[int(y), int(x)] < radius + 1 or cells[int(y), int(x)] != cells[row, col]:
                continue
            distance = _distance_from(y, x, box)
            shade[box] += (lumen * (distance < radius - 1)).astype(np.float32)
            shade[box] -= (rim * np.exp(-((distance - radius + 0.6) ** 2))).astype(np.float32)
            classes[box][distance <= radius] = VESICLE
    for sigma in (0.6, 1.1):
        dots = np.zeros(shade.size, np.float32)
        places = rng.choice(inside, rng.poisson(rng.uniform(40, 260) * share))
        np.add.at(dots, places, rng.uniform(0.4, 2.0, len(places)).astype(np.float32) * np.float32(sigma))
        shade -= ndimage.gaussian_filter(dots.reshape(shade.shape), sigma)


def _draw_mitochondria(
    rng: np.random.Generator,
    shade: _Floats,
    mitochondria: npt.NDArray[np.int32],
    cells: npt.NDArray[np.int32],
    depth: _Floats,
) -> None:
    """Wobbly ellipses with a dark rim, a grey matrix and stripes (cristae), each within one cell."""
    roomy = np.flatnonzero(depth > 7)
    if not len(roomy):
        return
    level, contrast = rng.uniform(0.14, 0.30), rng.uniform(0.05, 0.14)
    for _ in range(rng.poisson(rng.uniform(1, 6) * shade.size / 256**2)):
        row, col = divmod(int(rng.choice(roomy)), shade.shape[1])
        minor = min(rng.uniform(7, 22), 0.9 * float(depth[row, col]))
        major = minor * rng.uniform(1.0, 2.6)
        tilt, stripes_tilt, stripe = rng.uniform(0, np.pi, 2).tolist() + [rng.uniform(3.2, 6.0)]
        wobble, lobes, phase = rng.uniform(0, 0.16), int(rng.integers(2, 5)), rng.uniform(0, 2 * np.pi)
        box = _window(row, col, 1.2 * major + 3, shade.shape)
        if box is None:
            continue
        y, x = (np.arange(axis.start, axis.stop, dtype=np.float32) for axis in box)
        y, x = (y - row)[:, None], (x - col)[None, :]
        u, v = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x
        radius = np.hypot(u / major, v / minor) / (1 + wobble * np.cos(lobes * np.arctan2(v, u) + phase))
        body = (radius <= 1) & (cells[box] == cells[row, col]) & (depth[box] > 2) & (mitochondria[box] == 0)
        parts, _count = ndimage.label(body)
        centre = parts[row - box[0].start, col - box[1].start]
        body = (parts == centre) & (centre > 0)
        if body.sum() < 60:
            continue
        rim = np.exp(-((ndimage.distance_transform_edt(np.pad(body, 1))[1:-1, 1:-1] - 1) ** 2) / 1.6)
        across = np.cos(stripes_tilt) * x + np.sin(stripes_tilt) * y
        cristae = np.sin(2 * np.pi / stripe * across + 1.6 * smooth_noise(rng, body.shape, 12))
        dark = level - contrast * cristae * (1 - rim) + 0.2 * rim
        shade[box][body] -= dark[body].astype(np.float32)
        mitochondria[box][body] = int(mitochondria.max()) + 1


def _expose(rng: np.random.Generator, shade: _Floats, inverted: bool) -> npt.NDArray[np.uint8]:
    """What the microscope makes of it: blur, grain, counting noise, polarity, contrast and brightness."""
    shape = shade.shape
    grey = ndimage.gaussian_filter(shade, rng.uniform(0.5, 1.2))
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), rng.uniform(0.4, 0.8))
    grey += np.float32(rng.uniform(0.04, 0.13)) * grain
    grey += np.float32(rng.uniform(0.01, 0.07)) * rng.standard_normal(shape, dtype=np.float32)
    if inverted:
        grey = 1 - grey
    grey = (grey - 0.5) * np.float32(rng.uniform(0.8, 1.35)) + np.float32(0.5 + rng.uniform(-0.1, 0.08))
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _window(y: float, x: float, reach: float, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """The part of the image within `reach` px of a point, or None if there is none."""
    top, bottom = max(0, int(y - reach)), min(shape[0], int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(shape[1], int(x + reach) + 2)
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def _distance_from(y: float, x: float, box: tuple[slice, slice]) -> _Floats:
    rows = np.arange(box[0].start, box[0].stop, dtype=np.float32) - np.float32(y)
    cols = np.arange(box[1].start, box[1].stop, dtype=np.float32) - np.float32(x)
    return np.hypot(rows[:, None], cols[None, :])
