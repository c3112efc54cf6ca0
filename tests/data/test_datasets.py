"""The dataset table, the fixed splits, and what `load_data` gives in each mode."""

import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest

from sam_gym.data import DATASETS, DataUnavailableError, load_data
from sam_gym.data import datasets as datasets_module
from sam_gym.data.sources import DataMismatchError

ISBI_BLOCKS = {"train": range(22), "val": range(22, 24), "test": range(24, 30)}
OBJECTS = {"train": 2045, "val": 162, "test": 504}


@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_disjoint(name):
    ids = Counter(image_id for split in DATASETS[name].splits.values() for image_id in split)
    assert max(ids.values()) == 1
    assert list(DATASETS[name].splits) == ["train", "val", "test"]


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_complete(name):
    spec = DATASETS[name]
    assert spec.name == name
    assert spec.title
    assert spec.licence
    assert spec.citation
    assert spec.stand_in is None or not DATASETS[spec.stand_in].files
    assert all(file.path.startswith(f"{spec.folder}/") for file in spec.files)


def test_isbi_splits_are_contiguous_blocks():
    for split, block in ISBI_BLOCKS.items():
        assert DATASETS["isbi2012"].splits[split] == tuple(f"section-{i}" for i in block)


def test_isbi_file_list_is_pinned_and_complete():
    files = DATASETS["isbi2012"].files
    assert {f.path for f in files} == {f"isbi2012/{kind}/{i}.png" for kind in ("image", "label") for i in range(30)}
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", file.url)
        assert file.bytes > 0
    assert len({f.sha256 for f in files}) == 60
    assert files[0].url.endswith("/data/membrane/train/image/0.png")


@pytest.mark.parametrize("split", ISBI_BLOCKS)
def test_real_isbi(split, real):
    data = load_data("isbi2012", split, data="real")
    assert (data.name, data.split, data.source) == ("isbi2012", split, "isbi2012")
    assert data.image_ids == tuple(f"section-{i}" for i in ISBI_BLOCKS[split])
    assert len(data.objects) == OBJECTS[split]
    for image_id in data.image_ids:
        image, labels = data.image(image_id), data.labels(image_id)
        assert image.shape == (512, 512, 3)
        assert image.dtype == np.uint8
        assert (image == image[:, :, :1]).all()
        assert labels.shape == (512, 512)
        assert 0.05 < (labels == 0).mean() < 0.4  # membrane, not cells


def test_real_isbi_reads_the_right_section(real):
    from PIL import Image

    stored = np.asarray(Image.open(real / "isbi2012/image/24.png"))
    label = np.asarray(Image.open(real / "isbi2012/label/24.png"))
    data = load_data("isbi2012", "test")
    assert np.array_equal(data.image("section-24")[:, :, 0], stored)
    assert np.array_equal(data.labels("section-24") > 0, label > 127)


def test_real_isbi_hash_is_the_published_one(real):
    # Results name this hash. If it changes, labels or table changed, and old results are no longer comparable.
    assert load_data("isbi2012", "test").hash() == "12f811fef10c40d0c95e01a9fbcd6ff4b2c3c18b9480c8759b41c3e7e6df85e8"


def test_isbi_ids_follow_the_raster(real):
    labels = load_data("isbi2012", "val").labels(0)
    ids, first = np.unique(labels, return_index=True)
    first = first[ids > 0]
    assert (np.diff(first) > 0).all()


def test_same_arguments_same_object(real):
    data = load_data("isbi2012", "val")
    assert load_data("isbi2012", "val", data="real", min_area=200) is data
    wider = load_data("isbi2012", "val", min_area=1)
    assert wider is not data
    assert wider.image(0) is data.image(0)
    assert wider.labels(1) is data.labels(1)
    assert len(wider.objects) > len(data.objects)
    # ids are stable under the area filter
    row = data.objects.object_id[5]
    assert wider.objects.area[wider.find(0, row)] == data.objects.area[data.find(0, row)]


def test_small_limits_keep_valid_boxes(real):
    objects = load_data("isbi2012", "test", min_area=1).objects
    assert objects.area.min() < 10
    assert (objects.box[:, 2:] - objects.box[:, :2] >= 1).all()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"name": "isbi"}, r"unknown dataset 'isbi'; did you mean 'isbi2012'\?"),
        ({"name": "coco-panoptic"}, r"unknown dataset 'coco-panoptic'; there are isbi2012, .*, synthetic-em"),
        ({"name": "isbi2012", "split": "tset"}, r"did you mean 'test'\?"),
        ({"name": "isbi2012", "data": "fake"}, r"unknown data mode 'fake'; there are auto, real, synthetic"),
        ({"name": "isbi2012", "min_area": 0}, r"1 <= min_area <= max_area, got min_area=0"),
        ({"name": "isbi2012", "min_area": 9, "max_area": 3}, r"min_area=9, max_area=3"),
    ],
)
def test_bad_arguments(arguments, hint, fresh, unreachable):
    with pytest.raises(ValueError, match=hint):
        load_data(**arguments)
    assert not unreachable  # refused before anything is fetched


def test_limits_that_leave_no_object(real):
    with pytest.raises(ValueError, match=r"no object of isbi2012 val .*203 objects of any area"):
        load_data("isbi2012", "val", min_area=10**6, max_area=10**7)


def test_real_raises_where_there_is_nothing(fresh, unreachable):
    with pytest.raises(DataUnavailableError) as caught:
        load_data("isbi2012", "test", data="real")
    message = str(caught.value)
    for part in ("$SAM_GYM_DATA is not set", str(fresh), "no route", "isbi2012.csv", "data='synthetic'", "data='real'"):
        assert part in message
    assert len(caught.value.reasons) == 3
    assert len(unreachable) == 1  # fails fast


def test_auto_warns_once_and_marks_the_stand_in(fresh, unreachable):
    with pytest.warns(UserWarning, match=r"(?s)NOT the real sections.*no route.*Ways out") as caught:
        data = load_data("isbi2012", "val")
    assert caught[0].filename == __file__
    assert (data.name, data.source) == ("isbi2012", "synthetic-em")
    assert "source='synthetic-em'" in repr(data)
    assert all(image_id.startswith("synthetic-") for image_id in data.image_ids)
    # From now on silent (a second warning would be an error here), and the dead network is left alone.
    assert load_data("isbi2012", "val") is data
    assert load_data("isbi2012", "test").source == "synthetic-em"
    assert len(unreachable) == 1
    # "real" asks again each time.
    with pytest.raises(DataUnavailableError):
        load_data("isbi2012", "val", data="real")
    assert len(unreachable) == 2


def test_auto_notices_files_that_appear_later(fresh, unreachable, real_folder, monkeypatch):
    with pytest.warns(UserWarning, match="stand-in"):
        stand_in = load_data("isbi2012", "val")
    monkeypatch.setenv("SAM_GYM_DATA", str(real_folder))
    data = load_data("isbi2012", "val")
    assert data.source == "isbi2012"
    assert data.hash() != stand_in.hash()


def test_synthetic_mode_is_silent_even_beside_real_files(real, unreachable):
    data = load_data("isbi2012", "val", data="synthetic")
    assert data.source == "synthetic-em"
    generated = load_data("synthetic-em", "val")
    assert np.array_equal(generated.image(0), data.image(0))
    assert generated.name == "synthetic-em"
    assert not unreachable


@pytest.mark.parametrize("mode", ["auto", "real", "synthetic"])
def test_synthetic_dataset_needs_nothing(mode, fresh, unreachable):
    data = load_data("synthetic-em", "test", data=mode)
    assert data.source == data.name == "synthetic-em"
    assert len(data.image_ids) == 8
    assert not unreachable


def _copy_isbi(real_folder, target):
    shutil.copytree(real_folder / "isbi2012", target / "isbi2012", copy_function=shutil.copyfile)
    for path in [target / "isbi2012", *(target / "isbi2012").rglob("*")]:
        path.chmod(0o755)
    return target


@pytest.mark.parametrize("mode", ["auto", "real"])
def test_hash_mismatch_names_file_and_hashes(mode, fresh, unreachable, real_folder, tmp_path, monkeypatch):
    folder = _copy_isbi(real_folder, tmp_path / "mine")
    record = next(f for f in DATASETS["isbi2012"].files if f.path == "isbi2012/image/7.png")
    path = folder / record.path
    path.write_bytes(path.read_bytes()[:5000])  # truncated
    monkeypatch.setenv("SAM_GYM_DATA", str(folder))
    with pytest.raises(DataMismatchError) as caught:
        load_data("isbi2012", "test", data=mode)
    message = str(caught.value)
    assert str(path) in message
    assert record.sha256 in message
    assert re.search(r"sha256 [0-9a-f]{64}, expected", message)
    assert f"5000 bytes, expected {record.bytes}" in message
    assert isinstance(caught.value, DataUnavailableError)
    assert not unreachable


def test_missing_file_falls_through_to_the_cache(fresh, unreachable, real_folder, tmp_path, monkeypatch):
    folder = _copy_isbi(real_folder, tmp_path / "mine")
    (folder / "isbi2012/label/3.png").unlink()
    monkeypatch.setenv("SAM_GYM_DATA", str(folder))
    with pytest.raises(DataUnavailableError, match=r"lacks 1 of the 60 files, for one isbi2012/label/3\.png"):
        load_data("isbi2012", "val", data="real")
    _copy_isbi(real_folder, fresh / "data")
    assert load_data("isbi2012", "val", data="real").source == "isbi2012"


def test_corrupted_cache_is_downloaded_anew(fresh, unreachable, real_folder):
    _copy_isbi(real_folder, fresh / "data")
    (fresh / "data/isbi2012/label/3.png").write_bytes(b"half")
    with pytest.raises(DataUnavailableError, match="cache: files with a wrong sha256"):
        load_data("isbi2012", "val", data="real")
    assert len(unreachable) == 1  # here the network is needed, and is not there


def test_files_are_hashed_once_per_process(real, monkeypatch):
    hashed = []
    real_hash = datasets_module.sources.fetching.sha256_of
    monkeypatch.setattr(
        datasets_module.sources.fetching, "sha256_of", lambda path: hashed.append(path) or real_hash(path)
    )
    load_data("isbi2012", "val")
    load_data("isbi2012", "test")
    load_data("isbi2012", "val", min_area=50)
    assert len(hashed) == 60


def test_threads_get_one_object(real):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_data("isbi2012", "val"), range(8)))
    assert all(data is loaded[0] for data in loaded)


def test_importing_data_pulls_in_no_envs_and_no_torch():
    unwanted = ("torch", "PIL.Image", "sam_gym.sam", "sam_gym.envs")
    code = f"import sys, sam_gym.data; print([m for m in sys.modules if m in {unwanted}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_warning_as_error_does_not_turn_into_silence(fresh, unreachable):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="stand-in"):
                load_data("isbi2012", "val")
