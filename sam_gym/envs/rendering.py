"""Pictures of episodes for people: the image, SAM's mask, the truth's outline, the prompts, and how it stands.

The truth is drawn here, so pictures are for people and never for agents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

if TYPE_CHECKING:
    from sam_gym.envs.engine import PromptEngine
    from sam_gym.envs.prefer import PreferEngine
    from sam_gym.envs.report import ReportEngine

SIZE = 448
"""Side of the picture's image part in pixels."""

MARGIN = 1.15
"""What is shown is the view and a little around it."""

CAPTION = 64
REPORT = 280
"""Height of what is written below a picture, where a report is."""

MASK, TRUTH, CUE, BOX = (64, 156, 255), (255, 214, 10), (255, 255, 255), (255, 149, 0)
POSITIVE, NEGATIVE = (48, 209, 88), (255, 69, 58)
INK, PAPER = (235, 235, 235), (24, 24, 26)


def render_episode(engine: PromptEngine, row: int) -> NDArray[np.uint8]:
    """One episode as it stands.

    Args:
        engine: The engine that holds it.
        row: Which of its episodes.

    Returns:
        (512, 448, 3) uint8: the surroundings of the view enlarged, with SAM's mask in blue, the outline of the truth in
        yellow, the cue box in dashed white, the box that has replaced it in orange, the view's border thin, clicks
        numbered in green (+) and red (-), and a caption with IoU, what it gained over the first, and the step. Tasks
        without a cue show none, and the target's text instead of the object's number.
    """
    episodes = engine.episodes
    frame = _frame(engine, row)
    canvas = Image.new("RGB", (SIZE, SIZE + CAPTION), PAPER)
    canvas.paste(_scene(engine, row, engine.mask(row), frame, SIZE), (0, CAPTION))
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - frame[0]) / frame[2] * SIZE, (y - frame[1]) / frame[2] * SIZE + CAPTION

    left, top, side = (float(v) for v in episodes.view[row])
    draw.rectangle((*place(left, top), *place(left + side, top + side)), outline=(120, 120, 125))
    cue, box = episodes.cue[row], episodes.box[row]
    legend = [("truth", TRUTH), ("mask", MASK)]
    if engine.settings.has_cue:
        _dashed_box(draw, (*place(cue[0], cue[1]), *place(cue[2], cue[3])))
        legend.append(("cue", CUE))
        if not np.array_equal(box, cue):
            draw.rectangle((*place(box[0], box[1]), *place(box[2], box[3])), outline=BOX, width=2)
            legend.append(("box", BOX))
    points, labels = episodes.all_points[row], episodes.all_labels[row]
    for number, point in enumerate(points[labels >= 0], start=1):
        _click(draw, place(point[0] + 0.5, point[1] + 0.5), bool(labels[labels >= 0][number - 1]), number)
    _caption(draw, engine, row, legend)
    return np.asarray(canvas)


def render_choice(engine: PreferEngine, row: int) -> NDArray[np.uint8]:
    """Candidates of one episode of SamPrefer, four of them.

    Returns:
        (512, 448, 3) uint8: the candidates by number and IoU, each in blue on the surroundings of the view, the truth's
        outline in yellow; in green the one that was picked, once the episode has ended; and a caption.
    """
    frame, offers, half = _frame(engine, row), engine.offers(row), SIZE // 2
    canvas = Image.new("RGB", (SIZE, SIZE + CAPTION), PAPER)
    draw = ImageDraw.Draw(canvas)
    ended, picked = bool(engine.episodes.terminated[row]), int(engine.episodes.picked[row])
    for k, iou in enumerate(offers.iou):
        x, y = half * (k % 2), half * (k // 2) + CAPTION
        canvas.paste(_scene(engine, row, engine.offered_mask(row, k), frame, half), (x, y))
        chosen = ended and k == picked
        draw.rectangle((x, y, x + half - 1, y + half - 1), outline=POSITIVE if chosen else PAPER, width=4)
        text = f"{k}   IoU {iou:.3f}" + (", picked" if chosen else "")
        draw.text((x + 10, y + 8), text, fill=INK, font=caption_font(15), stroke_width=2, stroke_fill=PAPER)
    _caption(draw, engine, row, [("truth", TRUTH), ("candidate", MASK)])
    return np.asarray(canvas)


def render_report(engine: ReportEngine, row: int) -> NDArray[np.uint8]:
    """One episode of SamReport.

    Returns:
        (792, 448, 3) uint8: the image with the regions in blue, numbered in their order, the outline of the truth in
        yellow, clicks in green, and a caption; below it the report, true sentences in green and false ones in red,
        beside all that is true, in yellow where the report does not say it.
    """
    from sam_gym.reports.language import sentences  # reports need words, other pictures none

    episodes, frame = engine.episodes, _frame(engine, row)
    canvas = Image.new("RGB", (SIZE, SIZE + CAPTION + REPORT), PAPER)
    canvas.paste(_scene(engine, row, np.zeros_like(engine.mask(row)), frame, SIZE), (0, CAPTION))
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - frame[0]) / frame[2] * SIZE, (y - frame[1]) / frame[2] * SIZE + CAPTION

    shown = Image.new("L", (SIZE, SIZE))
    for region in engine.regions(row):
        mask = _enlarged(region.mask, frame, SIZE)
        shown.paste(90, mask=mask)
        shown.paste(255, mask=_outline(mask))
    canvas.paste(Image.new("RGB", (SIZE, SIZE), MASK), (0, CAPTION), shown)
    for region in engine.true_regions(row):
        outline = _outline(_enlarged(region.mask, frame, SIZE))
        canvas.paste(Image.new("RGB", (SIZE, SIZE), TRUTH), (0, CAPTION), outline)
    for number, region in enumerate(engine.regions(row), start=1):
        _mark(draw, place(*_deepest(region.mask)), str(number))
    for x, y in episodes.points[row][: episodes.prompts[row]]:
        _dot(draw, place(x + 0.5, y + 0.5))
    _caption(draw, engine, row, [("truth", TRUTH), ("region", MASK), ("click", POSITIVE)])
    said = [one.fact for one in engine.statements(row)]
    true = [one.fact for one in engine.true_statements(row)]
    top = SIZE + CAPTION
    report = [(sentences(fact)[0], POSITIVE if fact in true else NEGATIVE) for fact in said]
    truth = [(sentences(fact)[0], INK if fact in said else TRUTH) for fact in true]
    for left, title, lines in ((0, "report", report), (SIZE // 2, "truth", truth)):
        _write_lines(draw, (left + 10, top + 6), [(title, INK), *lines], SIZE // 2 - 16)
    return np.asarray(canvas)


def _enlarged(mask: NDArray[np.bool_], frame: tuple[float, float, float], size: int) -> Image.Image:
    """A mask of the image's size as it is seen in the frame, 0 and 255."""
    cut = _cut(Image.fromarray(mask).convert("L"), frame, Image.Resampling.BILINEAR, size)
    return cut.point(lambda v: 255 * (v > 127))


def _deepest(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """x, y of the pixel that is farthest from the mask's outline, where a number covers least of it."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return float(x) + 0.5, float(y) + 0.5


def _mark(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str) -> None:
    draw.text(at, text, fill=INK, font=caption_font(17), anchor="mm", stroke_width=2, stroke_fill=PAPER)


def _dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: int = 3) -> None:
    x, y = at
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=POSITIVE, outline=INK)


def _write_lines(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    lines: list[tuple[str, tuple[int, int, int]]],
    width: float,
    size: int = 12,
) -> None:
    """Lines in their colours, one below the other, broken between words where they are wider than `width`."""
    (x, y), font = at, caption_font(size)
    for text, colour in lines:
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and draw.textlength(longer, font=font) > width:
                draw.text((x, y), line, fill=colour, font=font)
                y, line = y + size + 2, f"  {word}"
            else:
                line = longer if not line.startswith("  ") else f"{line} {word}"
        draw.text((x, y), line, fill=colour, font=font)
        y += size + 5


def _frame(engine: PromptEngine, row: int) -> tuple[float, float, float]:
    """Left, top and side of what is shown of an image: the view, and a little around it."""
    left, top, side = (float(v) for v in engine.episodes.view[row])
    shift = side * (MARGIN - 1) / 2
    return left - shift, top - shift, side * MARGIN


def _scene(
    engine: PromptEngine, row: int, mask: NDArray[np.bool_], frame: tuple[float, float, float], size: int
) -> Image.Image:
    """An episode's image with a mask in blue and the truth's outline in yellow, size x size px."""
    pixels = Image.fromarray(engine.data.image(int(engine.episodes.image[row])))
    image = _cut(pixels, frame, Image.Resampling.BICUBIC, size)
    drawn, truth = (_enlarged(one, frame, size) for one in (mask, engine.truth(row)))
    tint = Image.new("RGB", image.size, MASK)
    image.paste(tint, mask=drawn.point(lambda v: 90 * (v > 0)))
    image.paste(tint, mask=_outline(drawn))
    image.paste(Image.new("RGB", image.size, TRUTH), mask=_outline(truth))
    return image


def film_strip(frames: list[NDArray[np.uint8]], columns: int, gap: int = 8) -> NDArray[np.uint8]:
    """Frames of one size side by side, `columns` in a row, on a dark ground; (H, W, 3) uint8."""
    height, width = frames[0].shape[:2]
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, np.uint8)
    for i, frame in enumerate(frames):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = frame
    return sheet


def _cut(image: Image.Image, frame: tuple[float, float, float], resampling: Image.Resampling, size: int) -> Image.Image:
    left, top, side = frame
    coefficients = (side / size, 0, left, 0, side / size, top)
    return image.transform((size, size), Image.Transform.AFFINE, coefficients, resampling)


def _outline(mask: Image.Image) -> Image.Image:
    """The mask's rim, two pixels wide."""
    inner = mask.filter(ImageFilter.MinFilter(5))
    return Image.fromarray(np.asarray(mask) & ~np.asarray(inner))


def _dashed_box(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], dash: float = 8) -> None:
    x0, y0, x1, y1 = corners
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        a, b = np.array(start), np.array(end)
        length = max(float(np.hypot(*(b - a))), 1.0)
        for t in np.arange(0, length, 2 * dash):
            segment = [tuple(a + (b - a) * min(s, length) / length) for s in (t, t + dash)]
            draw.line(segment, fill=CUE, width=1)


def _click(draw: ImageDraw.ImageDraw, at: tuple[float, float], positive: bool, number: int) -> None:
    x, y = at
    radius = 9
    colour = POSITIVE if positive else NEGATIVE
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(255, 255, 255), width=2)
    draw.line((x - 4, y, x + 4, y), fill=(255, 255, 255), width=2)
    if positive:
        draw.line((x, y - 4, x, y + 4), fill=(255, 255, 255), width=2)
    draw.text((x + radius + 2, y - radius - 4), str(number), fill=(255, 255, 255), font=caption_font(13),
              stroke_width=1, stroke_fill=(0, 0, 0))  # fmt: skip


def _caption(
    draw: ImageDraw.ImageDraw, engine: PromptEngine, row: int, legend: list[tuple[str, tuple[int, int, int]]]
) -> None:
    info, episodes = engine.info(row), engine.episodes
    progress = f"prompt {info['prompts']} of {engine.settings.max_prompts}"
    if episodes.stopped[row]:
        progress += ", stopped"
    quality = f"IoU {info['iou']:.3f}  ({info['iou'] - engine.first_iou[row]:+.3f})"
    if "f1" in info:
        quality = f"F1 {info['f1']:.2f}, grounded {info['grounded_f1']:.2f}"
    draw.text((10, 6), quality, fill=INK, font=caption_font(20))
    draw.text((SIZE - 10, 8), progress, fill=INK, font=caption_font(16), anchor="ra")
    origin = "" if info["source"] == engine.settings.dataset else f"  [{info['source']}]"
    target = engine.text if engine.text_embedding is not None else f"object {info['object']}"
    x = float(SIZE - 10)
    for text, colour in legend:
        draw.text((x, 38), text, fill=colour, font=caption_font(13), anchor="ra")
        x -= draw.textlength(text, font=caption_font(13)) + 12
    what = f"image {info['image']}, {target}{origin}"
    while len(what) > 1 and draw.textlength(what, font=caption_font(13)) > x - 10:
        what = what[:-2] + "…"
    draw.text((10, 38), what, fill=INK, font=caption_font(13))


def caption_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font of captions."""
    return ImageFont.load_default(size)
