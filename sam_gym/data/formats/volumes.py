"""Volumes that say where they lie in the patient, NIfTI and DICOM: their slices upright, their masks brought in line.

A slice is one across the third axis of the file as stored, the one along which scanners take slices; an oblique one is
not resampled. It is turned as radiologists see it: columns run to the patient's left (in sagittal slices to the back),
rows to the back (else to the feet). Grey values come from a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.labels import to_integers
from sam_gym.data.formats.source import Images, MissingExtraError, Picture, numbered
from sam_gym.data.images import stretched, to_rgb_uint8

Array = npt.NDArray[np.generic]
Window = Sequence[float]
"""Centre and width, in the values of the file (Hounsfield units in CT)."""

TOLERANCE = 0.5
"""How far, in voxels, a corner of a mask may lie off its image's."""


@dataclass(frozen=True)
class Volume:
    """A volume whose slices are read one by one.

    Attributes:
        path: Its file or folder.
        shape: (I, J, K) as stored; K slices.
        affine: (4, 4) float64, indices of a voxel -> mm to the patient's right, front and head (nibabel's RAS+).
        plane: Number of a slice -> its values (I, J), scaled as the file says.
        window: Number of a slice -> the window that the file names for it, or None.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    plane: Callable[[int], Array]
    window: Callable[[int], Window | None]

    def __post_init__(self) -> None:
        if not np.isfinite(self.affine).all() or abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise ValueError(f"{self.path} does not say where its voxels lie: its affine is {self.affine.tolist()}")


def volume_images(volume: Volume, window: Window | None = None) -> Images:
    """The slices of a volume as images.

    Args:
        volume: The volume.
        window: Centre and width that become 0..255; None takes those in the file, and where there are none stretches
            each slice like 16-bit images (`sam_gym.data.images.stretched`).
    """

    def read(index: int) -> Picture:
        values = upright(volume.plane(index), volume.affine)
        return windowed(values, volume.window(index) if window is None else window, f"{volume.path}, slice {index}")

    size = upright(np.empty(volume.shape[:2], np.bool_), volume.affine).shape
    return Images(volume.path, (size[0], size[1]), read, numbered(volume.shape[2]), volume)


def windowed(values: Array, window: Window | None, name: str) -> Picture:
    """Grey values (H, W) as RGB: from centre - width / 2 to centre + width / 2 linear to 0..255, clipped."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are NaN or infinite: replace them, as by that of air")
    if window is None:
        return to_rgb_uint8(stretched(values), name)
    if len(window) != 2 or not np.isfinite(window).all() or window[1] <= 0:
        raise ValueError(f"{name}: a window is a centre and a width above 0, got {window}")
    centre, width = window
    share = (values.astype(np.float64) - (centre - width / 2)) / width
    return to_rgb_uint8(np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8), name)


def aligned_labels(mask: Volume, images: Images) -> npt.NDArray[np.integer]:
    """The integers of a mask (n, H, W), its axes turned to those of the images, whose slices they lie on.

    Raises:
        ValueError: The mask holds no integers, has another size, or lies elsewhere; nothing is resampled.
    """
    from nibabel import orientations

    image = images.volume
    assert image is not None, "somebody asked for the mask of what is no volume"
    values = np.stack([mask.plane(k) for k in range(mask.shape[2])], axis=-1)
    turn = orientations.io_orientation(np.linalg.inv(image.affine) @ mask.affine)
    turned = orientations.apply_orientation(values, turn)
    affine = mask.affine @ orientations.inv_ornt_aff(turn, mask.shape)
    if turned.shape != image.shape:
        raise ValueError(
            f"{mask.path} has {' x '.join(map(str, turned.shape))} voxels and its image {image.path} "
            f"{' x '.join(map(str, image.shape))}: save the mask on the grid of its image"
        )
    corners = np.array([(*c, 1) for c in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in image.shape), 1]
    off = np.abs(corners @ (np.linalg.inv(image.affine) @ affine).T - corners).max()
    if off > TOLERANCE:
        raise ValueError(
            f"{mask.path} lies {off:.1f} voxels off its image {image.path}: save the mask with the affine of its "
            "image, or resample it onto that grid"
        )
    return to_integers(np.stack([upright(turned[..., k], image.affine) for k in range(image.shape[2])]), mask.path)


def upright(plane: Array, affine: npt.NDArray[np.float64]) -> Array:
    """A slice (I, J) as rows and columns, turned as radiologists see it."""
    from nibabel.orientations import aff2axcodes

    codes = aff2axcodes(affine)[:2]
    flipped = plane[tuple(slice(None, None, -1 if code in "RAS" else 1) for code in codes)]
    rank = ["LPI".find(code.translate(str.maketrans("RAS", "LPI"))) for code in codes]
    return flipped if rank[0] > rank[1] else flipped.T


def need(path: Path, what: str, package: str) -> None:
    """Raise MissingExtraError unless a package of the extra `medical` is there."""
    if find_spec(package) is None:
        raise MissingExtraError(path, what, package, "medical")
