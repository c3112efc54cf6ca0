"""A saved agent says what it is, SB3 still reads it, what it says is checked; older files are known by their spaces."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sam_gym.sb3 import BoxPolicy, SamVecEnv, SavedAgent, SpatialPolicy, save_agent
from sam_gym.sb3.description import Description, describe
from sam_gym.sb3.extractors import ReferenceExtractor, SideExtractor, SpatialExtractor
from sam_gym.sb3.recalibrating import RecalibratingSettings, Recalibrator

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "agents"
CHOSEN = (129, 41, 34, 296, 356, 44, 278, 342, 429, 397, 87, 274)
"""What the published agents, in the order of their names, find best in `test_published_agents_load`."""

QUICK: dict[str, Any] = {"n_steps": 2, "batch_size": 2, "n_epochs": 1, "seed": 0, "device": "cpu"}


def vector(small: dict[str, Any], **changes: Any) -> Any:
    return gymnasium.make_vec(**{**small, "num_envs": 2, "autoreset_mode": "SameStep", **changes})


def saved(folder: Path, small: dict[str, Any], **changes: Any) -> Path:
    """An untrained agent of SamPrompt, as `save_agent` writes it."""
    model = MaskablePPO(SpatialPolicy, VecMonitor(SamVecEnv(vector(small, **changes))), **QUICK)
    save_agent(model, folder / "model.zip")
    return folder / "model.zip"


def rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any] | bytes]) -> None:
    """Change what a file says, and nothing else of it."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = change(json.loads(members["sam_gym.json"]))
    members["sam_gym.json"] = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_file_says_what_its_spaces_cannot(small: dict[str, Any], tmp_path: Path) -> None:
    """The view and the number of prompts leave no trace in full observations."""
    file = saved(tmp_path, small, grid=8, max_prompts=3, view_scale=2.5)
    agent = SavedAgent.load(file, "cpu")
    wanted = {"action_mode": "grid", "observation": "full", "grid": 8, "max_prompts": 3, "view_scale": 2.5}
    assert (agent.task, agent.settings) == ("SamPrompt", wanted)
    said = agent.description
    assert said is not None
    assert (said.env_id, said.dataset, said.format) == (small["id"], "synthetic-em", 1)
    assert said.checkpoint is not None
    assert said.checkpoint.startswith("tiny_random-")
    assert (said.algorithm, said.policy) == ("MaskablePPO", "sam_gym.sb3.policy.SpatialPolicy")
    assert said.identity == agent.identity
    assert said.versions["torch"] == torch.__version__
    assert said.versions.keys() >= {"sam_gym", "stable_baselines3", "gymnasium"}
    plain = MaskablePPO.load(file, device="cpu")  # for SB3 it is a file like any other
    assert plain.policy.state_dict().keys() == agent.model.policy.state_dict().keys()
    agent.prompter(vector(small, **agent.settings))
    with pytest.raises(ValueError, match="fit this environment .* its checkpoint was tiny_random-"):
        agent.prompter(vector(small))


def test_the_algorithm_is_read_not_guessed(small: dict[str, Any], tmp_path: Path) -> None:
    """PPO without masks acts in discrete spaces as well, for which MaskablePPO is the guess."""
    single = gymnasium.make(**small)
    model = PPO("MultiInputPolicy", DummyVecEnv([lambda: single]), **QUICK)
    save_agent(model, tmp_path / "model.zip")
    agent = SavedAgent.load(tmp_path / "model.zip", "cpu")
    assert type(agent.model) is PPO
    env = vector(small)
    observations, _ = env.reset(seed=0)
    assert agent.prompter(env)(observations, env).shape == (2,)
    with pytest.raises(ValueError, match="was trained for SamPrompt, not for SamPromptSemantic"):
        agent.check_task("SamPromptSemantic")


def test_a_labelled_agent_names_its_module(small: dict[str, Any], tiny_clip: str, tmp_path: Path) -> None:
    changes = {"id": "SamPromptSemantic-Synthetic-v0", "clip": tiny_clip, "stop": False, "repeats": True}
    env = vector({**small, "split": "train"}, **changes, labeler="untrained")
    model = MaskablePPO(SpatialPolicy, SamVecEnv(env), **QUICK)
    save_agent(model, tmp_path / "model.zip")
    Recalibrator(env, RecalibratingSettings(), 0).module.save(tmp_path / "model.safetensors")
    agent = SavedAgent.load(tmp_path / "model.zip", "cpu")
    assert agent.task == "SamPromptSemantic"
    agent.prompter(vector(small, id=changes["id"], **agent.settings))
    with pytest.raises(ValueError, match="it says that it was for SamPromptSemantic"):
        agent.env_class  # noqa: B018


def test_saved_for_use_it_says_the_same(small: dict[str, Any], tmp_path: Path) -> None:
    agent = SavedAgent.load(saved(tmp_path, small, view_scale=2.5), "cpu")
    agent.save_for_use(tmp_path / "small.zip")
    again = SavedAgent.load(tmp_path / "small.zip", "cpu")
    assert (again.description, again.settings) == (agent.description, agent.settings)
    with torch.no_grad():
        next(again.model.policy.parameters()).add_(1)
    again.save_for_use(tmp_path / "small.zip")  # what it says is of the weights that it holds
    assert SavedAgent.load(tmp_path / "small.zip", "cpu").identity != agent.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: {**said, "identity": "0" * 12}, r"weights [0-9a-f]{12}, but its sam_gym.json is of weights 0+"),
        (lambda said: {**said, "format": 2}, "of format 2, and sam_gym .* reads format 1: use the sam_gym that wrote"),
        (lambda said: {"format": 1, "task": "SamPrompt"}, "does not say algorithm, checkpoint"),
        (lambda said: {**said, "algorithm": "DQN"}, "a model of DQN, and sam_gym loads those of MaskablePPO and PPO"),
        (lambda said: [said], "is of format None"),
        (lambda said: b"{", "is not JSON: save the agent again"),
    ],
)  # fmt: skip
def test_what_is_said_wrongly(small: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    file = saved(tmp_path, small)
    rewrite(file, change)
    with pytest.raises(ValueError, match=message) as raised:
        SavedAgent.load(file, "cpu")
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_described(small: dict[str, Any]) -> None:
    env = vector(small)
    model = MaskablePPO(SpatialPolicy, SamVecEnv(env), **QUICK)
    with pytest.raises(ValueError, match="described by an environment of sam_gym"):
        describe(model, gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"acts in Discrete\(513\) and this environment takes Discrete\(129\)"):
        describe(model, vector(small, grid=8))
    other: Any = A2C("MultiInputPolicy", SamVecEnv(env), n_steps=2, device="cpu")
    with pytest.raises(ValueError, match="agents of MaskablePPO and PPO, not of A2C"):
        describe(other)


def test_published_agents_load() -> None:
    """Of before there was sam_gym.json: by their spaces, and by the names of classes that they hold.

    And they choose what they chose when they were published.
    """
    files = sorted(PUBLISHED.glob("*/*.zip"))
    generator = torch.Generator().manual_seed(0)
    seen = {
        "maps": torch.randint(0, 256, (1, 7, 64, 64), generator=generator, dtype=torch.uint8),
        "embedding": 0.09 * torch.randn(1, 256, 16, 16, generator=generator),
        "state": torch.rand(1, 5, generator=generator),
    }
    for file, chosen in zip(files, CHOSEN, strict=True):
        agent = SavedAgent.load(file, "cpu")
        assert agent.description is Description.read(file) is None
        assert (agent.task, agent.settings["action_mode"], agent.settings["grid"]) == ("SamPrompt", "grid", 16)
        policy = agent.model.policy
        assert type(policy) is SpatialPolicy
        with torch.no_grad():
            assert int(policy.outputs_and_values(seen)[0].argmax()) == chosen


@pytest.mark.parametrize("wanted", [SpatialPolicy, BoxPolicy, SpatialExtractor, ReferenceExtractor, SideExtractor])
def test_classes_are_found_where_files_name_them(wanted: type) -> None:
    assert pickle.loads(f"csam_gym.sb3.policy\n{wanted.__name__}\n.".encode()) is wanted
