"""Each reader against what others wrote: pixels and labels are equal to the last one, whatever they were stored in."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as some
from nibabel.orientations import apply_orientation, inv_ornt_aff
from PIL import Image
from pycocotools import mask as runs

from sam_gym.data import load_data, read_image
from sam_gym.data.formats import find_pictures, open_images
from sam_gym.data.formats.coco import _mask
from sam_gym.data.formats.pages import open_pages
from sam_gym.data.images import stretched

ALL = {"shares": (0, 0, 100), "min_area": 1}


KINDS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32]


@settings(max_examples=40)
@given(
    dtype=some.sampled_from(KINDS), n=some.integers(1, 4),
    size=some.tuples(some.integers(1, 40), some.integers(2, 40)), seed=some.integers(0, 99),
    compression=some.sampled_from([None, "zlib"]), byteorder=some.sampled_from("<>"), bigtiff=some.booleans(),
    tile=some.sampled_from([None, (16, 16)]),
)  # fmt: skip
def test_label_stacks_in_tiff(dtype: type, n: int, size: tuple[int, int], seed: int, **stored: Any) -> None:
    """Two values at least, so that they are objects' numbers and no binary mask."""
    draw, largest = np.random.default_rng(seed), {1: 100, 2: 30_000}.get(np.dtype(dtype).itemsize, 2**24)
    written, pixels = draw.integers(0, largest + 1, (n, *size)), draw.integers(0, 255, (n, *size), np.uint8)
    written[0, 0, 0], written[-1, -1, -1] = 3, largest
    with tempfile.TemporaryDirectory() as folder:
        for kind, array in (("images", pixels), ("masks", written.astype(dtype))):
            (Path(folder) / kind).mkdir()
            tifffile.imwrite(Path(folder) / kind / "a.tif", array, photometric="minisblack", metadata=None, **stored)
        data = load_data("folder", "test", root=folder, **ALL)
        kept = [i for i in range(n) if written[i].any()]
        assert data.image_ids == (("a",) if n == 1 else tuple(f"a/{i}" for i in kept))
        for at, i in enumerate(kept):
            np.testing.assert_array_equal(data.labels(at), written[i])
            np.testing.assert_array_equal(data.image(at)[..., 0], pixels[i])


def test_what_tiff_files_may_be(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    colours, deep = draw.integers(0, 256, (9, 12, 3), np.uint8), draw.integers(0, 2**16, (9, 12), np.uint16)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, np.moveaxis(colours, 2, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(file), colours)
    tifffile.imwrite(file, (colours * np.uint16(257)), photometric="rgb")  # Pillow would drop half of the bits
    assert open_pages(file)[0].dtype == np.uint16
    Image.fromarray(deep).save(file, compression="tiff_lzw")
    np.testing.assert_array_equal(open_pages(file)[0], deep)
    tifffile.imwrite(file, np.stack([deep] * 3), imagej=True, metadata={"axes": "TYX"})
    np.testing.assert_array_equal(np.stack(open_pages(file)[1:]), [deep] * 2)
    tifffile.imwrite(file, np.stack([deep, deep + 1]), imagej=True, metadata={"axes": "ZYX"}, truncate=True)
    with tifffile.TiffFile(file) as opened:
        assert len(opened.pages) == 1  # as ImageJ writes what is larger than 4 GB
    np.testing.assert_array_equal(open_pages(file)[1], deep + 1)
    pages = [Image.fromarray(page) for page in (colours, colours[::-1])]
    pages[0].save(file, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(np.stack(open_pages(file)), [colours, colours[::-1]])
    for image, compression in ((colours[..., 0], None), (deep, "zlib"), (deep > 2**15, None)):
        tifffile.imwrite(file, image, photometric="miniswhite", compression=compression)  # as ImageJ stores masks
        np.testing.assert_array_equal(open_pages(file)[0], ~image)
        np.testing.assert_array_equal(open_pages(file, indices=True)[0], image)


def test_the_contrast_of_floats(tmp_path: Path) -> None:
    """As they are where their range says what they are; else as 16-bit images."""
    ramp = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    for values, expected in (
        (ramp, np.rint(ramp * 255)), (200 * ramp, np.rint(200 * ramp)), (900 * ramp - 30, stretched(ramp)),
        (1.5 * ramp, stretched(ramp)),
    ):  # fmt: skip
        tifffile.imwrite(tmp_path / "a.tif", values)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 2], expected)


def test_stacks_as_arrays(made: Any, tmp_path: Path) -> None:
    for kind, one in (("images", made.grey), ("masks", made.labels)):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "a.npy", np.stack([one(i) for i in range(3)]))
    data = load_data("folder", "test", root=tmp_path, **ALL)
    assert data.image_ids == ("a/0", "a/1", "a/2")
    np.testing.assert_array_equal(data.labels("a/2"), made.labels(2))
    assert list(find_pictures(tmp_path / "images")) == ["a.npy/0", "a.npy/1", "a.npy/2"]
    tifffile.imwrite(tmp_path / "images/b.tif", np.stack([made.grey(i) for i in range(9)]))
    tifffile.imwrite(tmp_path / "masks/b.tif", np.stack([made.labels(i) for i in range(9)]))
    splits = [load_data("folder", split, root=tmp_path, shares=(50, 0, 50), min_area=1) for split in ("train", "test")]
    assert [len(data.image_ids) for data in splits] == [3, 9]  # a stack counts as one image


@settings(max_examples=60)
@given(size=some.tuples(some.integers(1, 30), some.integers(1, 30)), seed=some.integers(0, 99), share=some.floats(0, 1))
def test_run_lengths(made: Any, size: tuple[int, int], seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    for written in (made.numbers(mask), made.text(mask)):
        np.testing.assert_array_equal(_mask(Path("a.json"), {"segmentation": written}, size), mask)


@settings(max_examples=40)
@given(
    corners=some.lists(some.tuples(some.floats(0, 30), some.floats(0, 20)), min_size=3, max_size=7),
    more=some.booleans(),
)
def test_polygons_as_by_pycocotools(corners: list[tuple[float, float]], more: bool) -> None:
    polygons = [[v for corner in corners for v in corner]] + [[1.0, 1, 9, 1, 9, 7]] * more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own, of NumPy
        expected = runs.decode(runs.merge(runs.frPyObjects(polygons, 20, 30))) > 0
    np.testing.assert_array_equal(_mask(Path("a.json"), {"segmentation": polygons}, (20, 30)), expected)


def test_where_coco_objects_overlap_the_smaller_one_is_seen(made: Any, tmp_path: Path) -> None:
    import json

    made.save(tmp_path / "a.png", made.grey(0))
    small, large = (np.zeros((40, 56), bool) for _ in range(2))
    small[10:14, 10:14], large[5:30, 5:30] = True, True
    given = [{"id": i, "image_id": 1, "segmentation": made.text(mask)} for i, mask in ((7, small), (3, large))]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": given}
    (tmp_path / "some.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(load_data("folder", "test", root=tmp_path, **ALL).labels(0), large * 2 - small)


def test_coco_files_named_after_splits(made: Any, tmp_path: Path) -> None:
    import json

    for folder, ids in (("train", (1, 2)), ("valid", (3,)), ("test", (4,))):
        for i in ids:
            made.save(tmp_path / folder / f"{i}.jpg", made.grey(i))
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in ids]
        objects = [{"id": i, "image_id": i, "segmentation": made.text(made.labels(i) == 2)} for i in ids]
        (tmp_path / folder / "_annotations.coco.json").write_text(
            json.dumps({"images": images, "annotations": objects})
        )
    ids = [load_data("folder", split, root=tmp_path, min_area=1).image_ids for split in ("train", "val", "test")]
    assert ids == [("1", "2"), ("3",), ("4",)]


@settings(max_examples=25)
@given(turn=some.permutations([0, 1, 2]), flips=some.tuples(*[some.sampled_from([1, -1])] * 3))
def test_masks_stored_in_any_orientation(made: Any, turn: list[int], flips: tuple[int, ...]) -> None:
    """A mask lies where its affine says; an image turned within its slices looks as before."""
    orientation = np.array([*zip(turn, flips, strict=True)], np.float64)
    affine = made.affine @ np.array([[1, 0.1, 0, 0], [-0.1, 1, 0.05, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # oblique
    mask, image = made.volume(1, made.labels).astype(np.int32), made.volume(1, made.grey)
    other = affine @ inv_ornt_aff(orientation, mask.shape)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a_seg.nii"
        nibabel.save(nibabel.Nifti1Image(apply_orientation(mask, orientation), other), file)
        nibabel.save(nibabel.Nifti1Image(image, affine), Path(folder) / "a.nii")
        data = load_data("folder", "test", root=folder, **ALL)
        assert data.image_ids == ("a/1", "a/2", "a/3")
        for k in (1, 2, 3):
            np.testing.assert_array_equal(data.labels(f"a/{k}"), made.labels(k + 1))
        if turn[2] == 2:
            nibabel.save(nibabel.Nifti1Image(apply_orientation(image, orientation), other), file)
            first, last = open_images(file), open_images(Path(folder) / "a.nii")
            for k in range(4):
                np.testing.assert_array_equal(first.read(k if flips[2] > 0 else 3 - k), last.read(k))


def test_windows(made: Any, tmp_path: Path) -> None:
    """Stated, else the file's own, else stretched; through an environment's setting as well."""
    values = made.volume(0, made.grey).astype(np.int32)
    made.write_series(tmp_path / "images/a", values + 924)
    made.write_series(tmp_path / "masks/a", made.volume(0, made.labels), window=False)
    units = made.grey(1).astype(np.float64) - 100
    for window, expected in ((None, made.grey(1)), ((0, 50), np.rint(np.clip((units + 25) / 50, 0, 1) * 255))):
        data = load_data("folder", "test", root=tmp_path, window=window, **ALL)
        np.testing.assert_array_equal(data.image("a/1")[..., 0], expected)
    (tmp_path / "other").mkdir()
    made.write_series(tmp_path / "other/b", values, window=False, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(tmp_path / "other/b/4.dcm")[..., 0], 255 - stretched(made.grey(0)))
    bright = find_pictures(tmp_path / "images", (0, 50))["a/3.dcm"]()
    np.testing.assert_array_equal(bright[..., 0], np.rint(np.clip((units + 25) / 50, 0, 1) * 255))


def test_scaled_values_and_single_slices_of_nifti(made: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(made.grey(0).T.astype(np.int16), made.affine)
    image.header.set_slope_inter(2, -50)
    nibabel.save(image, file)
    assert open_images(file).names == ("0",)
    expected = np.rint(np.clip(nibabel.load(file).get_fdata().T / 100, 0, 1) * 255)
    np.testing.assert_array_equal(open_images(file, (50, 100)).read(0)[..., 1], expected)
