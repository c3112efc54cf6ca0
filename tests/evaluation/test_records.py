"""Records: what is computed from the objects, by hand, and the form in which they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

from sam_gym.evaluation.records import COLUMNS, Record

Make = Callable[..., Record]


def test_a_summary_by_hand(make_record: Make) -> None:
    record = make_record(
        [[0.5, 0.6], [0.2, 0.6]], prompts=np.array([1, 0]), dice=np.array([0.75, 0.25]),
        decodes=np.array([2.0, 1.5]), returns=np.array([0.25, -0.75]), provenance={"split": "val"},
    )  # fmt: skip
    summary = record.summary()
    assert summary["iou_after_prompts"] == [0.35, 0.6]
    assert summary["gain_over_box_only"]["mean"] == pytest.approx(0.25)
    assert summary["final_iou"] == summary["final_boundary_iou"] == {"mean": 0.6, "low": 0.6, "high": 0.6}
    assert summary["final_dice"] == {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert (summary["objects"], summary["mean_prompts"], summary["mean_decodes"]) == (2, 0.5, 1.75)
    assert summary["mean_return"] == -0.25
    assert (summary["name"], summary["seconds"], summary["split"]) == ("some", 1.5, "val")


def test_reached_at_the_last_prompt_is_not_never_reached(make_record: Make) -> None:
    record = make_record([
        [0.1, 0.2, 0.81],  # at the last
        [0.1, 0.8, 0.3],  # at the first, and lost again
        [0.85, 0.85, 0.85],  # by the box alone
        [0.1, 0.2, 0.799999],  # never
    ])  # fmt: skip
    assert record.noc(0.80) == {"reached": 3, "never": 1, "mean_of_reached": 1.0, "mean": 5 / 4}
    assert record.noc(0.85) == {"reached": 1, "never": 3, "mean_of_reached": 0.0, "mean": 6 / 4}
    assert record.noc(0.90) == {"reached": 0, "never": 4, "mean_of_reached": None, "mean": 2.0}
    assert list(record.measures()["noc"]) == ["80%", "85%", "90%"]
    assert record.measures()["noc"]["80%"] == record.noc(0.80)


def test_failures_are_counted_by_kind(make_record: Make) -> None:
    curves = [[0.5, 0.499999], [0.5, 0.5], [0.5, 0.0], [0.0, 0.0]]
    record = make_record(curves, area=np.array([30, 30, 0, 0]))
    assert record.failures == {"below_start": 2, "empty_masks": 2}


def test_a_record_survives_json(make_record: Make) -> None:
    rng = np.random.default_rng(0)
    record = make_record(rng.random((5, 4)).round(6), provenance={"split": "val", "episode_list": {"version": 1}})
    text = json.dumps(record.to_json(), allow_nan=False)
    again = Record.from_json(json.loads(text))
    for field in fields(Record):
        ours, theirs = getattr(record, field.name), getattr(again, field.name)
        if field.name in COLUMNS:
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs, field.name
    assert json.dumps(again.to_json()) == text


def test_measures_are_computed_again_from_the_objects(make_record: Make) -> None:
    stored = make_record([[0.5, 0.6], [0.2, 0.6]]).to_json()
    stored["objects"][0]["iou"][-1] = 0.9
    stored["measures"]["final_iou"]["mean"] = 0.99
    assert Record.from_json(stored).measures()["final_iou"]["mean"] == 0.75


@pytest.mark.parametrize("found", [1, 2, 4])
def test_other_formats_are_refused(make_record: Make, found: int) -> None:
    stored = make_record([[0.5, 0.6]]).to_json()
    stored["format"] = found
    if found == 1:  # it did not say so
        del stored["format"]
    with pytest.raises(ValueError, match=f"format {found}, read is 3: evaluate its prompter anew"):
        Record.from_json(stored)
