"""The generator of smears: determinism, and what its labels promise."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from sam_gym.data.smears import BACKGROUND, CLASS_NAMES, CYTOPLASM, NUCLEUS, RED_CELL, generate_smear

ARRAYS = ("image", "cells", "classes")

DIGEST = """
import hashlib
from sam_gym.data.smears import generate_smear
digest = hashlib.sha256()
for seed in (0, 5, 20003):
    smear = generate_smear(seed)
    for name in ("image", "cells", "classes"):
        digest.update(getattr(smear, name).tobytes())
"""


@pytest.fixture(scope="module")
def smears():
    return [generate_smear(seed) for seed in range(16)]


def test_equal_in_a_fresh_process():
    here: dict = {"hashlib": hashlib}
    exec(DIGEST, here)
    command = [sys.executable, "-W", "ignore", "-c", "import hashlib" + DIGEST + "print(digest.hexdigest())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here["digest"].hexdigest()


def test_seed_decides():
    first, again, other = generate_smear(3), generate_smear(np.random.default_rng(3)), generate_smear(4)
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_types_and_shapes(smears):
    for smear in smears:
        assert smear.image.shape == (128, 128, 3)
        assert [getattr(smear, name).dtype for name in ARRAYS] == [np.uint8, np.int32, np.uint8]
        assert smear.cells.shape == smear.classes.shape == (128, 128)
        assert smear.classes.max() < len(CLASS_NAMES)


def test_cells_and_classes_agree(smears):
    for smear in smears:
        assert np.array_equal(smear.cells > 0, smear.classes != BACKGROUND)
        red = set(np.unique(smear.cells[smear.classes == RED_CELL]))
        white = set(np.unique(smear.cells[np.isin(smear.classes, (CYTOPLASM, NUCLEUS))]))
        assert not red & white


def test_a_white_cell_with_its_nucleus_is_near_the_middle(smears):
    for smear in smears:
        white = np.isin(smear.classes, (CYTOPLASM, NUCLEUS))
        assert white[32:96, 32:96].mean() > 0.15
        for cell in np.unique(smear.cells[white]):
            assert ndimage.label(smear.cells == cell, np.ones((3, 3)))[1] <= 2  # another white cell may lie across it
        assert (smear.classes == NUCLEUS).sum() >= 40


def test_smears_hold_what_there_is_to_tell_apart(smears):
    assert sum((smear.classes == RED_CELL).any() for smear in smears) > 8
    darker = []
    for smear in smears:
        grey = smear.image.mean(axis=2)
        darker.append(grey[smear.classes == CYTOPLASM].mean() - grey[smear.classes == NUCLEUS].mean())
    assert np.median(darker) > 20  # nuclei are what stains
    colours = [np.median(smear.image[smear.classes == BACKGROUND], axis=0) for smear in smears]
    assert np.std(colours, axis=0).max() > 15  # domain randomisation


@pytest.mark.parametrize("size", [32, 77, 200])
def test_any_size(size):
    assert generate_smear(1, size).classes.shape == (size, size)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"seed": 0, "size": 16}, "at least 32 px"), ({"seed": -1}, "non-negative")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_smear(**arguments)
