"""VNC, WBC and DSB 2018: file lists, splits, and whether the labels are what they claim to be, on the real files."""

import re
import tracemalloc
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sam_gym.data import DATASETS, DataUnavailableError, load_data
from sam_gym.data import datasets as datasets_module
from sam_gym.data.dsb import read_nuclei
from sam_gym.data.vnc import read_cells, read_mitochondria
from sam_gym.data.wbc import read_cell, read_nucleus

SPLITS = ("train", "val", "test")
EVERY_AREA = {"min_area": 1, "max_area": 2**31 - 1}

# Objects of any area, and those within the default limits, in train, val and test.
OBJECTS = {
    "vnc-cells": ((3429, 461, 943), (3244, 434, 884)),
    "vnc-mitochondria": ((271, 38, 82), (271, 38, 82)),
    "wbc-cell": ((95, 15, 40), (95, 15, 40)),
    "wbc-nucleus": ((95, 15, 40), (95, 15, 40)),
    "dsb2018": ((1444, 257, 477), (977, 206, 324)),
}
# Results name these hashes. If one changes, labels or table changed, and old results are no longer comparable.
HASHES = {
    "vnc-cells": "d0c7233118539ce5273fb5df97b088d921a90a2fcf94cebe78b4beece20a9888",
    "vnc-mitochondria": "c07df3bb6aff5267a86e6b739e42a19b616b585bea1902fb0723b88415ca59cb",
    "wbc-cell": "f4b85e277311f2353e9843c78077e391f117417ec92736d526988a988a48bc15",
    "wbc-nucleus": "ec612fc76ee9478b483f93f7b9f256679f1d4b011407ffb48c666fbc9fad0770",
    "dsb2018": "87074cde536b0c4797263846dfc08650455faa16bab7f9c19fedd2ce4d401dbb",
}
FILES = {
    "vnc-cells": {f"vnc/{name}" for i in range(20) for name in (f"raw/{i:02d}.tif", f"membranes/{i:02d}.png")},
    "vnc-mitochondria": {
        f"vnc/{name}" for i in range(20) for name in (f"raw/{i:02d}.tif", f"mitochondria/{i:02d}.png")
    },
    "wbc-cell": {f"wbc/Dataset 1/{i:03d}.{kind}" for i in range(1, 151) for kind in ("bmp", "png")},
}
FILES["wbc-nucleus"] = FILES["wbc-cell"]


@pytest.fixture(scope="module")
def load(real_folder):
    """`load_data` of real files; what it loads is forgotten when this module is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_GYM_DATA", str(real_folder))
        for name in ("_loaded", "_unlimited"):
            patch.setattr(datasets_module, name, {})
        yield lambda name, split, **limits: load_data(name, split, data="real", **limits)


def _stored(*parts):
    return np.asarray(Image.open(Path(*parts)))


# ----------------------------------------------------------------------------------------------------- every dataset


@pytest.mark.parametrize("name", OBJECTS)
def test_file_lists_are_pinned(name):
    files = DATASETS[name].files
    assert len({file.path for file in files}) == len(files)
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/ ]+/[^/ ]+/[0-9a-f]{40}/[^ ]+", file.url)
        assert file.url.endswith(file.path.split("/", 1)[1].replace(" ", "%20"))
        assert file.bytes > 0


@pytest.mark.parametrize("name", FILES)
def test_each_dataset_asks_for_the_files_it_reads_and_no_others(name):
    assert {file.path for file in DATASETS[name].files} == FILES[name]


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("split", SPLITS)
def test_objects(name, split, load):
    whole, within = (counts[SPLITS.index(split)] for counts in OBJECTS[name])
    data = load(name, split)
    assert (data.name, data.source, data.image_ids) == (name, name, DATASETS[name].splits[split])
    assert len(data.objects) == within
    assert len(load(name, split, **EVERY_AREA).objects) == whole


@pytest.mark.parametrize("name", OBJECTS)
def test_hash_is_the_published_one(name, load):
    assert load(name, "test").hash() == HASHES[name]


@pytest.mark.parametrize("name", OBJECTS)
def test_no_image_is_in_two_splits_under_two_names(name, load):
    where = [(load(name, split).image(i).tobytes(), split) for split in SPLITS for i in DATASETS[name].splits[split]]
    assert len(dict(where)) == len(set(where))


@pytest.mark.parametrize("name", OBJECTS)
def test_environments_leave_out_few_objects(name, load):
    """Under 15 % lie outside the area limits of the dataset's environments; DSB has limits of its own for that."""
    (spec,) = (s for s in gymnasium.registry.values() if s.id.startswith("SamPrompt-") and s.kwargs["dataset"] == name)
    limits = {key: spec.kwargs[key] for key in ("min_area", "max_area") if key in spec.kwargs}
    kept, whole = ([load(name, split, **area).objects for split in SPLITS] for area in (limits, EVERY_AREA))
    assert sum(map(len, kept)) > 0.85 * sum(map(len, whole))
    for some, every in zip(kept, whole, strict=True):
        assert set(some.image_index) == set(every.image_index)  # no image is left without an object
    assert gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()).kwargs == spec.kwargs


@pytest.mark.parametrize("name", [name for name in OBJECTS if DATASETS[name].stand_in is None])
@pytest.mark.parametrize("mode", ["auto", "real", "synthetic"])
def test_without_files_and_stand_in_every_mode_raises(name, mode, fresh, unreachable):
    with pytest.raises(DataUnavailableError) as caught:
        load_data(name, "val", data=mode)
    message = str(caught.value)
    if mode == "synthetic":
        assert message == f"{name} has no synthetic stand-in: use data='real'"
        return
    first = DATASETS[name].files[0]
    for part in ("$SAM_GYM_DATA is not set", f"{DATASETS[name].folder}.csv", first.url, f"<folder>/{first.path}"):
        assert part in message
    assert "synthetic" not in message
    assert unreachable == [first.url]


@pytest.mark.parametrize(
    ("name", "source"), [("vnc-cells", "synthetic-em"), ("vnc-mitochondria", "synthetic-mitochondria")]
)
def test_vnc_has_stand_ins(name, source, fresh, unreachable):
    with pytest.warns(UserWarning, match=rf"(?s){name}: .*vnc\.csv"):
        assert load_data(name, "val").source == source


def test_the_list_in_the_instructions_exists(fresh, unreachable):
    for name in OBJECTS:
        with pytest.raises(DataUnavailableError) as caught:
            load_data(name, "val", data="real")
        assert Path(re.search(r"by hand: (.*\.csv) lists", str(caught.value))[1]).is_file()


# --------------------------------------------------------------------------------------------------------------- VNC


def test_vnc_splits_are_contiguous_blocks():
    assert DATASETS["vnc-cells"].splits == DATASETS["vnc-mitochondria"].splits
    for split, block in zip(SPLITS, (range(14), range(14, 16), range(16, 20)), strict=True):
        assert DATASETS["vnc-cells"].splits[split] == tuple(f"section-{i:02d}" for i in block)


def test_vnc_reads_the_right_section(real_folder, load):
    cells, mitochondria = load("vnc-cells", "test"), load("vnc-mitochondria", "test")
    for data in (cells, mitochondria):
        assert np.array_equal(data.image("section-17")[:, :, 1], _stored(real_folder, "vnc/raw/17.tif"))
    assert np.array_equal(cells.labels("section-17") == 0, _stored(real_folder, "vnc/membranes/17.png"))
    assert np.array_equal(mitochondria.labels("section-17") > 0, _stored(real_folder, "vnc/mitochondria/17.png") > 127)


@pytest.mark.parametrize("split", SPLITS)
def test_vnc_polarity(split, load):
    """Most of a section is cells; membranes and mitochondria are darker than the rest."""
    cells, mitochondria = load("vnc-cells", split), load("vnc-mitochondria", split)
    for i in cells.image_ids:
        grey, labels = cells.image(i)[:, :, 0], cells.labels(i)
        assert grey.shape == labels.shape == (1024, 1024)
        assert 0.15 < (labels == 0).mean() < 0.25
        assert grey[labels == 0].mean() < grey[labels > 0].mean() - 20
        inside = mitochondria.labels(i) > 0
        assert 0.03 < inside.mean() < 0.1
        assert grey[inside].mean() < grey[(labels > 0) & ~inside].mean() - 15


def test_vnc_masks_lie_on_their_images(load):
    """Shifted by a few pixels in any direction, a section's membranes meet less of what is dark."""
    data = load("vnc-cells", "val")
    for i in data.image_ids:
        grey, membrane = data.image(i)[:, :, 0], data.labels(i) == 0
        shifted = [grey[np.roll(membrane, by, axis)].mean() for by in (-4, 4) for axis in (0, 1)]
        assert grey[membrane].mean() < min(shifted) - 3


def test_vnc_objects_are_4_connected_in_raster_order_and_cut_at_half(tmp_path):
    grey = np.zeros((3, 4), np.uint8)
    mitochondria = np.array([[255, 0, 0, 102], [0, 200, 128, 0], [0, 0, 0, 127]], np.uint8)
    for kind, name, array in (
        ("raw", "07.tif", grey),
        ("mitochondria", "07.png", mitochondria),
        ("mitochondria", "08.png", mitochondria > 127),  # some are stored as bits
        ("raw", "08.tif", grey),
        ("membranes", "07.png", mitochondria < 128),
    ):
        (tmp_path / "vnc" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / "vnc" / kind / name)
    expected = [[1, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0]]
    assert read_mitochondria(tmp_path, "section-07")[1].tolist() == expected
    assert read_mitochondria(tmp_path, "section-08")[1].tolist() == expected
    assert read_cells(tmp_path, "section-07")[1].tolist() == expected


def test_vnc_needs_only_its_own_masks(fresh, unreachable, real_folder, tmp_path, monkeypatch):
    (tmp_path / "mine/vnc").mkdir(parents=True)
    for kind in ("raw", "mitochondria"):
        (tmp_path / "mine/vnc" / kind).symlink_to(real_folder / "vnc" / kind)
    monkeypatch.setenv("SAM_GYM_DATA", str(tmp_path / "mine"))
    assert len(load_data("vnc-mitochondria", "val").objects) == OBJECTS["vnc-mitochondria"][1][1]
    with pytest.raises(DataUnavailableError, match=r"lacks 20 of the 40 files, for one vnc/membranes/00\.png"):
        load_data("vnc-cells", "val", data="real")


# --------------------------------------------------------------------------------------------------------------- WBC


def test_wbc_splits_are_contiguous_blocks():
    assert DATASETS["wbc-cell"].splits == DATASETS["wbc-nucleus"].splits
    blocks = ([*range(1, 61), *range(76, 111)], range(61, 76), range(111, 151))
    for split, block in zip(SPLITS, blocks, strict=True):
        assert DATASETS["wbc-cell"].splits[split] == tuple(f"crop-{i:03d}" for i in block)


@pytest.mark.parametrize("split", SPLITS)
def test_wbc_has_one_cell_with_its_nucleus_in_each_crop(split, load):
    cells, nuclei = load("wbc-cell", split), load("wbc-nucleus", split)
    lobed = 0
    for i in cells.image_ids:
        assert np.array_equal(cells.image(i), nuclei.image(i))
        cell, nucleus = cells.labels(i), nuclei.labels(i)
        assert cell.max() == nucleus.max() == 1
        assert ndimage.label(cell, np.ones((3, 3)))[1] == 1
        assert not (nucleus > cell).any()
        assert 0.1 < cell.mean() < 0.7
        grey = cells.image(i).mean(2)
        assert grey[nucleus == 1].mean() < grey[(cell == 1) & (nucleus == 0)].mean()
        lobed += ndimage.label(nucleus, np.ones((3, 3)))[1] > 1
    assert lobed == {"train": 18, "val": 2, "test": 4}[split]


def test_wbc_reads_the_right_crop(real_folder, load):
    folder = real_folder / "wbc/Dataset 1"
    assert np.array_equal(load("wbc-cell", "test").image("crop-144"), _stored(folder, "144.bmp"))
    mask = _stored(folder, "144.png")
    assert np.array_equal(load("wbc-cell", "test").labels("crop-144"), mask > 0)
    assert np.array_equal(load("wbc-nucleus", "test").labels("crop-144"), mask == 255)


def test_wbc_stray_greys_go_to_the_nearest_class(tmp_path):
    (tmp_path / "wbc/Dataset 1").mkdir(parents=True)
    greys = np.array([[0, 3, 63, 65, 128, 131, 190, 193, 255]], np.uint8)
    Image.fromarray(greys).save(tmp_path / "wbc/Dataset 1/009.png")
    Image.fromarray(np.zeros((1, 9, 3), np.uint8)).save(tmp_path / "wbc/Dataset 1/009.bmp")
    assert read_cell(tmp_path, "crop-009")[1].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1]]
    assert read_nucleus(tmp_path, "crop-009")[1].tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 1]]


def test_wbc_twins_are_in_one_split(load):
    """Crops 112 and 139 are one image, annotated twice."""
    data = load("wbc-cell", "test")
    assert np.array_equal(data.image("crop-112"), data.image("crop-139"))
    assert (data.labels("crop-112") != data.labels("crop-139")).any()


# --------------------------------------------------------------------------------------------------------------- DSB


def _kind(image):
    if (image != image[:, :, :1]).any():
        return "colour"
    return "bright field" if image.mean() > 128 else "fluorescence"


def test_dsb_splits_follow_the_stated_rule(load):
    """Of each kind of image in the order of ids: the last quarter is test, the tenth before it val, both rounded up."""
    kinds = {i: _kind(load("dsb2018", s).image(i)) for s in SPLITS for i in DATASETS["dsb2018"].splits[s]}
    assert len(kinds) == 42
    expected = {split: [] for split in SPLITS}
    for kind in ("colour", "bright field", "fluorescence"):
        ids = sorted(i for i in kinds if kinds[i] == kind)
        test, val = -(-len(ids) // 4), -(-len(ids) // 10)
        expected["train"] += ids[: -test - val]
        expected["val"] += ids[-test - val : -test]
        expected["test"] += ids[-test:]
    for split in SPLITS:
        assert DATASETS["dsb2018"].splits[split] == tuple(sorted(expected[split]))
        assert {kinds[i] for i in expected[split]} == {"colour", "bright field", "fluorescence"}


@cache
def _mask_files(image_id):
    return sorted(f.path for f in DATASETS["dsb2018"].files if f"/{image_id}" in f.path and "/masks/" in f.path)


def test_dsb_has_one_object_for_each_mask_file(load):
    for split in SPLITS:
        data = load("dsb2018", split, **EVERY_AREA)
        for index, image_id in enumerate(data.image_ids):
            ids = data.objects.object_id[data.objects.image_index == index]
            assert np.array_equal(ids, np.arange(1, len(_mask_files(image_id)) + 1))


@pytest.mark.parametrize("image_id", ["94519eb4", "f113626a"])
def test_dsb_object_is_the_mask_of_its_rank(image_id, real_folder, load):
    data = load("dsb2018", "test")
    for rank, path in enumerate(_mask_files(image_id), start=1):
        assert np.array_equal(data.mask(image_id, rank), _stored(real_folder, path) > 0)
    (path,) = (f.path for f in DATASETS["dsb2018"].files if f"/images/{image_id}" in f.path)
    assert np.array_equal(data.image(image_id), _stored(real_folder, path)[:, :, :3])


def test_dsb_nuclei_that_touch_stay_apart(load):
    labels = load("dsb2018", "train").labels("708eb41a")
    assert labels.max() == 97
    assert ndimage.label(labels > 0)[1] == 55


def test_dsb_later_masks_win_where_two_overlap(real_folder, load):
    labels = load("dsb2018", "train").labels("547ef286")
    last = np.zeros_like(labels)
    count = np.zeros_like(labels)
    for rank, path in enumerate(_mask_files("547ef286"), start=1):
        mask = _stored(real_folder, path) > 0
        last[mask] = rank
        count += mask
    assert (count > 1).sum() == 2
    assert np.array_equal(labels, last)


def test_dsb_ignores_files_that_are_not_listed(real_folder, tmp_path):
    folder = Path(_mask_files("eb96fc6c")[0]).parents[1]
    for kind in ("images", "masks"):
        (tmp_path / folder / kind).mkdir(parents=True)
        for path in (real_folder / folder / kind).iterdir():
            (tmp_path / folder / kind / path.name).symlink_to(path)
    Image.fromarray(np.full((256, 256), 255, np.uint8)).save(tmp_path / folder / "masks/0.png")
    expected = read_nuclei(real_folder, "eb96fc6c")[1]
    assert expected.max() == 8
    assert np.array_equal(read_nuclei(tmp_path, "eb96fc6c")[1], expected)


def test_dsb_reads_masks_one_at_a_time(real_folder):
    """258 masks of 520 x 696 px together would be 93 MB."""
    tracemalloc.start()
    try:
        read_nuclei(real_folder, "547ef286")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15e6
