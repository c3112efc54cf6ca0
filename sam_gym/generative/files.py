"""Where the weights of a set of pictures are: in the cache, where `train_base` writes them, else in the package.

The package has those of the generated smears; the others one trains.
"""

from __future__ import annotations

from pathlib import Path

from sam_gym._utils import fetching
from sam_gym.generative.model import ModelError

NAMES = {"smears": "Smears", "dsb2018-153": "DSB", "wbc-cell": "WBC", "synthetic-em": "Synthetic"}
"""Set of pictures -> what ids and commands call it."""


PACKAGED = Path(__file__).resolve().parent / "weights"
"""A folder for each set of pictures whose weights ship."""


def trained_folder(dataset: str) -> Path:
    """Where `train_base` writes by default, and environments look."""
    return fetching.cache_dir() / "denoise" / dataset


def weights_file(dataset: str, what: str) -> Path:
    """The file of a set's "base", "reward" or "judge".

    Raises:
        ModelError: Nobody has trained it here.
    """
    own = trained_folder(dataset)
    for folder in (own, PACKAGED / dataset):
        if (path := folder / f"{what}.safetensors").is_file():
            return path
    raise ModelError(
        f"there are no weights ({what}) for {dataset}. This command trains them, and writes to {own}, where "
        f"environments find them:\n"
        f"  python -m sam_gym.generative.train_base --dataset {NAMES.get(dataset, dataset)}"
    )
