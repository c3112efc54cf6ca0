"""What a person did in a session becomes states with labels that Cloner learns from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image
from sb3_contrib import MaskablePPO

from sam_gym.annotate import Segmenter, Session
from sam_gym.data import load_data
from sam_gym.sb3 import Cloner, CloneSettings, SamVecEnv, SpatialPolicy
from sam_gym.sb3.demonstrations import read_demonstrations

SAM = {"checkpoint": "tiny_random", "device": "cpu"}
SETTINGS = {**SAM, "action_mode": "grid", "grid": 16, "max_prompts": 5}
BOX = (40.0, 60.0, 140.0, 120.0)  # its view is 170 px wide, from x = 5 and y = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image, and a session in which a person clicked three times and accepted; another object is not accepted."""
    image = load_data("synthetic-em", "val").image(0)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    session = Session(image, Segmenter(**SAM), "a.png")
    session.begin_box(BOX)
    session.click(5 + 170 / 16 * 3.2, 5 + 170 / 16 * 2.9, 1)
    session.click(250, 250, 0)  # outside of the view: it teaches nothing
    session.click(5 + 170 / 16 * 7.5, 5 + 170 / 16 * 8.1, 0)
    if not session.segment().area:
        session.click(90, 90, 1)
    session.accept()
    session.begin_box((150, 150, 200, 200))
    session.click(170, 170, 1)
    (tmp_path / "a.json").write_text(json.dumps(session.to_json()))
    return tmp_path


def read(folder: Path) -> Any:
    return read_demonstrations([folder / "a.json"], folder / "images", SETTINGS, gamma=0.9, reward_scale=10.0)


def test_states_labels_and_returns(folder: Path) -> None:
    samples = read(folder)
    actions = samples.target.argmax(axis=1).tolist()
    assert actions[:2] == [2 * 16 + 3, 256 + 8 * 16 + 7]
    assert actions[-1] == 512  # stop, once all is well
    assert (samples.target.max(axis=1) == 1).all()
    np.testing.assert_allclose(samples.state[:2, 0], [1, 1 - 2 / 5])
    assert samples.allowed[np.arange(len(actions)), actions].all()
    assert samples.returns[-1] == 0
    assert len(samples.embedding) == 1


def test_the_cloner_learns_from_them(folder: Path, tmp_path: Path) -> None:
    """The person's states are among those that a policy is fitted to: it comes to do what the person did."""
    samples = read(folder)
    env: Any = gymnasium.make_vec(
        "SamPrompt-Synthetic-v0", num_envs=2, split="val", autoreset_mode="SameStep", **SETTINGS
    )
    model = MaskablePPO(SpatialPolicy, SamVecEnv(env), n_steps=2, batch_size=4, seed=0, device="cpu")
    settings = CloneSettings(total_timesteps=4, round_steps=2, gradient_steps=60, batch_size=16)
    observed = {"maps": samples.maps, "state": samples.state, "embedding": samples.embedding[samples.episode] * 1.0}
    observed["embedding"] = observed["embedding"].astype(np.float32)

    def agreed() -> float:
        """Mean probability of what the person did."""
        distribution = model.policy.get_distribution(
            model.policy.obs_to_tensor(observed)[0], action_masks=samples.allowed
        )
        probability = distribution.distribution.probs.detach().numpy()
        return float(probability[np.arange(len(samples.target)), samples.target.argmax(axis=1)].mean())

    before = agreed()
    many = type(samples)(**{
        name: value if name == "embedding" else np.concatenate([value] * 8) for name, value in vars(samples).items()
    })  # fmt: skip
    cloner = Cloner(
        model.policy, env, settings, tmp_path / "c", seed=0, gamma=0.9, reward_scale=10.0, demonstrations=many
    )
    cloner.run(lambda *_: None)
    assert agreed() > 10 * before


def test_nothing_to_learn_from(folder: Path) -> None:
    stored = json.loads((folder / "a.json").read_text())
    stored["log"] = [event for event in stored["log"] if event["do"] != "accept"]
    (folder / "a.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="no object of the sessions"):
        read(folder)
