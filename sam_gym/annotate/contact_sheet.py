"""A contact sheet: many images on one page, each with its masks in colours and the boxes they were made of."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE, CAPTION, GAP = 320, 40, 8
"""Of a tile: side of the picture, height of what stands under it, space around, in pixels."""

PAPER, INK, FAILED = (24, 24, 26), (235, 235, 235), (255, 105, 97)


@dataclass(frozen=True)
class Tile:
    """One image of the sheet.

    Attributes:
        title: Under the picture.
        note: Under the title.
        image: (H, W, 3) uint8, or None where it could not be read.
        labels: (H, W) integers: 0, or a label; None draws the image alone.
        boxes: Label -> x0, y0, x1, y1 in pixels of the image.
        failed: Draw the note as one of an error.
    """

    title: str
    note: str
    image: NDArray[np.uint8] | None = None
    labels: NDArray | None = None
    boxes: dict[int, tuple[float, float, float, float]] | None = None
    failed: bool = False


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """All tiles on one page, as square as it goes, no more than six in a row."""
    columns = min(6, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP), PAPER)
    for i, tile in enumerate(tiles):
        x, y = GAP + i % columns * (SIDE + GAP), GAP + i // columns * (SIDE + CAPTION + GAP)
        if tile.image is not None:
            picture = _picture(tile.image, tile.labels, tile.boxes or {})
            sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        draw = ImageDraw.Draw(sheet)
        if tile.image is None:
            draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=(80, 80, 85))
        for line, text, colour in ((0, tile.title, INK), (1, tile.note, FAILED if tile.failed else (160, 160, 165))):
            draw.text((x, y + SIDE + 3 + 17 * line), _shortened(text), fill=colour, font=_font())
    return sheet


def _picture(
    image: NDArray[np.uint8], labels: NDArray | None, boxes: dict[int, tuple[float, float, float, float]]
) -> Image.Image:
    """The image fitted into the tile, masks tinted and outlined, boxes thin."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    if labels is not None:
        small = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        present, inverse = np.unique(small, return_inverse=True)
        colours = np.array([_colour(int(label)) for label in present])[inverse.reshape(small.shape)]
        edge = _edges(small)
        strength = np.where(edge, 1.0, 0.35)[..., None] * (small > 0)[..., None]
        mixed = np.asarray(picture) * (1 - strength) + colours * strength
        picture = Image.fromarray(mixed.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for label, box in boxes.items():
        x0, y0, x1, y1 = (round(value * scale) for value in box)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_colour(label))
    return picture


def _edges(labels: NDArray) -> NDArray[np.bool_]:
    """Pixels with a neighbour, left, right, above or below, of another label."""
    edge = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    edge[:, :-1] |= across
    edge[:, 1:] |= across
    edge[:-1] |= down
    edge[1:] |= down
    return edge


def _colour(label: int) -> tuple[int, int, int]:
    """Neighbouring numbers get hues that are far apart: steps by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb((0.72 + label * 0.61803398875) % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shortened(text: str) -> str:
    """The text, its middle left out where it is wider than a tile."""
    font, shown = _font(), text
    length = len(text)
    while font.getlength(shown) > SIDE:
        length -= 1
        shown = text[: (length + 1) // 2] + "…" + text[len(text) - length // 2 :]
    return shown


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(13)
