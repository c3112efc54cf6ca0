"""An agent's folder acts as its zip file does, to the last bit; nothing in it can run code; what is wrong is said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3 import PPO
from torch import nn

from sam_gym.sb3 import ALGORITHMS, ModelPrompter, SamVecEnv, SavedAgent, save_agent
from sam_gym.sb3.folder import write_folder
from sam_gym.sb3.recalibrating import RecalibratingSettings, Recalibrator

QUICK: dict[str, Any] = {"n_steps": 2, "batch_size": 2, "n_epochs": 1, "seed": 0, "device": "cpu"}
BY_REFERENCE = {"observation": "reference"}
FEWER = {"embedding_channels": 32}
"""The tiny SAM has 32 channels, where reference observations are taken to be of 256."""

LABELLED = {"id": "SamPromptSemantic-Synthetic-v0", "split": "train", "stop": False, "repeats": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "light": ("LightPolicy", {"grid": 8, "view_scale": 2.5}, {"features_extractor_kwargs": {"width": 16}}),
    "light, judge": ("LightPolicy", {}, {"judge": True, "stop_share": 0.2}),
    "light, reference": ("LightPolicy", BY_REFERENCE, {"features_extractor_kwargs": FEWER}),
    "sketch": ("SketchPolicy", {}, {"judge": True}),
    "spatial": ("SpatialPolicy", {}, {"features_extractor_kwargs": {"masked": True}}),
    "spatial, labelled": ("SpatialPolicy", {**LABELLED, "labeler": "untrained"}, {}),
    "box": ("BoxPolicy", {"id": "SamBoxRefine-Synthetic-v0"}, {"log_std_init": -1.0}),
    "box, reference": (
        "BoxPolicy", {"id": "SamBoxRefine-Synthetic-v0", **BY_REFERENCE}, {"features_extractor_kwargs": FEWER},
    ),
    "choice": ("ChoicePolicy", {"id": "SamPrefer-Synthetic-v0"}, {}),
}  # fmt: skip


def saved(folder: Path, small: dict[str, Any], case: str = "light") -> tuple[SavedAgent, SavedAgent]:
    """The same agent from its zip file and from its folder, with weights of a kind that no initialisation draws."""
    policy, changes, arguments = CASES[case]
    env: Any = gymnasium.make_vec(**{**small, "num_envs": 2, "autoreset_mode": "SameStep", **changes})
    algorithm, policy_class = ALGORITHMS[policy]
    model: Any = algorithm(policy_class, SamVecEnv(env), policy_kwargs=arguments, **QUICK)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in dict.fromkeys(model.policy.state_dict(keep_vars=True).values()):
            weights += 0.05 * torch.randn(weights.shape, generator=generator)
    save_agent(model, folder / "model.zip")
    if "labeler" in changes:
        Recalibrator(env, RecalibratingSettings(), 0).module.save(folder / "model.safetensors")
    agent = SavedAgent.load(folder / "model.zip", "cpu")
    agent.save_folder(folder / "agent")
    return agent, SavedAgent.load(folder / "agent", "cpu")


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_its_zip_file(small: dict[str, Any], tmp_path: Path, case: str) -> None:
    zipped, agent = saved(tmp_path, small, case)
    assert (agent.task, agent.identity, agent.description) == (zipped.task, zipped.identity, zipped.description)
    env_id = CASES[case][1].get("id", small["id"])
    env: Any = gymnasium.make_vec(**{**small, "id": env_id, "num_envs": 3, **agent.settings})
    one, other = zipped.prompter(env), agent.prompter(env)
    observations, _ = env.reset(seed=0)
    for _ in range(2):
        seen = {name: torch.as_tensor(array) for name, array in observations.items()}
        with torch.no_grad():
            said = [each.policy.outputs_and_values(seen) for each in (one, other)]
        assert all(torch.equal(left, right) for left, right in zip(*said, strict=True))
        if one.judge is not None:
            assert np.array_equal(one.judge(observations), other.judge(observations))
        actions = one(observations, env)
        assert np.array_equal(actions, other(observations, env))
        assert np.array_equal(actions, pickle.loads(pickle.dumps(other))(observations, env))  # as to other processes
        observations, *_ = env.step(actions)
    again = tmp_path / "again.zip"
    agent.save_for_use(again)  # there is no zip file of a policy alone
    assert not again.exists()
    assert SavedAgent.load(tmp_path / "again").settings.keys() == agent.settings.keys()


def test_every_policy_of_the_package_is_tried() -> None:
    assert {policy for policy, _, _ in CASES.values()} == set(ALGORITHMS)


def test_nothing_is_unpickled(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, small)

    def refused(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("something was unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "cloudpickle.loads"):
        monkeypatch.setattr(name, refused)
    SavedAgent.load(tmp_path / "agent", "cpu")
    with pytest.raises(AssertionError, match="unpickled"):
        SavedAgent.load(tmp_path / "model.zip", "cpu")


def network(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda said: {**said, "network": {**said["network"], **changes}}


def state(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    box = {"type": "Box", "low": "0", "high": "1", "shape": [5], "dtype": "float32", **changes}
    return lambda said: network(observation_space={"type": "Dict", "spaces": {"state": box}})(said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: {**said, "format": 2, "versions": ["9"]}, "of format 2, and sam_gym .* reads format 1: use the"),
        (lambda said: {**said, "policy": "os.system"}, "there is no policy 'os.system'; there are sam_gym.sb3"),
        (lambda said: {**said, "policy": ["os"]}, "there is no policy"),
        (lambda said: {**said, "algorithm": {}}, "a model of {}, and sam_gym loads those of"),
        (lambda said: {**said, "identity": "0" * 12}, "but its sam_gym.json is of weights 0000"),
        (lambda said: {**said, "task": "Shell"}, "there is no task 'Shell'"),
        (lambda said: {**said, "task": ["SamPrompt"]}, "unhashable"),
        (lambda said: {**said, "settings": []}, "settings are names and values"),
        (lambda said: {**said, "settings": {"checkpoint": "/x.pt"}}, "sets 'checkpoint', and agents set action_mode"),
        (lambda said: {**said, "settings": {"max_prompts": 1e9}}, "sets 'max_prompts' to 1000000000"),
        (lambda said: {**said, "settings": {"grid": {"a": 1}}}, "sets 'grid' to {'a': 1}"),
        (lambda said: {**said, "settings": {"labeler": "/etc/x"}}, "its labeler is '/etc/x'"),
        (lambda said: {**said, "settings": {"clip": "hf-hub:a/b"}}, "its clip is 'hf-hub:a/b'"),
        (lambda said: {name: said[name] for name in said if name != "network"}, "does not say how the policy is built"),
        (network(arguments={"features_extractor_kwargs": {"width": 10**6}}), "not built with width=1000000"),
        (network(arguments={"optimizer_class": "os.system"}), "not built with optimizer_class='os.system'"),
        (network(arguments={"features_extractor_kwargs": {"judge": 1}}), "not built with judge=1"),
        (network(arguments={"features_extractor_kwargs": {"features_dim": 9}}), "unexpected keyword argument"),
        (network(action_space={"type": "Discrete", "n": 2**40}), "1099511627776 is no size from 1 to 65536"),
        (network(action_space={"type": "Discrete", "n": 7}), r"Discrete\(129\) is needed, got Discrete\(7\)"),
        (state(shape=[4096, 4096, 4096]), "no agent observes or acts in"),
        (state(dtype="O"), "no agent observes or acts in"),
        (state(low="low"), "could not convert"),
        (lambda said: {}, "of format None"),
        (lambda said: b"[" * 10**5, "is not JSON"),
    ],
)  # fmt: skip
def test_a_hostile_description(small: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    saved(tmp_path, small)
    file = tmp_path / "agent" / "sam_gym.json"
    changed = change(json.loads(file.read_bytes()))
    file.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
    with pytest.raises(ValueError, match=message) as raised:
        SavedAgent.load(tmp_path / "agent", "cpu")
    assert str(tmp_path / "agent") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_that_do_not_fit(small: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path, small)
    file = tmp_path / "agent" / "policy.safetensors"
    weights = safetensors.torch.load_file(file)
    first, *rest = weights
    for changed in ({first: weights[first][..., :1]}, {first: torch.zeros(1), "more": torch.zeros(1)}, {}):
        safetensors.torch.save_file({**{name: weights[name] for name in rest}, **changed}, file)
        with pytest.raises(ValueError, match="does not hold the weights of this sam_gym.sb3.policy.LightPolicy"):
            SavedAgent.load(tmp_path / "agent", "cpu")
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="does not hold the weights"):
        SavedAgent.load(tmp_path / "agent", "cpu")
    file.unlink()
    with pytest.raises(ValueError, match=r"has no policy.safetensors: fetch or write the agent again"):
        SavedAgent.load(tmp_path / "agent", "cpu")
    (tmp_path / "agent" / "sam_gym.json").unlink()
    with pytest.raises(ValueError, match=r"is no agent: it has no sam_gym.json; `sam-gym push"):
        SavedAgent.load(tmp_path / "agent", "cpu")


def test_what_cannot_be_a_folder(small: dict[str, Any], tmp_path: Path) -> None:
    agent, _ = saved(tmp_path, small)
    with pytest.raises(ValueError, match="is there and holds no agent: name a new folder"):
        agent.save_folder(tmp_path)
    env: Any = gymnasium.make_vec(**{**small, "num_envs": 1, "autoreset_mode": "SameStep"})
    save_agent(PPO("MultiInputPolicy", SamVecEnv(env), **QUICK), tmp_path / "other.zip")
    with pytest.raises(ValueError, match=r"MultiInputActorCriticPolicy cannot be a folder: those of LightPolicy"):
        SavedAgent.load(tmp_path / "other.zip", "cpu").save_folder(tmp_path / "other")
    algorithm, policy = ALGORITHMS["LightPolicy"]
    model: Any = algorithm(policy, SamVecEnv(env), policy_kwargs={"activation_fn": nn.ELU}, **QUICK)
    save_agent(model, tmp_path / "own.zip")
    own = SavedAgent.load(tmp_path / "own.zip", "cpu")
    with pytest.raises(ValueError, match="cannot say what this policy was made with: activation_fn; share the zip"):
        write_folder(tmp_path / "own", ModelPrompter(own.model).policy, own.described)
    assert not (tmp_path / "own").exists()
