"""Cells and nuclei of the procedural smears (`sam_gym.data.smears`) as two datasets.

They are what an agent of many microscopes learns blood smears from where the terms of real ones forbid shipping what
was learned. No number measured on them says anything about real blood.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from sam_gym.data.segmentation import number_regions
from sam_gym.data.smears import CYTOPLASM, NUCLEUS, Smear, generate_smear
from sam_gym.data.spec import DatasetSpec, Sample, read_splits

SPLITS = read_splits("synthetic-smears")


@lru_cache(maxsize=256)
def _smear(image_id: str) -> Smear:
    """A smear; its id ends in its seed."""
    return generate_smear(int(image_id.rsplit("-", 1)[1]))


def read_cells(_root: Path, image_id: str) -> Sample:
    """One smear, uint8 (128, 128, 3), and its white and red cells, int32 (128, 128)."""
    smear = _smear(image_id)
    return smear.image, smear.cells


def read_nuclei(_root: Path, image_id: str) -> Sample:
    """One smear, uint8 (128, 128, 3), and the nuclei of its white cells, int32 (128, 128).

    Lobes of one nucleus are one object, though they may be apart.
    """
    smear = _smear(image_id)
    white = number_regions(np.isin(smear.classes, (CYTOPLASM, NUCLEUS)))
    return smear.image, np.where(smear.classes == NUCLEUS, white, 0)


CELLS = DatasetSpec(
    name="synthetic-smear-cells",
    title="Procedural blood smears, white and red cells as instances",
    licence="as sam_gym itself",
    citation="sam_gym.data.smears",
    splits=SPLITS,
    read=read_cells,
    text="blood cell",
)

NUCLEI = DatasetSpec(
    name="synthetic-smear-nuclei",
    title="Procedural blood smears, nuclei of white cells as instances",
    licence="as sam_gym itself",
    citation="sam_gym.data.smears",
    splits=SPLITS,
    read=read_nuclei,
    text="nucleus of a white blood cell",
)
