"""Every kind of folder: read to the last pixel, split by blocks, evaluated, trained on, drawn, segmented."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sam_gym.data import load_data
from sam_gym.data.formats import find_pictures
from sam_gym.data.images import open_pixels

Run = Callable[..., tuple[int, str, str]]

FOLDER = "SamPrompt-Folder-v0"
TINY = ("--checkpoint", "tiny_random", "--device", "cpu", "--precision", "exact")
SECTION = {
    "n_envs": 2, "n_timesteps": 10, "policy": "LightPolicy", "n_steps": 5, "batch_size": 5, "n_epochs": 1,
    "learning_rate": "lin_1.0e-4", "gamma": 0.99, "reward_scale": 10.0,
    "clone": {"total_timesteps": 10, "round_steps": 5, "gradient_steps": 1, "batch_size": 5},
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*crowd annotations are left out:UserWarning")


def test_what_was_written_is_read(own: Any) -> None:
    """Labels and image ids to the last one; no image, stack or volume is in two splits, unless a stack is alone."""
    read, splits = {}, {}
    for split in ("train", "val", "test"):
        data = load_data("folder", split, root=own.root, min_area=1)
        assert data.source == f"folder:{own.root.name}"
        read |= {image_id: data.labels(image_id) for image_id in data.image_ids}
        splits[split] = data.image_ids
    assert list(read) == list(own.labels)
    for image_id, expected in own.labels.items():
        np.testing.assert_array_equal(read[image_id], expected)
    if own.own_splits:
        assert {image_id.split("/")[0] for image_id in splits["val"]} == {"val"}
    elif len({image_id.split("/")[0] for image_id in read}) > 1:
        parts = [{image_id.split("/")[0] for image_id in ids} for ids in splits.values()]
        assert [len(part) for part in parts] == [3, 1, 1]
        assert len(set.union(*parts)) == 5
    else:
        assert splits["test"] == ("a/8", "a/9")


def test_images_show_their_objects(own: Any) -> None:
    """Objects are brighter than what lies left of them, so images are neither turned nor of another slice."""
    data = load_data("folder", "train", root=own.root, min_area=1)
    for image_id in data.image_ids:
        image = data.image(image_id)[..., 0].astype(int)
        left, right = data.labels(image_id)[:, :-1] > 0, data.labels(image_id)[:, 1:] > 0
        step = image[:, 1:] - image[:, :-1]
        assert (step[right & ~left] > 20).all()
        assert (step[left & ~right] < -20).all()
        assert (abs(step[left == right]) < 20).all()


def test_evaluate_and_render(own: Any, run: Run, tmp_path: Path) -> None:
    asked = (FOLDER, *TINY, "--root", str(own.root), "--set", "min_area=1")
    status, out, err = run(
        "evaluate", *asked, "--prompter", "box-only", "--objects", "2", "--out", str(tmp_path / "records")
    )
    assert status == 0, err
    assert "test split, 2 objects" in out
    image_id = load_data("folder", "val", root=own.root, min_area=1).image_ids[0]
    status, out, err = run("render", *asked, "--split", "val", "--image", image_id, "--out", str(tmp_path / "a.png"))
    assert status == 0, err
    assert f"image {image_id}, object " in out


def test_train(own: Any, run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump({FOLDER: SECTION}))
    status, _, err = run(
        "train", "--env", FOLDER, *TINY, "--root", str(own.root), "--set", "min_area=1", "max_prompts=1",
        "--config", str(tmp_path / "tiny.yml"), "--clone-steps", "0", "--eval-objects", "1", "--evaluations", "1",
        "--test-objects", "1", "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "run/model.zip").is_file()


def test_segment(own: Any, run: Run, tmp_path: Path) -> None:
    """Every picture of the folder can be named in a file of boxes."""
    names = set(find_pictures(own.root))
    assert set(own.pictures) <= names
    asked = [own.pictures[0], own.pictures[-1]]
    with open(tmp_path / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "x0", "y0", "x1", "y1"), *((name, 4, 3, 20, 18) for name in asked)])
    boxes = ("--boxes", str(tmp_path / "boxes.csv"), "--agent", "none")
    status, out, err = run("segment", "--images", str(own.root), *boxes, "--out", str(tmp_path / "out"), *TINY)
    assert status == 0, err
    assert out.startswith("2 of 2 images: 2 segmented, 0 found, 0 failed; 2 masks")
    for name in asked:
        assert open_pixels((tmp_path / "out/labels" / name).with_suffix(".png")).shape == (40, 56)


def test_the_same_is_read_from_all(made: Any, tmp_path: Path) -> None:
    """The window of a volume apart, images are the same bytes in whatever they were stored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        roots = {
            name: made.writers[name](tmp_path / name).root for name in ("arrays", "coco", "stack", "nifti", "dicom")
        }
        read = {name: load_data("folder", "train", root=root, min_area=1) for name, root in roots.items()}
    expected = np.dstack([made.grey(1)] * 3)
    for name, image_id in (
        ("arrays", "1"),
        ("coco", "1"),
        ("stack", "a/1"),
        ("nifti", "scan-0/1"),
        ("dicom", "scan-0/1"),
    ):
        np.testing.assert_array_equal(read[name].image(image_id), expected, err_msg=name)
