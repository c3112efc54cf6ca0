"""ISBI 2012: thirty serial sections of fly ventral nerve cord in transmission electron microscopy, 512 x 512 px.

The published labels say membrane or not; an object is one 4-connected region of what is not membrane, so organelles
belong to their cell, and a cell that the section cuts twice is two objects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.images import open_pixels
from sam_gym.data.segmentation import number_regions
from sam_gym.data.spec import DatasetSpec, Sample, read_file_list, read_splits

NAME = "isbi2012"
BASE_URL = (
    "https://raw.githubusercontent.com/zhixuhao/unet/b45af4d458437d8281cc218a07fd4380818ece4a/data/membrane/train/"
)


def read_section(root: Path, image_id: str) -> Sample:
    """One section, "section-<number>": its grey image, uint8 (512, 512), and its cells, int32 (512, 512)."""
    number = image_id.rsplit("-", 1)[1]
    image, label = (open_pixels(root / NAME / kind / f"{number}.png") for kind in ("image", "label"))
    return image, cell_instances(label)


def cell_instances(label: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
    """Number the cells of a membrane label.

    Args:
        label: (H, W), 255 = cell, 0 = membrane; cut at 127.

    Returns:
        int32 (H, W): 0 = membrane, else 1, 2, ... for the 4-connected regions in raster order of their first pixel.
    """
    return number_regions(np.asarray(label) > 127)


SPEC = DatasetSpec(
    name=NAME,
    title="ISBI 2012 EM segmentation challenge: 30 ssTEM sections of Drosophila ventral nerve cord, cells as instances",
    licence="free for research, non-commercial use",
    citation=(
        "Cardona A. et al. (2010). An integrated micro- and macroarchitectural analysis of the Drosophila brain by "
        "computer-assisted serial section electron microscopy. PLoS Biology 8(10): e1000502"
    ),
    splits=read_splits(NAME),
    read=read_section,
    folder=NAME,
    files=read_file_list(NAME, BASE_URL),
    stand_in="synthetic-em",
    text="cell interior",
)
