"""`SegmentationData`: the images of one split, their labels, and the table of all objects in them.

NumPy in memory, checked once, read-only afterwards, so that any number of environments can share it. Where the arrays
come from is the business of `sam_gym.data.datasets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sam_gym.data.images import to_rgb_uint8

MIN_AREA, MAX_AREA = 200, 60_000  # px; below, annotators disagree about every pixel; above, it is background


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """All objects of a split, one row each, ordered by image and then by id. The arrays are read-only.

    Attributes:
        image_index: int32 (M,), which image of the split.
        object_id: int32 (M,), the object's value in that image's labels. Ids keep their gaps: those of objects outside
            the area limits are missing here, and not used again.
        area: int32 (M,), px.
        box: float32 (M, 4), tight (x0, y0, x1, y1) in px of the image frame. x1 and y1 are exclusive edges: x1 = last
            column + 1, so that x1 - x0 is the width, and 1 for a single pixel.
    """

    image_index: npt.NDArray[np.int32]
    object_id: npt.NDArray[np.int32]
    area: npt.NDArray[np.int32]
    box: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.object_id)


class SegmentationData:
    """One split of one dataset: images, instance labels, objects.

    Args:
        name: The dataset that was asked for.
        split: Its split.
        source: What the pixels really are: the name of the dataset they come from. It differs from `name` for a
            stand-in.
        image_ids: A name for each image, unique.
        images: One image each, as `to_rgb_uint8` takes it.
        labels: One integer array (H, W) each: 0 = none, else an object's id. An object need not be connected.
        min_area: Objects of fewer px are left out of the table (not out of the labels).
        max_area: Objects of more px are left out likewise.

    Attributes:
        name, split, source, image_ids, min_area, max_area: As given.
        labelled: Whether the objects' masks are known; only those of `UnlabelledData` are not.
        objects: The `ObjectTable`.

    Raises:
        ValueError: Lists of unequal length, repeated ids, an image that is none, labels that are no integers >= 0 or
            whose shape is not their image's, area limits below 1 or in the wrong order, or no object within them.
    """

    labelled = True

    def __init__(
        self,
        name: str,
        split: str,
        source: str,
        image_ids: Sequence[str],
        images: Sequence[npt.ArrayLike],
        labels: Sequence[npt.ArrayLike],
        *,
        min_area: int = MIN_AREA,
        max_area: int = MAX_AREA,
    ) -> None:
        check_area_limits(min_area, max_area)
        self.name, self.split, self.source = name, split, source
        self.image_ids = tuple(image_ids)
        self.min_area, self.max_area = int(min_area), int(max_area)
        if not len(self.image_ids) == len(images) == len(labels):
            raise ValueError(f"{len(self.image_ids)} image ids, {len(images)} images, {len(labels)} labels: unequal")
        self._index = {image_id: index for index, image_id in enumerate(self.image_ids)}
        if len(self._index) < len(self.image_ids):
            raise ValueError(f"image ids must be unique: {self.image_ids}")
        self._images = tuple(
            _frozen_image(image, image_id) for image_id, image in zip(self.image_ids, images, strict=True)
        )
        self._labels = tuple(
            _frozen_labels(label, image.shape[:2], image_id)
            for image_id, image, label in zip(self.image_ids, self._images, labels, strict=True)
        )
        self.objects = _object_table(self._labels, self.min_area, self.max_area)
        if not len(self.objects):
            raise ValueError(
                f"no object of {name} {split} has min_area={min_area} <= area <= max_area={max_area} px"
                f" ({len(_object_table(self._labels, 1, 2**31 - 1))} objects of any area)"
            )

    def __repr__(self) -> str:
        stand_in = "" if self.source == self.name else f", source={self.source!r}"
        return (
            f"SegmentationData({self.name!r}, {self.split!r}{stand_in}: {len(self.image_ids)} images, "
            f"{len(self.objects)} objects of {self.min_area}..{self.max_area} px)"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Built anew, because NumPy's own pickling and copying forget that an array is read-only.
        rest = (self.name, self.split, self.source, self.image_ids, self._images, self._labels)
        return _rebuild, (rest, self.min_area, self.max_area)

    def image(self, image: int | str) -> npt.NDArray[np.uint8]:
        """An image as uint8 (H, W, 3) RGB, read-only. `image` is its index in this split or its id."""
        return self._images[self.image_index(image)]

    def labels(self, image: int | str) -> npt.NDArray[np.int32]:
        """An image's labels as int32 (H, W), 0 = none, else an object's id; read-only."""
        return self._labels[self.image_index(image)]

    def mask(self, image: int | str, object_id: int) -> npt.NDArray[np.bool_]:
        """The mask of an object, bool (H, W); also of one outside the area limits.

        Args:
            image: Index in this split, or image id.
            object_id: The object's value in the labels.

        Raises:
            ValueError: No such image, or no pixel of it has this label.
        """
        index = self.image_index(image)
        mask = self._labels[index] == object_id
        if object_id <= 0 or not mask.any():
            raise ValueError(f"{self._no_object(index, object_id)}: its mask would be empty")
        return mask

    def find(self, image: int | str, object_id: int) -> int:
        """The row of an object in `objects`.

        Args:
            image: Index in this split, or image id.
            object_id: The object's value in the labels.

        Raises:
            ValueError: No such image, no such object, or it lies outside the area limits. The message says which, and
                what there is.
        """
        index = self.image_index(image)
        rows = np.flatnonzero((self.objects.image_index == index) & (self.objects.object_id == object_id))
        if len(rows):
            return int(rows[0])
        area = int((self._labels[index] == object_id).sum()) if object_id > 0 else 0
        if area:
            raise ValueError(
                f"object {object_id} of {self.image_ids[index]} has {area} px, outside "
                f"min_area={self.min_area}..max_area={self.max_area}"
            )
        raise ValueError(self._no_object(index, object_id))

    def draw(self, rng: np.random.Generator) -> int:
        """The row in `objects` of an object drawn at random, each as likely as any other."""
        return int(rng.integers(len(self.objects)))

    def spread(self, count: int) -> npt.NDArray[np.intp]:
        """`count` rows of `objects`, evenly spread over it; more than there are name some of them twice."""
        return np.linspace(0, len(self.objects) - 1, count).round().astype(np.intp)

    def hash(self) -> str:
        """Sha256, hexadecimal, over image ids, pixels, labels and object table, for the provenance of results."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256("\n".join((self.source, *self.image_ids)).encode())
        table = [getattr(self.objects, field.name) for field in fields(self.objects)]
        for array in (*self._images, *self._labels, *table):
            little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
            digest.update(little_endian.tobytes())
        return digest.hexdigest()

    def image_index(self, image: int | str) -> int:
        """The index in this split of an image given by index or id; ValueError, naming what there is, if none."""
        if isinstance(image, str):
            if image in self._index:
                return self._index[image]
            raise ValueError(f"{self.name} {self.split} has no image {image!r}; there are {_listed(self.image_ids)}")
        if not 0 <= image < len(self.image_ids):
            raise ValueError(f"{self.name} {self.split} has images 0..{len(self.image_ids) - 1}, not {image}")
        return int(image)

    def _no_object(self, index: int, object_id: int) -> str:
        here = self.objects.object_id[self.objects.image_index == index]
        return f"{self.image_ids[index]} has no object {object_id}; within the area limits there are {_listed(here)}"


def number_regions(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """The 4-connected regions of a mask (H, W) as labels: 1, 2, ... in raster order of their first pixel, else 0."""
    from scipy import ndimage

    return ndimage.label(mask)[0].astype(np.int32)


def check_area_limits(min_area: int, max_area: int) -> None:
    """Raise ValueError unless 1 <= min_area <= max_area."""
    if not 1 <= min_area <= max_area:
        raise ValueError(f"area limits must be 1 <= min_area <= max_area, got min_area={min_area}, max_area={max_area}")


def _rebuild(arguments: tuple, min_area: int, max_area: int) -> SegmentationData:
    return SegmentationData(*arguments, min_area=min_area, max_area=max_area)


def _frozen_image(image: npt.ArrayLike, name: str) -> npt.NDArray[np.uint8]:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and _owns_frozen(image):
        return image  # shared with another view of the same split
    return _freeze(to_rgb_uint8(image, f"image {name}"))


def _frozen_labels(labels: npt.ArrayLike, shape: tuple[int, ...], name: str) -> npt.NDArray[np.int32]:
    array = np.asarray(labels)
    if array.shape != shape:
        raise ValueError(f"labels of {name} have shape {array.shape}, its image has {shape}")
    if array.dtype.kind not in "bui":
        raise ValueError(f"labels of {name} must be integers, got dtype {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int32).max:
        raise ValueError(f"labels of {name} must lie in 0..2**31-1, got {array.min()}..{array.max()}")
    if array.dtype == np.int32 and _owns_frozen(array):
        return array
    return _freeze(array.astype(np.int32))


def _owns_frozen(array: npt.NDArray[np.generic]) -> bool:
    return not array.flags.writeable and array.base is None and array.flags.c_contiguous


def _freeze(array: npt.NDArray) -> npt.NDArray:
    array.setflags(write=False)
    return array


def _object_table(labels: Sequence[npt.NDArray[np.int32]], min_area: int, max_area: int) -> ObjectTable:
    from scipy import ndimage

    columns: list[list[np.ndarray]] = [[], [], [], []]
    for index, label in enumerate(labels):
        if int(label.max()) <= label.size:
            ids, compact = np.arange(int(label.max()) + 1, dtype=np.int32), label
        else:  # sparse ids: number them without gaps, so that nothing grows with the largest
            ids, inverse = np.unique(np.append(0, label), return_inverse=True)
            compact = inverse[1:].reshape(label.shape).astype(np.int32)
        areas = np.bincount(compact.ravel(), minlength=len(ids))
        kept = np.flatnonzero((areas >= min_area) & (areas <= max_area))
        kept = kept[kept > 0]
        slices = ndimage.find_objects(compact)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in (slices[k - 1] for k in kept)]
        columns[0].append(np.full(len(kept), index))
        columns[1].append(ids[kept])
        columns[2].append(areas[kept])
        columns[3].append(np.array(boxes).reshape(-1, 4))
    types = (np.int32, np.int32, np.int32, np.float32)
    empty = (np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 4)))
    return ObjectTable(
        *(_freeze(np.concatenate([none, *c]).astype(t)) for none, c, t in zip(empty, columns, types, strict=True))
    )


def _listed(items: Sequence[object] | npt.NDArray, limit: int = 12) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return (shown or "none") + (f", ... ({len(items)} in all)" if len(items) > limit else "")
