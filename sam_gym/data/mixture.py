"""Several datasets as one: an agent of many microscopes is trained on their mixture.

Every dataset is drawn equally often, however many objects it has. Where the datasets come from is not decided here:
`load_data("isbi2012+dsb2018-153")` loads each and mixes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sam_gym.data.segmentation import SegmentationData

BETWEEN = "+"
"""Between the names of datasets in the name of their mixture."""


class MixedData(SegmentationData):
    """One split of several datasets. Image ids are "<dataset>/<id>".

    Args:
        parts: The same split of each, with the same area limits.

    Attributes:
        parts: As given.

    Raises:
        ValueError: Fewer than two parts, parts of two splits or with two sets of limits, or one dataset twice.
    """

    def __init__(self, parts: Sequence[SegmentationData]) -> None:
        if len(parts) < 2:
            raise ValueError(f"a mixture has two datasets at least, got {[part.name for part in parts]}")
        first = parts[0]
        for part in parts[1:]:
            mine = part.split, part.min_area, part.max_area
            if mine != (first.split, first.min_area, first.max_area):
                raise ValueError(f"parts of a mixture share a split and area limits: {first} and {part} do not")
        super().__init__(
            BETWEEN.join(part.name for part in parts),
            first.split,
            BETWEEN.join(part.source for part in parts),
            [f"{part.name}/{image_id}" for part in parts for image_id in part.image_ids],
            [part.image(i) for part in parts for i in range(len(part.image_ids))],
            [part.labels(i) for part in parts for i in range(len(part.image_ids))],
            min_area=first.min_area,
            max_area=first.max_area,
        )
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part.objects) for part in parts])

    def __reduce__(self) -> tuple[object, ...]:
        return MixedData, (self.parts,)

    def draw(self, rng: np.random.Generator) -> int:
        """The row of an object in `objects`: a dataset first, then one of its objects."""
        part = int(rng.integers(len(self.parts)))
        return int(self._ends[part] - 1 - rng.integers(len(self.parts[part].objects)))

    def spread(self, count: int) -> npt.NDArray[np.intp]:
        """Rows of `objects`: of each dataset as many as of the others, evenly spread over it; see `SegmentationData`.

        A dataset that has too few has all of its rows taken, and others stand in for the rest.
        """
        left, chosen = count, []
        sizes = [len(part.objects) for part in self.parts]
        for place, index in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
            share = min(sizes[index], left // (len(sizes) - place))
            chosen.append(self._ends[index] - sizes[index] + self.parts[index].spread(share))
            left -= share
        return np.sort(np.concatenate(chosen))

    def changed(self, change: Callable[[SegmentationData], SegmentationData]) -> MixedData:
        """The mixture of its changed parts."""
        return MixedData([change(part) for part in self.parts])
