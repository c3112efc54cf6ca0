"""The generator: determinism, and what its labels promise."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from sam_gym.data import load_data
from sam_gym.data.synthetic import CLASS_NAMES, CYTOPLASM, MEMBRANE, MITOCHONDRION, generate

SEEDS = range(12)
ARRAYS = ("image", "cells", "mitochondria", "classes")

DIGEST = """
import hashlib
from sam_gym.data.synthetic import generate
digest = hashlib.sha256()
for seed in (0, 5, 20003):
    section = generate(seed)
    for name in ("image", "cells", "mitochondria", "classes"):
        digest.update(getattr(section, name).tobytes())
"""


@pytest.fixture(scope="module")
def sections():
    return [generate(seed) for seed in SEEDS]


def test_equal_in_fresh_processes():
    here: dict = {"hashlib": hashlib}
    exec(DIGEST, here)
    for flags in ([], ["-X", "dev"]):
        command = [sys.executable, *flags, "-W", "ignore", "-c", DIGEST + "print(digest.hexdigest())"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == here["digest"].hexdigest()


def test_seed_decides():
    first, again, other = generate(3), generate(np.random.default_rng(3)), generate(4)
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_types_and_shapes(sections):
    for section in sections:
        assert section.image.shape == (256, 256, 3)
        assert [getattr(section, name).dtype for name in ARRAYS] == [np.uint8, np.int32, np.int32, np.uint8]
        assert section.cells.shape == section.mitochondria.shape == section.classes.shape == (256, 256)
        assert (section.image == section.image[:, :, :1]).all()
        assert section.classes.max() < len(CLASS_NAMES)


def test_every_object_is_connected(sections):
    for section in sections:
        for labels in (section.cells, section.mitochondria):
            ids = np.unique(labels)
            assert np.array_equal(ids, np.arange(len(ids)))  # 0, 1, 2, ... without gaps
            for object_id in ids[1:]:
                assert ndimage.label(labels == object_id)[1] == 1


def test_membranes_lie_between_cells(sections):
    for section in sections:
        cells = section.cells
        for a, b in ((cells[1:], cells[:-1]), (cells[:, 1:], cells[:, :-1])):
            assert not ((a != b) & (a > 0) & (b > 0)).any()
        assert np.array_equal(section.classes == MEMBRANE, cells == 0)


def test_mitochondria_lie_in_one_cell_each(sections):
    count = 0
    for section in sections:
        assert np.array_equal(section.classes == MITOCHONDRION, section.mitochondria > 0)
        for object_id in range(1, section.mitochondria.max() + 1):
            around = np.unique(section.cells[section.mitochondria == object_id])
            assert len(around) == 1
            assert around[0] > 0
            count += 1
    assert count > 10


def test_sections_hold_what_the_task_needs(sections):
    shares, contrast = [], []
    for section in sections:
        areas = np.bincount(section.cells.ravel())[1:]
        assert ((areas >= 200) & (areas <= 60_000)).sum() >= 8
        shares.append((section.cells == 0).mean())
        grey = section.image[:, :, 0].astype(float)
        contrast.append(abs(grey[section.classes == CYTOPLASM].mean() - grey[section.cells == 0].mean()))
        assert grey.std() > 10
    assert 0.1 < np.mean(shares) < 0.35  # 0.18 to 0.22 in real sections
    assert min(contrast) > 8  # the task can be solved from the image
    assert np.std([section.image.mean() for section in sections]) > 5  # domain randomisation


def test_polarity_changes_nothing_else():
    dark, bright = generate(1, inverted=False), generate(1, inverted=True)
    for name in ARRAYS[1:]:
        assert np.array_equal(getattr(dark, name), getattr(bright, name))
    membrane = dark.cells == 0
    assert dark.image[membrane].mean() < dark.image[~membrane].mean()
    assert bright.image[membrane].mean() > bright.image[~membrane].mean()


def test_without_organelles():
    section = generate(2, organelles=False)
    assert not section.mitochondria.any()
    assert set(np.unique(section.classes)) == {MEMBRANE, CYTOPLASM}


@pytest.mark.parametrize("size", [32, (40, 90), (200, 64)])
@pytest.mark.parametrize("cell_size", [None, 8, 200])
def test_any_size(size, cell_size):
    section = generate(0, size, cell_size=cell_size)
    assert section.cells.shape == ((size, size) if isinstance(size, int) else size)
    assert section.cells.max() >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 0, "size": 16}, "at least 32 px"),
        ({"seed": 0, "size": (64, 8)}, "at least 32 px"),
        ({"seed": 0, "cell_size": 2.0}, "cell_size must be at least 8"),
        ({"seed": 0, "cell_size": float("nan")}, "cell_size must be at least 8"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_dataset_is_the_generator():
    data = load_data("synthetic-em", "val")
    seed = int(data.image_ids[3].rsplit("-", 1)[1])
    section = generate(seed)
    assert np.array_equal(data.image(3), section.image)
    assert np.array_equal(data.labels(3), section.cells)
