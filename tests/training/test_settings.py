"""A training takes a folder of one's own and any setting of its environment, and goes on with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_gym.training.arguments import Arguments
from sam_gym.training.recipe import evaluation_kwargs, train_kwargs
from sam_gym.training.state import begin


def test_root_and_settings_are_those_of_training_and_evaluation(tmp_path: Path) -> None:
    asked = Arguments(
        env="SamPrompt-Folder-v0", config="sketch", root=tmp_path, run_dir=tmp_path / "run",
        set=("max_prompts=3", "view_scale=2.5", "shares=[50,25,25]", 'reward={"iou": 1, "dice": 0.5}', "copies=1"),
    )  # fmt: skip
    config = begin(asked)[1]["config"]
    expected = {
        "root": str(tmp_path), "max_prompts": 3, "view_scale": 2.5, "shares": [50, 25, 25],
        "reward": {"iou": 1, "dice": 0.5},
    }  # fmt: skip
    assert train_kwargs(config) == {**expected, "copies": 1}
    assert evaluation_kwargs(config) == {**expected, "copies": 0}  # copies are for training
    assert train_kwargs(begin(Arguments(run_dir=tmp_path / "other"))[1]["config"]) == {}


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for arguments, message in (
        (Arguments(env="SamPrompt-Folder-v0"), "--root FOLDER is for ids such as"),
        (Arguments(set=("gird=8",)), "did you mean 'grid'|Did you mean 'grid'"),
        (Arguments(env="SamPrompt-ISBY-v0"), "Did you mean 'SamPrompt-ISBI-v0'"),
    ):
        with pytest.raises(ValueError, match=message):
            begin(arguments)
