"""Zero-shot accuracy on regions of real images: is a region nearest to the text of what it is?

Three datasets that region-text scores will be used on, and the classes that have to be told apart there. The regions
are fixed: the same split gives the same ones, whatever the model. Nothing is trained here, and clip-micro has seen no
image of any of them but the *training* images of DSB 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_gym.data import SegmentationData, load_data
from sam_gym.semantics.captions import EDGE
from sam_gym.semantics.regions import MIN_PIXELS, Bools, Region, displaced, ring
from sam_gym.semantics.scorer import RegionScorer
from sam_gym.semantics.views import region_views

MAX_OBJECTS = 200
"""Objects of a dataset that are asked about, evenly spread over the split; each gives a region of every class."""
MIN_NUCLEUS = 50  # px; as for the environments of DSB 2018
MEMBRANE_REACH = 1.5
"""Side of the square whose membranes are one region, in extents of the mitochondrion that it is drawn for."""


@dataclass(frozen=True)
class ZeroShotTask:
    """Classes to tell apart in one dataset.

    Attributes:
        name: For tables.
        texts: K class texts.
        regions: split -> the regions of that split, each of one of `texts`. Real images only.
    """

    name: str
    texts: tuple[str, ...]
    regions: Callable[[str], Iterator[Region]]


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """What became of each region of a task.

    Attributes:
        texts: The K classes.
        truth: int (N,), index into `texts`.
        probabilities: float64 (N, K), of each text for each region.
    """

    texts: tuple[str, ...]
    truth: NDArray[np.intp]
    probabilities: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether a region is nearest to its own text."""
        return self.probabilities.argmax(axis=1) == self.truth

    @property
    def by_class(self) -> dict[str, float]:
        """Accuracy on the regions of each class."""
        return {text: float(self.right[self.truth == k].mean()) for k, text in enumerate(self.texts)}

    @property
    def accuracy(self) -> float:
        """Mean over the classes, so that one with many regions weighs no more than another; chance is 1 / K."""
        return float(np.mean(list(self.by_class.values())))

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.texts)


def classify(scorer: RegionScorer, regions: Sequence[Region], texts: Sequence[str]) -> ZeroShotResult:
    """Ask a scorer which of the texts fits each region best.

    Args:
        scorer: Its model, view and margin are used.
        regions: N regions, each of one of `texts`, at least one of each.
        texts: K class texts, used as they are.

    Raises:
        ValueError: A class has no region, or a region's class is not among `texts`.
    """
    truth = np.array([list(texts).index(region.text) for region in regions], np.intp)
    if missing := set(range(len(texts))) - set(truth.tolist()):
        raise ValueError(f"no regions of {', '.join(repr(texts[k]) for k in sorted(missing))}")
    pixels = region_views(
        [region.image for region in regions], [region.mask for region in regions], scorer.clip, scorer.view,
        margin=scorer.margin,
    )  # fmt: skip
    embedded = scorer.clip.embed_images(pixels).double() @ scorer.embed_texts(texts).double().T
    odds = (scorer.clip.logit_scale * embedded).softmax(dim=1)
    return ZeroShotResult(tuple(texts), truth, odds.cpu().numpy())


# ---------------------------------------------------------------------------------------------- the regions


def wbc_regions(split: str) -> Iterator[Region]:
    """Of each crop: the nucleus, the cytoplasm, and background in the nucleus' shape (red cells may be in it)."""
    nuclei, cells = (load_data(name, split, "real", min_area=1) for name in ("wbc-nucleus", "wbc-cell"))
    for index in range(len(nuclei.image_ids)):
        image, nucleus, cell = nuclei.image(index), nuclei.labels(index) > 0, cells.labels(index) > 0
        background = displaced(nucleus, cell, np.random.default_rng(index))
        yield from _enough(
            Region(image, nucleus, "nucleus of a white blood cell"),
            Region(image, cell & ~nucleus, "cytoplasm of a white blood cell"),
            None if background is None else Region(image, background, "background of a blood smear"),
        )


def dsb_regions(split: str) -> Iterator[Region]:
    """Nuclei, rings on both sides of their outlines, and background in their shapes."""
    data = load_data("dsb2018", split, "real", min_area=MIN_NUCLEUS)
    for row in _spread(data):
        image, labels, mask = _object(data, row)
        background = displaced(mask, labels > 0, np.random.default_rng(row))
        yield from _enough(
            Region(image, mask, "nucleus"),
            Region(image, ring(mask, 0.1), EDGE),
            None if background is None else Region(image, background, "background"),
        )


def vnc_regions(split: str) -> Iterator[Region]:
    """Mitochondria, as many cells without their mitochondria, and membranes in squares at random places."""
    mitochondria, cells = (load_data(name, split, "real") for name in ("vnc-mitochondria", "vnc-cells"))
    for row in _spread(mitochondria):
        image, _, mask = _object(mitochondria, row)
        index = int(mitochondria.objects.image_index[row])
        rng = np.random.default_rng(row)
        inside = cells.labels(index)
        membranes = inside == 0
        y, x = divmod(int(rng.choice(np.flatnonzero(membranes))), membranes.shape[1])
        x0, y0, x1, y1 = mitochondria.objects.box[row]
        reach = int(MEMBRANE_REACH * max(x1 - x0, y1 - y0) / 2)
        near = np.zeros_like(membranes)
        near[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
        own = np.flatnonzero(cells.objects.image_index == index)
        cell = inside == cells.objects.object_id[rng.choice(own)]
        yield from _enough(
            Region(image, mask, "mitochondrion"),
            Region(image, membranes & near, "membrane"),
            Region(image, cell & (mitochondria.labels(index) == 0), "cell interior"),
        )


TASKS = (
    ZeroShotTask(
        "WBC",
        ("nucleus of a white blood cell", "cytoplasm of a white blood cell", "background of a blood smear"),
        wbc_regions,
    ),
    ZeroShotTask("DSB", ("nucleus", "background"), dsb_regions),
    ZeroShotTask("DSB with edges", ("nucleus", EDGE, "background"), dsb_regions),
    ZeroShotTask("VNC", ("mitochondrion", "membrane", "cell interior"), vnc_regions),
)


def task_regions(task: ZeroShotTask, split: str) -> list[Region]:
    """The regions of a task's classes.

    Raises:
        DataUnavailableError: The real images cannot be had.
    """
    return [region for region in task.regions(split) if region.text in task.texts]


def _spread(data: SegmentationData) -> list[int]:
    """Rows of the object table, evenly spread over it."""
    count = min(MAX_OBJECTS, len(data.objects))
    return np.linspace(0, len(data.objects) - 1, count).round().astype(int).tolist()


def _object(data: SegmentationData, row: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], Bools]:
    index = int(data.objects.image_index[row])
    labels = data.labels(index)
    return data.image(index), labels, labels == data.objects.object_id[row]


def _enough(*regions: Region | None) -> Iterator[Region]:
    """Those of at least `MIN_PIXELS`."""
    return (region for region in regions if region is not None and region.mask.sum() >= MIN_PIXELS)
