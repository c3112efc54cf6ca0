"""Folders of images and masks: every layout and kind of mask, splits by blocks, and errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from PIL import Image

from sam_gym.data import DATASETS, DataUnavailableError, load_data, read_image
from sam_gym.data.dsb import read_nuclei
from sam_gym.data.folder import SHARES, split_sources
from sam_gym.data.formats.pairs import find_pairs
from sam_gym.data.formats.source import Source
from sam_gym.evaluation import evaluate, make_evaluation_env
from sam_gym.prompters import box_only

ALL = {"shares": (0, 0, 100), "min_area": 1}

LABELS = np.zeros((30, 40), np.uint16)
LABELS[2:10, 3:13], LABELS[12:20, 3:13], LABELS[5:25, 20:38] = 1, 2, 700
BINARY = (LABELS > 0) * np.uint8(255)


def image(value: int = 90, shape: tuple[int, int] = (30, 40)) -> np.ndarray:
    pixels = np.full((*shape, 3), value, np.uint8)
    pixels[..., 1] = np.arange(shape[1], dtype=np.uint8)
    return pixels


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def filled(tmp_path: Path) -> Callable[..., Path]:
    """A folder of n images with label images, in sub-folders; names are slice-0, slice-1, ..."""

    def fill(n: int = 10, name: str = "cells") -> Path:
        for i in range(n):
            save(tmp_path / name / "images" / f"slice-{i}.png", image(100 + i))
            save(tmp_path / name / "masks" / f"slice-{i}.png", LABELS)
        return tmp_path / name

    return fill


# ----------------------------------------------------------------------------------------------------------- layouts


def test_subfolders_of_images_and_masks(filled: Callable[..., Path]) -> None:
    data = load_data("folder", "test", root=filled(1), **ALL)
    assert (data.name, data.source, data.split, data.image_ids) == (
        "folder:cells",
        "folder:cells",
        "test",
        ("slice-0",),
    )
    np.testing.assert_array_equal(data.image(0), image(100))
    np.testing.assert_array_equal(data.labels(0), LABELS)
    assert data.objects.object_id.tolist() == [1, 2, 700]
    assert data.objects.area.tolist() == [80, 80, 360]


def test_masks_beside_their_images(tmp_path: Path) -> None:
    save(tmp_path / "b.tif", image(1))
    save(tmp_path / "b_mask.png", LABELS)
    save(tmp_path / "a.jpg", image(2))
    save(tmp_path / "a_mask.tif", LABELS)
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data("folder", "test", root=tmp_path, **ALL)
    assert data.image_ids == ("a", "b")
    np.testing.assert_array_equal(data.labels("a"), LABELS)
    np.testing.assert_array_equal(data.image("b"), image(1))


def test_masks_in_a_subfolder_may_say_that_they_are_masks(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", image())
    save(tmp_path / "images" / "b_mask.png", image())  # an image that is called so
    save(tmp_path / "masks" / "a_mask.png", LABELS)
    save(tmp_path / "masks" / "b_mask.png", LABELS)
    assert [pair.name for pair in find_pairs(tmp_path)] == ["a", "b_mask"]


@pytest.mark.parametrize("layout", ["masks/{}", "{}/masks"])
def test_one_file_for_each_object(tmp_path: Path, layout: str) -> None:
    for name in ("one", "two"):
        save(tmp_path / ("images" if layout == "masks/{}" else f"{name}/images") / f"{name}.png", image())
        for i, object_id in enumerate((700, 1, 2)):
            save(tmp_path / layout.format(name) / f"{i}.png", (object_id == LABELS) * np.uint8(255 if i else 1))
    save(tmp_path / layout.format("two") / "9.png", (LABELS == 1) * np.uint8(255))  # claims the pixels of another one
    data = load_data("folder", "test", root=tmp_path, **ALL)
    assert data.image_ids == ("one", "two")
    for index, relabelled in enumerate(({700: 1, 1: 2, 2: 3}, {700: 1, 1: 4, 2: 3})):
        expected = np.zeros_like(LABELS)
        for old, new in relabelled.items():
            expected[old == LABELS] = new
        np.testing.assert_array_equal(data.labels(index), expected)


def test_published_nuclei_are_read_as_by_their_own_loader(real_folder: Path, tmp_path: Path) -> None:
    """The last four images of the data set, in folders as they are published; `real_folder` may hold more of them."""
    root = tmp_path / "stage1_train"
    root.mkdir()
    for name in {Path(file.path).parts[2] for file in DATASETS["dsb2018"].files}:
        (root / name).symlink_to(real_folder / "dsb2018" / "stage1_train" / name)
    data = load_data("folder", "test", root=root, shares=(80, 10, 10), min_area=50)
    assert data.source == "folder:stage1_train"
    assert len(data.image_ids) == 4
    for image_id in data.image_ids:
        pixels, labels = read_nuclei(real_folder, image_id[:8])
        np.testing.assert_array_equal(data.image(image_id), pixels[..., :3])
        np.testing.assert_array_equal(data.labels(image_id), labels)


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    "stored",
    [
        BINARY, (LABELS > 0) * np.uint8(1), LABELS > 0, np.repeat(BINARY[..., None], 3, axis=2),
        np.dstack([BINARY] * 3 + [np.full_like(BINARY, 255)]), (LABELS > 0).astype(np.float32),
    ],
    ids=["0 and 255", "0 and 1", "one bit", "grey as RGB", "grey as RGBA", "floats"],
)  # fmt: skip
def test_regions_of_a_binary_mask_are_numbered(tmp_path: Path, stored: np.ndarray) -> None:
    save(tmp_path / "a.png", image())
    save(tmp_path / ("a_mask.tif" if stored.dtype.kind == "f" else "a_mask.png"), stored)
    data = load_data("folder", "test", root=tmp_path, **ALL)
    expected = np.where(LABELS == 700, 2, np.where(LABELS == 2, 3, LABELS))  # raster order of the first pixels
    np.testing.assert_array_equal(data.labels(0), expected)


def test_a_jpeg_is_a_binary_mask(tmp_path: Path) -> None:
    save(tmp_path / "a.png", image())
    save(tmp_path / "a_mask.jpg", BINARY)
    assert len(np.unique(read_image(tmp_path / "a_mask.jpg"))) > 2
    np.testing.assert_array_equal(load_data("folder", "test", root=tmp_path, **ALL).labels(0) > 0, LABELS > 0)


def test_the_indices_of_a_palette_are_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", image())
    few = np.where(LABELS == 700, 3, LABELS).astype(np.uint8)
    stored = Image.fromarray(few)
    stored.putpalette([0, 0, 0, 250, 10, 10, 10, 250, 10, 250, 10, 10])  # 1 and 3 are of one colour
    stored.save(tmp_path / "a_mask.png")
    with Image.open(tmp_path / "a_mask.png") as written:
        assert written.mode == "P"
    np.testing.assert_array_equal(load_data("folder", "test", root=tmp_path, **ALL).labels(0), few)


# ------------------------------------------------------------------------------------------------------------ splits


def test_splits_are_blocks_of_the_sorted_names(filled: Callable[..., Path]) -> None:
    root = filled(12)
    ids = [load_data("folder", split, root=root, min_area=1).image_ids for split in ("train", "val", "test")]
    assert [name for block in ids for name in block] == [f"slice-{i}" for i in range(12)]  # 9 comes before 10
    assert [len(block) for block in ids] == [7, 3, 2]


@pytest.mark.parametrize(
    ("count", "shares", "sizes"),
    [(10, SHARES, [6, 2, 2]), (5, SHARES, [3, 1, 1]), (4, (50, 0, 50), [2, 0, 2]), (7, (0, 0, 100), [0, 0, 7])],
)
def test_sizes_of_splits(count: int, shares: tuple, sizes: list[int]) -> None:
    sources = [Source(str(i), pytest.fail, pytest.fail) for i in range(count)]  # none is opened
    splits = split_sources(sources, shares)
    assert [len(block) for block in splits.values()] == sizes
    assert [source for block in splits.values() for source, _ in block] == sources


def test_same_files_same_hash_wherever_they_are(filled: Callable[..., Path], tmp_path: Path) -> None:
    one, other = filled(5), filled(5, "moved/cells")
    first, second = (load_data("folder", "train", root=root, min_area=1) for root in (one, other))
    assert load_data("folder", "train", root=str(one), min_area=1) is first
    assert load_data("folder", "train", root=one, shares=(80, 10, 10), min_area=1) is not first
    assert first.hash() == second.hash()
    save(filled(5, "changed/cells") / "masks" / "slice-1.png", LABELS // 2)
    third = load_data("folder", "train", root=tmp_path / "changed/cells", min_area=1)
    assert third.source == first.source
    assert third.hash() != first.hash()


# ------------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("task", ["SamPrompt", "SamBoxRefine"])
def test_environments_of_a_folder(filled: Callable[..., Path], task: str) -> None:
    root, tiny = filled(), {"checkpoint": "tiny_random", "device": "cpu", "min_area": 1}
    env = gymnasium.make(f"{task}-Folder-v0", root=str(root), split="test", shares=[50, 20, 30], **tiny)
    again = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    for one in (env, gymnasium.make(again)):
        observation, info = one.reset(seed=0)
        assert observation in one.observation_space
        assert info["source"] == "folder:cells"
        assert one.unwrapped.engine.data.image_ids == ("slice-7", "slice-8", "slice-9")
    record = evaluate(
        box_only,
        make_evaluation_env(f"{task}-Folder-v0", "val", 4, root=str(root), **tiny),
        name="box only",
        progress=False,
    )
    assert (record.provenance["data"], record.provenance["source"]) == ("folder:cells", "folder:cells")
    assert len(record.cases) == 6
    assert str(root.parent) not in json.dumps(record.to_json())


# ------------------------------------------------------------------------------------------------------------- errors


def refused(root: Path, *parts: str, split: str = "test", **more: object) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        load_data("folder", split, root=root, **{**ALL, **more})
    for part in parts:
        assert part in str(caught.value)


def test_folders_without_images(tmp_path: Path) -> None:
    refused(tmp_path / "none", "root='" + str(tmp_path / "none"), "does not exist: name a folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file: name a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", f"{tmp_path / 'empty'} has no images (.png", "masks/NAME.png")
    (tmp_path / "two" / "images").mkdir(parents=True)
    refused(tmp_path / "two", "two has no images")


def test_images_without_masks_and_masks_without_images(filled: Callable[..., Path]) -> None:
    root = filled(3)
    (root / "masks" / "slice-1.png").rename(root / "masks" / "slice-7.png")
    refused(root, f"{root / 'images' / 'slice-1.png'} has no mask", "beside 3 images", "masks/NAME.png")
    (root / "images" / "slice-1.png").unlink()
    refused(root, f"{root / 'masks' / 'slice-7.png'} has no image", "take the file away")


def test_masks_of_another_size(filled: Callable[..., Path]) -> None:
    root = filled(2)
    path = save(root / "masks" / "slice-1.png", LABELS[:, :-1])
    refused(root, f"{path} is 39 x 30 px", f"{root / 'images' / 'slice-1.png'} 40 x 30", "save the mask at the size")


def test_files_that_cannot_be_read(filled: Callable[..., Path]) -> None:
    root = filled(2)
    path = root / "images" / "slice-1.png"
    path.write_bytes(path.read_bytes()[:60])
    refused(root, str(path), "truncated or damaged")
    path.write_text("no picture")
    refused(root, str(path), "is not an image")
    path.unlink()
    path = save(path.with_suffix(".tif"), np.full((30, 40), np.nan, np.float32))
    refused(root, str(path), "1200 values that are NaN")
    save(path, image())  # a folder that was mended is read
    assert len(load_data("folder", "test", root=root, **ALL).image_ids) == 2


def test_two_files_of_one_name(filled: Callable[..., Path]) -> None:
    root = filled(2)
    save(root / "images" / "slice-1.jpg", image())
    refused(root, "slice-1.jpg and slice-1.png are both called 'slice-1'")
    (root / "images" / "slice-1.jpg").unlink()
    save(root / "masks" / "slice-1_mask.png", LABELS)
    refused(root, "both called 'slice-1'")


def test_masks_with_soft_edges(tmp_path: Path) -> None:
    save(tmp_path / "a.png", image(shape=(120, 160)))
    soft = Image.fromarray(BINARY).resize((160, 120), Image.Resampling.BILINEAR)
    path = save(tmp_path / "a_mask.png", np.asarray(soft))
    refused(tmp_path, f"{path} looks like a binary mask with soft edges", "Save it with two values")


def test_integers_up_to_255_are_no_soft_edges(tmp_path: Path) -> None:
    save(tmp_path / "a.png", image())
    three = np.where(LABELS == 700, 255, 128 * (LABELS > 0)).astype(np.uint8)  # as a nucleus in its cell
    save(tmp_path / "a_mask.png", three)
    np.testing.assert_array_equal(load_data("folder", "test", root=tmp_path, **ALL).labels(0), three)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.dstack([BINARY, BINARY, 0 * BINARY]), "is a colour image"),
        (np.where(BINARY, np.arange(40, dtype=np.float32) / 39, 0).astype(np.float32), "holds float32 from 0.0 to"),
        (np.full((30, 40), -3, np.int32), "holds int32 from -3 to -3"),
    ],
)
def test_what_is_no_mask(filled: Callable[..., Path], mask: np.ndarray, said: str) -> None:
    root = filled(2)
    (root / "masks" / "slice-0.png").unlink()
    path = save(root / "masks" / ("slice-0.png" if mask.dtype == np.uint8 else "slice-0.tif"), mask)
    refused(root, f"{path} ", said)


def test_files_of_single_objects(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", image())
    (tmp_path / "masks" / "a").mkdir(parents=True)
    refused(tmp_path, f"{tmp_path / 'masks' / 'a'} holds no mask")
    path = save(tmp_path / "masks" / "a" / "1.png", np.clip(LABELS, 0, 2).astype(np.uint8))
    refused(tmp_path, f"{path} holds several values, up to 2")
    save(tmp_path / "b" / "images" / "1.png", image())
    save(tmp_path / "b" / "images" / "2.png", image())
    save(tmp_path / "c" / "a" / "images" / "1.png", image())
    refused(tmp_path / "c", f"{tmp_path / 'c' / 'a' / 'images' / '1.png'} has no mask")
    (tmp_path / "b").rename(tmp_path / "c" / "b")
    refused(tmp_path / "c", f"{tmp_path / 'c' / 'b' / 'images'} holds 2 image files")


def test_splits_that_are_none(filled: Callable[..., Path]) -> None:
    root = filled(2)
    refused(root, "has 2 images", "none for split 'test'", "shares=(0, 0, 100)", shares=SHARES)
    refused(root, "add up to 100, got (50.0, 20.0, 20.0)", shares=(50, 20, 20))
    refused(root, "add up to 100", shares=(50, 50))
    refused(root, "unknown split of folder 'tst'; did you mean 'test'?", split="tst")
    refused(root, "no object of folder:cells test has min_area=5000", min_area=5000)


def test_a_root_belongs_to_folders(filled: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="root= is the path of the images and masks .* name='isbi2012'"):
        load_data("isbi2012", "test", root=filled(1))
    with pytest.raises(ValueError, match="root= is the path .* name='folder' and root=None"):
        gymnasium.make("SamPrompt-Folder-v0", checkpoint="tiny_random", device="cpu")
    with pytest.raises(DataUnavailableError, match="no synthetic stand-in"):
        load_data("folder", "test", "synthetic", root=filled(1))
