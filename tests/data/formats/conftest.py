"""One writer for each kind of folder: five images, or stacks, whose labels are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as runs
from pydicom.dataset import FileMetaDataset

HEIGHT, WIDTH = 40, 56
N = 5


def labels(number: int) -> NDArray[np.int32]:
    """Three objects, one of them of two parts, whose places tell images apart, and pixels, rows and columns too."""
    picture = np.zeros((HEIGHT, WIDTH), np.int32)
    picture[3 + number : 18, 4:20] = 1
    picture[22:36, 6 + number : 30] = 2
    picture[5:12, 34:50] = picture[20 : 30 + number, 36:52] = 700
    return picture


def grey(number: int, dtype: type = np.uint8, scale: float = 1) -> NDArray:
    """An image in which objects are brighter, of no symmetry."""
    ramp = np.add.outer(np.arange(HEIGHT), 2 * np.arange(WIDTH)) / 4
    return ((40 + ramp + 60 * (labels(number) > 0) + number) * scale).astype(dtype)


def save(path: Path, pixels: NDArray) -> None:
    """A picture by Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@dataclass
class Written:
    """A folder and what has to be read from it: image id -> labels; whether the splits are its own; pictures' names."""

    root: Path
    labels: dict[str, NDArray] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    own_splits: bool = False


def micro_sam(root: Path) -> Written:
    """16-bit images and 32-bit label images in TIFF, compressed as micro-sam does."""
    written = Written(root)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(N):
        tifffile.imwrite(root / f"images/{i}.tif", grey(i, np.uint16, 150))
        tifffile.imwrite(root / f"masks/{i}.tif", labels(i).astype(np.uint32), compression="zlib")
        written.labels[str(i)] = labels(i)
        written.pictures.append(f"images/{i}.tif")
    return written


def cellpose(root: Path) -> Written:
    """What Cellpose leaves beside its images."""
    written = Written(root)
    root.mkdir(parents=True)
    for i in range(N):
        tifffile.imwrite(root / f"{i}.tif", grey(i, np.float32, 3.5))
        save(root / f"{i}_cp_masks.png", labels(i).astype(np.uint16))
        tifffile.imwrite(root / f"{i}_flows.tif", np.zeros((HEIGHT, WIDTH), np.float32))
        np.save(root / f"{i}_seg.npy", {"masks": labels(i)}, allow_pickle=True)  # type: ignore[arg-type]
        written.labels[str(i)] = labels(i)
        written.pictures.append(f"{i}.tif")
    return written


def arrays(root: Path) -> Written:
    """Images and labels as `.npy`."""
    written = Written(root)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(N):
        np.save(root / f"images/{i}.npy", grey(i))
        np.save(root / f"labels/{i}_label.npy", labels(i).astype(np.int64))
        written.labels[str(i)] = labels(i)
        written.pictures.append(f"images/{i}.npy")
    return written


def stack(root: Path) -> Written:
    """One stack of slices, of which one shows nothing."""
    written = Written(root)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    slices = [labels(i) * (i != 3) for i in range(2 * N)]
    tifffile.imwrite(
        root / "images/a.tif", np.stack([grey(i) for i in range(2 * N)]), imagej=True, metadata={"axes": "ZYX"}
    )
    tifffile.imwrite(root / "masks/a_masks.tif", np.stack(slices), compression="zlib")
    written.labels = {f"a/{i}": one for i, one in enumerate(slices) if one.any()}
    written.pictures = [f"images/a.tif/{i}" for i in range(2 * N)]
    return written


def coco(root: Path) -> Written:
    """Polygons, run lengths as numbers and as text, and a crowd, in turn."""
    written = Written(root)
    images, annotations = [], []
    for i in range(N):
        save(root / f"images/{i}.png", grey(i))
        images.append({"id": 10 + i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH})
        for number, value in enumerate((1, 2, 700), start=1):
            mask = labels(i) == value
            entry = {"id": 100 * i + number, "image_id": 10 + i, "category_id": 1, "iscrowd": 0}
            entry["segmentation"] = (polygons, numbers, text)[i % 3](mask)
            annotations.append(entry)
        written.labels[str(i)] = np.select([labels(i) == v for v in (1, 2, 700)], [1, 2, 3]).astype(np.int32)
        written.pictures.append(f"images/{i}.png")
    annotations.append({"id": 999, "image_id": 10, "category_id": 1, "iscrowd": 1, "segmentation": {}})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text(json.dumps(content))
    return written


def polygons(mask: NDArray) -> list[list[float]]:
    """The rectangles that a mask consists of."""
    from scipy import ndimage

    found = []
    for y, x in ndimage.find_objects(ndimage.label(mask)[0]):
        assert mask[y, x].all()
        found.append([x.start, y.start, x.stop, y.start, x.stop, y.stop, x.start, y.stop])
    return [[float(v) for v in polygon] for polygon in found]


def numbers(mask: NDArray) -> dict:
    """Run lengths down the columns, the first one of pixels outside."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def text(mask: NDArray) -> dict:
    """Run lengths as pycocotools writes them."""
    coded = runs.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": coded["counts"].decode()}


def medsegbench(root: Path) -> Written:
    """All splits in one file, classes as labels."""
    written = Written(root, own_splits=True)
    root.mkdir(parents=True)
    arrays = {}
    for split, first, n in (("train", 0, 3), ("val", 3, 1), ("test", 4, 2)):
        arrays[f"{split}_images"] = np.stack([np.dstack([grey(first + i)] * 3) for i in range(n)])
        arrays[f"{split}_label"] = np.stack([np.minimum(labels(first + i), 3).astype(np.uint8) for i in range(n)])
        for i in range(n):
            written.labels[f"{split}/{i}"] = arrays[f"{split}_label"][i]
            written.pictures.append(f"some_256.npz/{split}/{i}")
    np.savez_compressed(root / "some_256.npz", **arrays)
    return written


AFFINE = np.array([[-0.8, 0, 0, 20], [0, -0.7, 0, 30], [0, 0, 2.5, -40], [0, 0, 0, 1]], np.float64)
"""Of a volume whose columns run to the left, rows to the back, slices to the head: those of an axial DICOM series."""


def volume(number: int, value: Callable[[int], NDArray]) -> NDArray:
    """Four slices (I, J, K); the first shows nothing."""
    slices = [value(number + k) * (value is not labels or k > 0) for k in range(4)]
    return np.stack([one.T for one in slices], axis=-1)


def nifti(root: Path) -> Written:
    """Volumes stored from the left to the right, and their masks the other way round."""
    written = Written(root)
    for kind in ("imagesTr", "labelsTr"):
        (root / kind).mkdir(parents=True)
    for i in range(N):
        scan = nibabel.Nifti1Image(volume(i, grey).astype(np.int16) - 100, AFFINE)
        scan.header["cal_min"], scan.header["cal_max"] = -100, 155
        nibabel.save(scan, root / f"imagesTr/scan-{i}.nii.gz")
        mask = nibabel.Nifti1Image(volume(i, labels).astype(np.int32), AFFINE)
        nibabel.save(nibabel.as_closest_canonical(mask), root / f"labelsTr/scan-{i}.nii.gz")
        written.labels |= {f"scan-{i}/{k}": labels(i + k) for k in range(1, 4)}
        written.pictures += [f"imagesTr/scan-{i}.nii.gz/{k}" for k in range(4)]
    return written


def write_series(folder: Path, values: NDArray, *, window: bool = True, **changes: object) -> None:
    """A DICOM series (I, J, K) at `AFFINE`; files in another order than their positions."""
    folder.mkdir(parents=True)
    series = pydicom.uid.generate_uid(entropy_srcs=[str(folder)])[:50]
    for k in range(values.shape[2]):
        one = pydicom.Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{series}.{k}"
        one.SeriesInstanceUID, one.Modality = series, "CT"
        one.ImagePositionPatient = [-AFFINE[0, 3], -AFFINE[1, 3], AFFINE[2, 3] + k * AFFINE[2, 2]]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelSpacing = [-AFFINE[1, 1], -AFFINE[0, 0]]
        one.SliceThickness = AFFINE[2, 2]
        one.Columns, one.Rows = values.shape[:2]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 0
        one.RescaleSlope, one.RescaleIntercept = (1, -1024) if window else (1, 0)
        if window:
            one.WindowCenter, one.WindowWidth = 27.5, 255
        one.PixelData = np.ascontiguousarray(values[..., k].T, np.uint16).tobytes()
        for name, value in changes.items():
            setattr(one, name, value)
        one.save_as(folder / f"{values.shape[2] - k}.dcm", enforce_file_format=True)


def dicom(root: Path) -> Written:
    """Series; masks are NIfTI files, or series too."""
    written = Written(root)
    (root / "masks").mkdir(parents=True)
    for i in range(N):
        write_series(root / f"images/scan-{i}", volume(i, grey).astype(np.int32) + 924)
        mask = volume(i, labels)
        if i % 2:
            write_series(root / f"masks/scan-{i}", mask, window=False)
        else:
            image = nibabel.Nifti1Image(mask.astype(np.int32), AFFINE)
            nibabel.save(nibabel.as_closest_canonical(image), root / f"masks/scan-{i}.nii")
        written.labels |= {f"scan-{i}/{k}": labels(i + k) for k in range(1, 4)}
        written.pictures += [f"images/scan-{i}/{k}.dcm" for k in range(1, 5)]
    return written


WRITERS = {writer.__name__: writer for writer in (micro_sam, cellpose, arrays, stack, coco, medsegbench, nifti, dicom)}
"""One a kind of folder."""


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """What tests write files with."""
    return SimpleNamespace(
        grey=grey, labels=labels, volume=volume, write_series=write_series, save=save, affine=AFFINE,
        polygons=polygons, numbers=numbers, text=text, writers=WRITERS,
    )  # fmt: skip


@pytest.fixture(scope="session", params=list(WRITERS))
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A folder of each kind in turn."""
    return WRITERS[request.param](tmp_path_factory.mktemp("own") / request.param)
