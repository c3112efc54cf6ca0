"""`sam-gym segment`: masks for one's own images and boxes. The work is done by `Segmenter` and `SegmentFolder`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from sam_gym._utils.naming import question
from sam_gym._utils.progress import progress_bar
from sam_gym.commands.common import Precision, load_agent, say

if TYPE_CHECKING:
    from sam_gym.annotate.contact_sheet import Tile
    from sam_gym.annotate.cue_boxes import CueBox
    from sam_gym.annotate.segment_folder import BoxRow, SegmentFolder
    from sam_gym.annotate.segmenting import Segmenter
    from sam_gym.sb3.saved import SavedAgent

Pictures = Mapping[str, Callable[[], np.ndarray]]
"""Images by name, and what reads each."""

AUTO, NONE = "auto", "none"
"""Values of --agent that are no files."""

GENERALIST = Path(__file__).resolve().parent.parent / "sb3" / "generalist.zip"
"""The agent that comes with the package, see docs/results/generalist.md."""

TILES = 48
"""Images on the contact sheet; of more, so many evenly spread."""


def segment(
    images: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    boxes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    text: Annotated[str | None, tyro.conf.arg(metavar="WORDS")] = None,
    way: str = "shades",
    clip: str = "clip-micro",
    agent: Annotated[str, tyro.conf.arg(metavar="auto|none|AGENT")] = AUTO,
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Precision = "auto",
    window: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> None:
    """Segment images of your own: a box around each object, or a text, goes in; a mask of each comes out.

    For example:

        sam-gym segment --images photos --boxes boxes.csv --out masks
        sam-gym segment --images photos --boxes boxes.csv --out plain --agent none
        sam-gym segment --images photos --boxes boxes.csv --out mine --agent runs/NAME/model.zip

    In the first the agent that comes with the package improves SAM's mask of each box by up to five clicks, and returns
    the mask that it thinks best. The second takes SAM's mask as it is. In the third an agent of yours clicks, or moves
    the box, as it was trained to. boxes.csv has a header and a row a box, in pixels of the image:

        image,x0,y0,x1,y1
        cell-01.png,120,44,260,190

    Without boxes, a text says what to look for. Boxes are proposed then, and written to proposals.csv for you to look
    at, to correct, and to use as --boxes:

        sam-gym segment --images photos --text nucleus --out masks

    It writes into --out:

        labels/IMAGE.png    integers: 0, or the box's label; where masks overlap, of the smaller one
        boxes.csv           a row a box: label, area, predicted IoU, prompts given, or the error
        contact_sheet.png   images, boxes and masks to look at
        run.json            agent, SAM, settings and versions

    An image that fails is reported and the others go on; exit status 1 then. Ctrl-C keeps what is done, and the same
    command goes on from there. Embeddings are kept as by sam-gym encode.

    Args:
        images: Folder of images, those of its subfolders included: PNG, JPEG, TIFF, BMP, NPY, NPZ, NIfTI, DICOM. Slices
            of a stack or a volume have numbers from 0 on: stack.tif/07, ct.nii.gz/041, data.npz/test/12.
        text: What to look for, in place of --boxes, such as nucleus, mitochondrion, white blood cell.
        way: How boxes are proposed: shades (bright or dark parts that look like the text), map (where CLIP finds the
            text), gscorecam (another map of that, slower), sam (SAM's masks everywhere that look like the text; half a
            minute an image), otsu (the rarer shade, whatever the text is), whole.
        clip: What compares regions with the text: clip-micro, or as in sam-gym evaluate.
        boxes: CSV as above (x1 and y1 exclusive; images by their path below --images; a column id, 1..65535, sets
            labels that are else 1, 2, ... in each image), or the JSON of a COCO dataset.
        out: Folder of the results.
        agent: auto, the agent of the package, where --checkpoint is mobile_sam, which it was trained with; none, the
            boxes alone; or a model.zip of sam-gym train, a folder of sam-gym push, hf:OWNER/NAME. Whether it clicks or
            moves boxes is read off it. A zip file can run code: use those of people you trust.
        checkpoint: SAM weights: a name or a file, for an agent those it was trained with.
        device: Where SAM and the agent run: auto, cpu, cuda.
        precision: SAM's decoder: exact (float32), fast (bfloat16), official (segment_anything's own), auto (fast where
            the hardware has bfloat16, else exact).
        window: Of NIfTI and DICOM: centre and width of the values that become black to white; default the files' own.
        overwrite: Do everything again, whatever is there.
    """
    if not images.is_dir():
        raise ValueError(f"--images {images} is no folder")
    from sam_gym.annotate.cue_boxes import read_cue_boxes

    if (boxes is None) == (text is None):
        raise ValueError("give --boxes FILE, or --text WORDS to have boxes proposed: one of them")
    pictures = _pictures(images, out, window)
    if boxes is None:
        assert text is not None, "one of them is there"
        boxes = _proposed(pictures, out, text, way, clip, checkpoint, device, precision, overwrite=overwrite)
    cues = read_cue_boxes(boxes)
    _check_names(pictures, cues)
    from sam_gym.annotate.segment_folder import SegmentFolder
    from sam_gym.annotate.segmenting import Segmenter
    from sam_gym.evaluation.report import provenance

    segmenter = Segmenter(agent_of(agent, checkpoint, device), checkpoint, device, precision)
    results = SegmentFolder(out)
    shown = {} if window is None else {"window": window}
    results.open({**segmenter.provenance(), **shown}, provenance(), overwrite=overwrite)
    waiting = [name for name in cues if not results.done(name, cues[name])]
    worked, interrupted = [], False
    with progress_bar("segment", len(cues), "image", done=len(cues) - len(waiting)) as bar:
        try:
            for name in waiting:
                rows, labels = _segment_one(segmenter, name, pictures, cues[name])
                results.write(name, rows, labels)
                worked.append(name)
                for error in dict.fromkeys(row.error for row in rows if row.error):
                    say(f"cannot segment {name}: {error}")
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    results.close(list(cues))
    if not interrupted:
        _write_sheet(results, pictures, cues, out / "contact_sheet.png")
    _summarise(results, len(cues), len(cues) - len(waiting), worked, interrupted)


def _proposed(
    pictures: Pictures, out: Path, text: str, way: str, clip: str, checkpoint: str, device: str, precision: str,
    *, overwrite: bool,
) -> Path:  # fmt: skip
    """The file of the boxes that are proposed for a text; one that is there for the same is taken as it is."""
    from sam_gym.annotate.proposing import propose_boxes
    from sam_gym.sam.backend import get_backend
    from sam_gym.semantics import get_scorer
    from sam_gym.semantics.proposals import ProposalSettings, Proposer

    settings = ProposalSettings(way=way)
    backend = get_backend(checkpoint, device, precision) if way == "sam" else None
    proposer = Proposer(text, get_scorer(clip, device), backend, settings)
    for name, reason in propose_boxes(proposer, pictures, out, f"{text} ({way}, {clip})", overwrite=overwrite):
        say(f"nothing is proposed for {name}: {reason}")
    return out / "proposals.csv"


def agent_of(name: str, checkpoint: str, device: str) -> SavedAgent | None:
    """The agent of the option --agent."""
    if name == NONE:
        return None
    if name != AUTO:
        return load_agent(name, device)
    if checkpoint != "mobile_sam":
        say(f"the agent of the package was trained with mobile_sam: with {checkpoint} the boxes alone are segmented")
        return None
    try:
        return load_agent(GENERALIST, device)
    except ValueError as error:  # its dependencies are an extra
        say(f"the boxes alone are segmented, for the agent of the package cannot be loaded: {error}")
        return None


def _pictures(folder: Path, out: Path, window: tuple[float, float] | None) -> Pictures:
    """The images of a folder; those that the command itself has written are not among them."""
    from sam_gym.data.formats import find_pictures

    written = out.resolve()
    found = find_pictures(folder, window)
    return {name: read for name, read in found.items() if written not in (folder / name).resolve().parents}


def _check_names(names: Collection[str], cues: Mapping[str, object]) -> None:
    """Tell of images without a box; ValueError if two would have one label image."""
    if without := sorted(set(names) - cues.keys()):
        say(f"{len(without)} of {len(names)} images have no box and are left out, for one {without[0]}")
    targets: dict[PurePosixPath, str] = {}
    for name in cues:
        other = targets.setdefault(PurePosixPath(name).with_suffix(""), name)
        if other != name:
            raise ValueError(f"{other} and {name} would have one label image: rename one of them")


def _segment_one(
    segmenter: Segmenter, name: str, pictures: Pictures, cues: Sequence[CueBox]
) -> tuple[list[BoxRow], np.ndarray | None]:
    """The rows of one image, and its label image unless nothing of it could be done."""
    from PIL.Image import DecompressionBombError

    from sam_gym.annotate.segment_folder import BoxRow
    from sam_gym.annotate.segmenting import label_image

    try:
        image = _read(pictures, name)
        height, width = image.shape[:2]
        inside = [c for c in cues if c.box[0] < width and c.box[1] < height and c.box[2] > 0 and c.box[3] > 0]
        segments = dict(zip(inside, segmenter(image, [cue.box for cue in inside]) if inside else [], strict=True))
    except (ValueError, OSError, RuntimeError, MemoryError, DecompressionBombError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return [BoxRow.of(name, cue, error=message) for cue in cues], None
    rows = []
    for cue in cues:
        if (one := segments.get(cue)) is None:
            box = ", ".join(f"{value:g}" for value in cue.box)
            reason = f"the box {box} lies outside the image of {width} x {height} px"
            rows.append(BoxRow.of(name, cue, error=reason))
        else:
            estimate = f"{one.predicted_iou:.4f}"
            rows.append(BoxRow.of(name, cue, area=str(one.area), predicted_iou=estimate, prompts=str(one.prompts)))
    return rows, label_image((height, width), [cue.label for cue in segments], list(segments.values()))


def _read(pictures: Pictures, name: str) -> np.ndarray:
    """An image; ValueError where there is none, with the reason if it is a slice of a file that cannot be read."""
    for file in map(str, PurePosixPath(name).parents):
        if file in pictures:
            pictures[file]()
    if name not in pictures:
        raise ValueError(f"--images holds no image {name}.{question(name, sorted(pictures))}")
    return pictures[name]()


def _write_sheet(results: SegmentFolder, pictures: Pictures, cues: Mapping[str, Sequence[CueBox]], path: Path) -> None:
    from sam_gym._utils.fetching import atomic_path
    from sam_gym.annotate.contact_sheet import contact_sheet

    names = sorted(cues)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(TILES, len(names))).round().astype(int))]
    sheet = contact_sheet([_tile(results, pictures, name, cues[name]) for name in chosen])
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _tile(results: SegmentFolder, pictures: Pictures, name: str, cues: Sequence[CueBox]) -> Tile:
    from sam_gym.annotate.contact_sheet import Tile
    from sam_gym.data.images import open_pixels

    errors = [row.error for row in results.rows[name] if row.error]
    labels = results.label_path(name)
    if not (labels.is_file() and name in pictures):
        return Tile(name, errors[0] if errors else "the image is no longer there", failed=True)
    good = [row for row in results.rows[name] if not row.error]
    mean = sum(float(row.predicted_iou) for row in good) / max(1, len(good))
    what = "box" if len(good) == 1 else "boxes"
    note = f"{len(good)} {what}, predicted IoU {mean:.2f}" + (f", {len(errors)} failed" if errors else "")
    picture, boxes = pictures[name](), {cue.label: cue.box for cue in cues}
    return Tile(name, note, picture, open_pixels(labels), boxes, failed=bool(errors))


def _summarise(results: SegmentFolder, images: int, found: int, worked: Sequence[str], interrupted: bool) -> None:
    rows = [row for name in worked for row in results.rows[name]]
    failed = [name for name in worked if any(row.error for row in results.rows[name])]
    empty = sum(row.area == "0" for row in rows)
    print(
        f"{found + len(worked)} of {images} images: {len(worked) - len(failed)} segmented, {found} found, "
        f"{len(failed)} failed; {sum(not row.error for row in rows)} masks"
        + (f", {empty} of them empty" if empty else "")
        + f"; {results.folder}"
    )
    if interrupted:
        say("stopped; the same command goes on from here")
        sys.exit(130)
    if failed:
        sys.exit(1)
