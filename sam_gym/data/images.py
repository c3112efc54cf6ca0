"""What a user has as an image -> what SAM takes: uint8 (H, W, 3) RGB. One documented rule for every kind of input.

Nothing is resized, rotated or guessed at silently; what is not clearly an image is refused with the reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")
"""Of the image files that are looked for in folders."""

ROUNDING = 1e-5
"""Of floats: 1.0000001 out of an interpolation in float32 still means 1."""

_CHANNELS = (1, 3, 4)


def to_rgb_uint8(image: npt.ArrayLike, name: str = "image") -> npt.NDArray[np.uint8]:
    """Convert an image to RGB bytes.

    Channels: (H, W) and (H, W, 1) are grey and repeated; (H, W, 3) is RGB; (H, W, 4) is RGBA, whose alpha is dropped,
    so that transparent pixels keep the colour they are stored with. PIL images of any mode are taken too; a palette is
    looked up.

    Values:
        * uint8: as they are.
        * bool: False -> 0, True -> 255.
        * uint16: linear from the 0.1th to the 99.9th percentile of this image (all channels together, alpha apart) to
          0..255, clipped, since 12-bit and 14-bit cameras fill only a part of the range. A constant image becomes 0.
        * other integers: as they are if all lie in 0..255, else like uint16.
        * floats: times 255 if all lie in [0, 1], as they are if all lie in [0, 255], both rounded to nearest. An image
          whose maximum lies in (1, 2) could be either and is refused.

    Args:
        image: Array-like or PIL image.
        name: What error messages call it.

    Returns:
        uint8 (H, W, 3), C-contiguous, never a view of the input.

    Raises:
        ValueError: Another shape or kind of value; no pixels; NaN or infinity; floats below 0, above 255 or in doubt.
    """
    array = np.asarray(pil_pixels(image))
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers, got dtype {array.dtype}")
    _check_shape(array.shape, name)
    if array.ndim == 2:
        array = array[:, :, None]
    array = _to_uint8(array[:, :, :3], name)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def picture(pixels: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    """The pixels of a file as `to_rgb_uint8` converts them; floats that it refuses for their range are stretched.

    A file cannot be asked to scale its values, so floats that lie neither in [0, 1] nor clearly in [0, 255] are
    treated like uint16.

    Raises:
        ValueError: As `to_rgb_uint8`, but for the range of floats.
    """
    if pixels.dtype.kind == "f" and pixels.size and np.isfinite(pixels).all():
        low, high = float(pixels.min()), float(pixels.max())
        if low < -ROUNDING or high > 255 + ROUNDING or 1 + ROUNDING < high < 2:
            pixels = stretched(pixels)
    return to_rgb_uint8(pixels, name)


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read an image file (PNG, JPEG, TIFF, BMP, NumPy, a DICOM slice, ...) as `picture` converts it.

    A rotation noted in EXIF is not applied, so that masks drawn on the stored pixels fit.

    Args:
        path: The file.

    Returns:
        uint8 (H, W, 3).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an image, is truncated or damaged, or is a stack of several images.
    """
    from sam_gym.data.formats import open_images

    images = open_images(Path(path))
    _check_single(Path(path), len(images.names))
    return images.read(0)


def open_pixels(path: str | Path, *, indices: bool = False) -> npt.NDArray[np.generic]:
    """Read an image file's pixels as stored, a palette looked up: (H, W) or (H, W, channels). Raises like `read_image`.

    With `indices` a palette is left alone: its indices may be labels.
    """
    from sam_gym.data.formats.pages import open_pages

    pages = open_pages(Path(path), indices=indices)
    _check_single(Path(path), len(pages))
    return pages[0]


def _check_single(path: Path, n: int) -> None:
    if n != 1:
        raise ValueError(f"{path} is a stack of {n} images: save the one you want as its own file")


def pil_pixels(image: object) -> npt.ArrayLike:
    """The pixels of a PIL image, by way of a mode with plain channels; anything else is passed through."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        return image  # type: ignore[return-value]
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa"):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("LA", "La"):
        return np.asarray(image.getchannel(0))
    return np.asarray(image)


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) not in (2, 3):
        raise ValueError(f"{name} must have shape (H, W) or (H, W, 1, 3 or 4), got {shape}{_batch_hint(shape)}")
    if 0 in shape:
        raise ValueError(f"{name} has no pixels: its shape is {shape}")
    if len(shape) == 3 and shape[2] not in _CHANNELS:
        if shape[0] in _CHANNELS:
            raise ValueError(
                f"{name} of shape {shape} looks channel-first: pass (H, W, C), as by array.transpose(1, 2, 0)"
            )
        raise ValueError(f"{name} must have 1 (grey), 3 (RGB) or 4 (RGBA) channels, got {shape[2]} (shape {shape})")


def _batch_hint(shape: tuple[int, ...]) -> str:
    return ": one image at a time" if len(shape) == 4 else ""


def _to_uint8(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array.astype(np.uint8)  # a copy
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        return _floats_to_uint8(array, name)
    if array.dtype.itemsize == 2 and array.dtype.kind == "u":
        return stretched(array)
    low, high = int(array.min()), int(array.max())
    return array.astype(np.uint8) if low >= 0 and high <= 255 else stretched(array)


def _floats_to_uint8(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    floats = array.astype(np.float64)
    if not np.isfinite(floats).all():
        count = int((~np.isfinite(floats)).sum())
        raise ValueError(f"{name} has {count} values that are NaN or infinite")
    low, high = float(floats.min()), float(floats.max())
    if low < -ROUNDING or high > 255 + ROUNDING:
        raise ValueError(f"{name} has float values from {low:g} to {high:g}: scale them to [0, 1] or [0, 255]")
    if 1 + ROUNDING < high < 2:
        raise ValueError(
            f"{name} has float values up to {high:g}, which is neither [0, 1] nor clearly [0, 255]: clip or scale them"
        )
    scale = 255.0 if high <= 1 + ROUNDING else 1.0
    return np.rint(np.clip(floats * scale, 0, 255)).astype(np.uint8)


def stretched(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Linear from the 0.1th to the 99.9th percentile of all values to 0..255, clipped; a constant becomes 0."""
    values = array.astype(np.float64)
    low, high = np.percentile(values, [0.1, 99.9])
    if high <= low:  # nearly all pixels are equal: use what range there is
        low, high = values.min(), values.max()
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
