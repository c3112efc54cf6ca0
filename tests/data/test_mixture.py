"""Mixtures: every dataset as often as another, images shared and not copied, copies of training images part by part."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sam_gym.data import DATASETS, load_data
from sam_gym.data.copies import with_copies
from sam_gym.data.mixture import MixedData

NAME = "synthetic-em+synthetic-smear-cells+synthetic-smear-nuclei"


@pytest.fixture(scope="module")
def mixed() -> MixedData:
    data = load_data(NAME, "train", min_area=50)
    assert isinstance(data, MixedData)
    return data


def test_every_dataset_is_drawn_as_often_as_another_and_every_object_of_it(mixed: MixedData) -> None:
    rng = np.random.default_rng(0)
    rows = np.array([mixed.draw(rng) for _ in range(6000)])
    names = [mixed.image_ids[i].split("/")[0] for i in mixed.objects.image_index[rows]]
    counts = [names.count(name) for name in NAME.split("+")]
    assert min(counts) > 1800
    assert len(mixed.objects) == sum(len(part.objects) for part in mixed.parts)
    small = np.flatnonzero([name.endswith("nuclei") for name in names])
    assert len(set(rows[small])) == len(mixed.parts[2].objects)  # some 50 of them, drawn 2,000 times


def test_a_spread_takes_as_many_of_each_and_all_of_those_that_are_few(mixed: MixedData) -> None:
    few, many = len(mixed.parts[2].objects), len(mixed.objects)
    for count, of_nuclei in ((30, 10), (200, few)):
        rows = mixed.spread(count)
        assert len(set(rows)) == count
        names = [mixed.image_ids[i].split("/")[0] for i in mixed.objects.image_index[rows]]
        assert names.count("synthetic-smear-nuclei") == of_nuclei
        assert abs(names.count("synthetic-em") - names.count("synthetic-smear-cells")) <= 1
    np.testing.assert_array_equal(mixed.spread(many), np.arange(many))


def test_images_are_those_of_the_parts(mixed: MixedData) -> None:
    part = mixed.parts[1]
    name = f"{part.name}/{part.image_ids[3]}"
    assert mixed.image(name) is part.image(3)
    np.testing.assert_array_equal(mixed.labels(name), part.labels(3))
    assert (mixed.name, mixed.source) == (NAME, NAME)
    assert load_data(NAME, "train", min_area=50) is mixed
    assert pickle.loads(pickle.dumps(mixed)).hash() == mixed.hash()


def test_copies_are_made_part_by_part(mixed: MixedData) -> None:
    more, alone = with_copies(mixed, 1), with_copies(mixed.parts[2], 1)
    name = alone.image_ids[-1]
    np.testing.assert_array_equal(more.image(f"{alone.name}/{name}"), alone.image(name))
    assert isinstance(more, MixedData)
    assert len(more.image_ids) == 2 * len(mixed.image_ids)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synthetic-em+synthetic-me", "synthetic-me"),
        ("synthetic-em+", "dataset"),
        ("synthetic-em+synthetic-em", "uniq"),
    ],
)
def test_mixtures_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name, "val")


def test_smears_have_cells_and_nuclei_in_them() -> None:
    cells, nuclei = (DATASETS[f"synthetic-smear-{what}"] for what in ("cells", "nuclei"))
    assert cells.splits == nuclei.splits
    image, cell_labels = cells.read(None, "smear-3")  # type: ignore[arg-type]
    same, nucleus_labels = nuclei.read(None, "smear-3")  # type: ignore[arg-type]
    np.testing.assert_array_equal(image, same)
    assert nucleus_labels.any()
    assert (np.asarray(cell_labels)[np.asarray(nucleus_labels) > 0] > 0).all()
