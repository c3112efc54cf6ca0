"""What cannot be read is refused with its file, the cause and a way out; nothing of it is guessed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile

from sam_gym.data import load_data
from sam_gym.data.formats import pages, source, volumes

ALL = {"shares": (0, 0, 100), "min_area": 1}


def refused(root: Path, *parts: str, split: str = "test", **more: Any) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        load_data("folder", split, root=root, **{**ALL, **more})
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(made: Any, tmp_path: Path) -> Callable[..., Path]:
    """`write(kind)`: a folder of that kind."""
    return lambda kind: made.writers[kind](tmp_path / kind).root


# ------------------------------------------------------------------------------------------------------ TIFF and arrays


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        (np.full((40, 56), 1.5, np.float32), ("holds float32 from 1.5", "integers from 0")),
        (np.full((40, 56), -1, np.int32), ("holds int32 from -1", "integers from 0")),
        (np.full((40, 56), 2**32 - 1, np.uint32), ("to 4294967295", "integers from 0 to 2**31 - 1")),
        (np.ones((40, 55), np.uint16), ("is 55 x 40 px", "56 x 40", "save the mask at the size of its image")),
        (np.ones((2, 40, 56), np.uint16), ("holds 2 slices and its image", "save them all")),
    ],
)
def test_labels_in_tiff(write: Callable[..., Path], mask: np.ndarray, parts: tuple[str, ...]) -> None:
    root = write("micro_sam")
    tifffile.imwrite(root / "masks/3.tif", mask, photometric="minisblack")
    refused(root, str(root / "masks/3.tif"), *parts)


def test_tiff_files_that_are_no_image(write: Callable[..., Path]) -> None:
    root = write("micro_sam")
    file = root / "images/2.tif"
    tifffile.imwrite(file, np.zeros((2, 40, 56), np.uint8), imagej=True, metadata={"axes": "CYX"})
    refused(root, f"{file} holds 2 channels as pages (axes CYX)", "save the one you want")
    with tifffile.TiffWriter(file) as several:
        several.write(np.zeros((40, 56), np.uint8))
        several.write(np.zeros((20, 28), np.uint8))
    refused(root, f"{file} holds images of several sizes", "save each as its own file")
    tifffile.imwrite(file, np.zeros((40, 56), np.uint16))
    file.write_bytes(file.read_bytes()[:-300])
    refused(root, f"{file} is truncated or damaged")
    (root / "masks/2.tif").unlink()
    refused(root, f"{file} has no mask", "add it or take the file away")


def test_pickles_are_not_opened(write: Callable[..., Path]) -> None:
    """The way out that is named leads out."""
    root = write("cellpose")
    for masks in root.glob("*_cp_masks.png"):
        masks.unlink()
    said = refused(root, f"{root / '0_seg.npy'} holds Python objects", "can run code", "save the masks from Cellpose")
    assert pages.UNPICKLE in said
    command = shlex.split(said[said.index("python -c") :])
    subprocess.run([sys.executable, *command[1:-1], *map(str, root.glob("*_seg.npy"))], check=True)
    assert len(load_data("folder", "test", root=root, **ALL).image_ids) == 5


def test_arrays(write: Callable[..., Path]) -> None:
    root = write("arrays")
    file = root / "labels/0_label.npy"
    np.save(file, np.array([{}]), allow_pickle=True)
    refused(root, f"{file} holds Python objects", "save the array alone")
    np.save(file, np.zeros(7))
    refused(root, f"{file} has shape (7,)", "an image is (H, W)")
    file.write_bytes(b"hello")
    refused(root, f"{file} is truncated, damaged or no array")


def test_archives(write: Callable[..., Path]) -> None:
    root = write("medsegbench")
    file = root / "some_256.npz"
    refused(root, "splits of its own, which are kept")
    usual = {"shares": (60, 20, 20)}
    with np.load(file) as stored:
        arrays = dict(stored)
    for name, array, *parts in (
        ("train_label", arrays["train_label"][:2], f"{file}, train_label holds 2 slices", "3"),
        ("train_label", arrays["train_label"][..., :9], "is 9 x 40 px"),
        ("train_labels", np.zeros((3, 1), int), "train_images and 2 arrays of labels", "it needs train_images"),
        ("train_label", np.zeros((3, 1), int), "those are classes of images, not masks"),
        ("train_label", np.array([{}] * 3), "train_label cannot be read"),
    ):
        np.savez(file, **{**arrays, name: array})
        refused(root, *parts, split="train", **usual)
    np.savez(file, train_images=arrays["train_images"], train_label=arrays["train_label"])
    refused(root, "none of them is 'val': there are train", split="val", **usual)
    np.savez(file, x=np.zeros(3))
    refused(root, f"{file} holds x: it needs train_images")
    np.savez(root / "other.npz", x=np.zeros(3))
    refused(root, "holds 2 .npz files", "give each a folder of its own")
    (root / "masks").mkdir()
    refused(root, "labels of two kinds", "keep one of them")


def test_a_stack_alone_and_empty_splits(write: Callable[..., Path]) -> None:
    root = write("stack")
    refused(root, "has 10 images", "none for split 'val'", "shares=(0, 0, 100)", split="val")
    masks = root / "masks/a_masks.tif"
    tifffile.imwrite(masks, np.zeros((10, 40, 56), np.uint8))
    refused(root, f"nothing is labelled in split 'test' of {root}", "choose another split")
    refused(root, "a window is for NIfTI and DICOM", "a.tif is neither", window=(0, 9))


# ----------------------------------------------------------------------------------------------------------------- COCO


def annotate(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 10, "segmentation": [[1, 1, 9, 1, 9, 9]], **changes}


@pytest.mark.parametrize(
    ("annotation", "parts"),
    [
        (annotate(image_id=77), ("annotation 1 (id 5): there is no image of id 77", "take the annotation away")),
        (annotate(segmentation=[]), ("has no segmentation: take it away", "sam-gym segment --boxes instances.json")),
        (annotate(segmentation=[[1, 1, 2, 2]]), ("annotation of id 5: a polygon is", "three corners")),
        (annotate(segmentation="x"), ("a list of polygons, or run lengths",)),
        (annotate(segmentation={"size": [40, 56], "counts": [5, 9]}), ("that cover 14 px", "[40, 56]")),
        (annotate(segmentation={"size": [40, 56], "counts": ""}), ("that cover -1 px",)),
        (annotate(segmentation={"size": [56, 40], "counts": [2240]}), ("size [56, 40] (height, width)",)),
    ],
)
def test_annotations(write: Callable[..., Path], annotation: dict, parts: tuple[str, ...]) -> None:
    root = write("coco")
    file = root / "annotations/instances.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": [annotation]}))
    refused(root, str(file), *parts)


def test_coco_files(write: Callable[..., Path]) -> None:
    root = write("coco")
    file = root / "annotations/instances.json"
    content = json.loads(file.read_text())
    kept = content["annotations"][:-1]
    images = content["images"]
    for changed, *parts in (
        ([{**images[0], "height": 41}, *images[1:]], "instances.json, image 10 is 56 x 41 px"),
        ([*images, images[0]], "two images have the id 10"),
        ([{"id": 1}], "image 1 lacks id or file_name"),
        ([{**images[0], "file_name": "no.png"}, *images[1:]], "no.png, which is not in the folder: put it at"),
    ):
        file.write_text(json.dumps({"images": changed, "annotations": kept}))
        refused(root, str(file), *parts)
    file.with_name("b.json").write_text(json.dumps({"images": images, "annotations": kept}))
    refused(root, "is one of 2 COCO files", "name each after train, val or test")
    file.write_text("{")
    refused(root, f"{file} is no JSON", "take it out of the folder")
    file.with_name("b.json").unlink()
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"instances.json: 1 crowd annotations are left out"):
        load_data("folder", "test", root=root, **ALL)


# -------------------------------------------------------------------------------------------------------------- volumes


def test_nifti(write: Callable[..., Path], made: Any) -> None:
    root = write("nifti")
    image, mask = root / "imagesTr/scan-0.nii.gz", root / "labelsTr/scan-0.nii.gz"
    values = made.volume(0, made.labels)
    for array, affine, *parts in (
        (values / 2 + 0.25, made.affine, "float64 from 0.25", "integers from 0"),
        (values - 1, made.affine, "from -1 to", "integers from 0"),
        (values[:, 1:], made.affine, "has 56 x 39 x 4 voxels", "56 x 40 x 4", "on the grid of its image"),
        (values, made.affine + np.outer([0, 0, 2.5, 0], [0, 0, 0, 1]),
         "lies 1.0 voxels off its image", "resample it"),
    ):  # fmt: skip
        kind = np.float64 if array.dtype.kind == "f" else np.int32
        nibabel.save(nibabel.Nifti1Image(array.astype(kind), affine), mask)
        refused(root, str(mask), *parts)
    mask.unlink()
    tifffile.imwrite(root / "labelsTr/scan-0.tif", np.zeros((4, 40, 56), np.uint8), photometric="minisblack")
    refused(root, "one is a volume", "save the mask as NIfTI on the grid of its image")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), made.affine), image)
    refused(root, f"{image} holds (2,) volumes", ".slicer[..., 0]")
    image.write_bytes(b"no volume")
    refused(root, f"{image} is truncated, damaged or no NIfTI file")
    refused(write("dicom"), "a window is a centre and a width above 0", window=(1, 0))


def test_a_volume_is_never_in_two_splits(write: Callable[..., Path]) -> None:
    root = write("nifti")
    for number in range(1, 5):
        for kind in ("imagesTr", "labelsTr"):
            (root / kind / f"scan-{number}.nii.gz").unlink()
    usual = {"shares": (60, 20, 20)}
    assert len(load_data("folder", "train", root=root, min_area=1, **usual).image_ids) == 3
    refused(root, "has 1 images (a volume counts as one)", "shares=(0, 0, 100)", split="test", **usual)


def test_dicom(write: Callable[..., Path], made: Any) -> None:
    root = write("dicom")
    folder = root / "images/scan-0"
    values = made.volume(0, made.grey)

    def again(**changes: Any) -> None:
        for file in folder.glob("*"):
            file.unlink()
        folder.rmdir()
        made.write_series(folder, values, **changes)

    (folder / "3.dcm").rename(root / "kept")
    refused(
        root, f"{folder}: 4.dcm and 2.dcm are 5 mm apart and other slices 2.5 mm", "is missing between them; add it"
    )
    (root / "kept").rename(folder / "3.dcm")
    (folder / "5.dcm").write_bytes((folder / "1.dcm").read_bytes())
    refused(root, "lie at the same place", "keep one series")
    (folder / "5.dcm").write_bytes((root / "images/scan-1/1.dcm").read_bytes())
    refused(root, f"{folder} holds several series: SeriesInstanceUID", "a folder of its own")
    (folder / "5.dcm").write_bytes(b"nothing")
    refused(root, f"{folder / '5.dcm'} is truncated, damaged or no DICOM image")
    for changes, *parts in (
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient", "save it as PNG or 16-bit TIFF"),
        ({"Modality": "SEG"}, "is a segmentation object (SEG)", "convert it to NIfTI"),
        ({"NumberOfFrames": 3}, "holds 3 frames", "convert it to NIfTI"),
        ({"SamplesPerPixel": 3}, "holds colours"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "holds inverted grey"),
        ({"PixelData": b"\0" * 10}, "the pixels of", "cannot be read"),
    ):
        again(**changes)
        refused(root, str(folder), *parts)


def test_packages_that_are_missing(
    write: Callable[..., Path],
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert issubclass(source.MissingExtraError, ImportError)
    coco, nifti, dicom = write("coco"), write("nifti"), write("dicom")
    for name in ("pycocotools", "nibabel", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(volumes, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="crowd"):
        refused(coco, "needs pycocotools, which is not installed: pip install 'sam_gym[coco]'")
    refused(nifti, "scan-0.nii.gz: NIfTI needs nibabel, which is not installed: pip install 'sam_gym[medical]'")
    refused(dicom, "DICOM needs pydicom")
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\nimagesTr/scan-0.nii.gz/2,4,3,20,18\n")
    asked = ("--images", str(nifti), "--boxes", str(tmp_path / "boxes.csv"), "--out", str(tmp_path / "out"))
    status, _, err = run("segment", *asked, "--agent", "none", "--checkpoint", "tiny_random", "--device", "cpu")
    assert status == 1
    assert "cannot segment imagesTr/scan-0.nii.gz/2: " in err
    assert "NIfTI needs nibabel" in err


def test_a_folder_of_two_sets(write: Callable[..., Path], made: Any) -> None:
    root = write("arrays")
    (root / "masks").mkdir()
    assert re.search("labels|masks", refused(root, "keep one of them"))
    other = root / "train"
    for i in range(2):
        made.save(other / "images" / f"{i}.png", made.grey(i))
    for name in ("images", "labels", "masks"):
        (root / name).rename(root / f"no-{name}")
    refused(root, "holds 2 image files", "If train is a data set of its own, name it as the root")
