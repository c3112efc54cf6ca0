"""What a training is asked: a folder of one's own, any setting of its environment, recipes, --help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sam_gym.registration import env_ids
from sam_gym.training import read_recipe, recipe_names
from sam_gym.training.arguments import Arguments
from sam_gym.training.recipe import evaluation_kwargs, train_kwargs
from sam_gym.training.state import begin

AGENTS = Path(__file__).resolve().parents[2] / "agents"


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


@pytest.mark.parametrize("env_id", env_ids())
def test_every_environment_has_a_recipe(env_id: str) -> None:
    assert recipe_names() == ["alignsam", "alignsam_gain", "clip", "ppo", "sketch"]
    assert read_recipe("ppo", env_id)["n_envs"] == 16


@pytest.mark.parametrize("name", ["train_ppo.py", "evaluate.py"])
def test_help_is_quick_and_teaches(name: str) -> None:
    code = (
        "import runpy, sys, time; start = time.perf_counter()\n"
        f"sys.argv = [{name!r}, '--help']\n"
        f"try: runpy.run_path({str(AGENTS / name)!r}, run_name='__main__')\n"
        "except SystemExit as exit: assert not exit.code\n"
        "heavy = {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'SECONDS', time.process_time())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"python agents/{name} runs/NAME" in said or f"python agents/{name} --resume runs/NAME" in said
    assert "SamPrompt-ISBI-v0" in said
    assert "HEAVY [] SECONDS" in said
    assert float(said.split()[-1]) < 2
