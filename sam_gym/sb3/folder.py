"""An agent as a folder: `sam_gym.json` says what it is and how its policy is built, beside it lie the weights.

Nothing in such a folder can run code. Classes are looked up in a table and never imported by name, numbers have bounds,
weights are plain arrays. A folder is for using an agent: training it further takes the zip file of Stable-Baselines3.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

from sam_gym._utils.fetching import atomic_path, write_json
from sam_gym._utils.hub import LABELER, MEMBER, WEIGHTS
from sam_gym._utils.naming import first_line
from sam_gym.registration import TASKS
from sam_gym.sb3.description import BESIDE, CLIP_NAME, NEEDED, Description
from sam_gym.sb3.models import ALGORITHMS, AnyPolicy, ModelPrompter

POLICIES: dict[str, type[AnyPolicy]] = {f"{one.__module__}.{one.__qualname__}": one for _, one in ALGORITHMS.values()}
"""Name in `sam_gym.json` -> class: those of the package, and no others."""

EXTRACTOR_ARGUMENTS = ("channels", "width", "masked", "grid", "embedding_channels", "features_dim")
"""Arguments of features extractors that a folder may set."""

UNSHAPING = ("lr_schedule", "optimizer_class", "optimizer_kwargs", "log_std_init", "ortho_init")
"""Arguments of policies that say how to train and where to begin, and nothing of what trained weights do."""

SETTINGS = (*NEEDED, "clip", "labeler", "stop", "repeats")
"""Settings of an environment that a folder may ask for."""

MOST = 512
"""Largest number that an argument may be, so that no folder can ask for more memory than a policy takes."""


def write_folder(folder: Path, policy: Any, description: Description, labeler: Path | None = None) -> None:
    """Write an agent as a folder. What was written is read again, and must be the same agent.

    Args:
        folder: Where to; files of another agent there are replaced.
        policy: One of `ALGORITHMS`.
        description: Of the agent.
        labeler: The module that labels its clicks, where the settings have one.

    Raises:
        ValueError: The folder holds something else, or the policy is not one that a folder can describe.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / MEMBER).is_file() or not any(folder.iterdir()))):
        raise ValueError(f"{folder} is there and holds no agent: name a new folder")
    if POLICIES.get(description.policy) is not type(policy):
        raise ValueError(
            f"an agent of {description.policy} cannot be a folder: those of {', '.join(ALGORITHMS)} can; share the zip"
            " file, with people who trust you"
        )
    made = policy._get_constructor_parameters()
    arguments: dict[str, Any] = {"features_extractor_kwargs": made["features_extractor_kwargs"]}
    if made.get("judge"):
        arguments["judge"] = True
    network = {
        "observation_space": _space_json(policy.observation_space),
        "action_space": _space_json(policy.action_space),
        "arguments": arguments,
    }
    again = _build(description.policy, network)._get_constructor_parameters()
    if differing := [name for name in made if name not in UNSHAPING and made[name] != again[name]]:
        raise ValueError(
            f"a folder cannot say what this policy was made with: {', '.join(differing)}; share the zip file"
        )
    _check_settings(description)
    if labeler is not None:
        with atomic_path(folder / LABELER) as path:
            shutil.copyfile(labeler, path)
    with atomic_path(folder / WEIGHTS) as path:
        safetensors.torch.save_model(policy, str(path))
    write_json(folder / MEMBER, {**asdict(description), "network": network})
    read_folder(folder, "cpu")


def read_folder(folder: Path, device: str = "auto") -> tuple[AnyPolicy, Description]:
    """The policy in a folder, and what is said of it.

    Raises:
        ValueError: There is no such agent, or the folder is not as `write_folder` writes it.
    """
    file = folder / MEMBER
    if not file.is_file():
        raise ValueError(
            f"{folder} is no agent: it has no {MEMBER}; `sam-gym push MODEL.zip --to DIR` writes such a folder"
        )
    text = file.read_bytes()
    said, network = Description.parse(text, folder), json.loads(text).get("network")
    try:
        _check_settings(said)
        policy = _build(said.policy, network)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"the {MEMBER} in {folder} describes no agent: {first_line(error)}") from error
    try:
        safetensors.torch.load_model(policy, folder / WEIGHTS, strict=True, device="cpu")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {WEIGHTS}: fetch or write the agent again") from error
    except (RuntimeError, safetensors.SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / WEIGHTS} does not hold the weights of this {said.policy}: {why}") from error
    said.check_identity(ModelPrompter(policy).identity, folder)
    policy.set_training_mode(False)
    return policy.to(get_device(device)), said


def _check_settings(said: Description) -> None:
    """Settings reach an environment, so that names of files and of models elsewhere have no place in them."""
    if said.task is not None and said.task not in {task.name for task in TASKS}:
        raise ValueError(f"there is no task {said.task!r}")
    if not isinstance(said.settings, dict):
        raise ValueError("settings are names and values")
    for name, value in said.settings.items():
        if not isinstance(value, str | int | float) or (not isinstance(value, str) and not abs(value) <= MOST):
            raise ValueError(f"it sets {name!r} to {str(value)[:100]}")
    if unknown := [name for name in said.settings if name not in SETTINGS]:
        raise ValueError(f"it sets {unknown[0]!r}, and agents set {', '.join(SETTINGS)}")
    if (labeler := said.settings.get("labeler", BESIDE)) != BESIDE:
        raise ValueError(f"its labeler is {labeler!r}, and a folder's labeler lies in it as {LABELER}")
    clip = said.settings.get("clip", "")
    if not isinstance(clip, str) or (clip and not CLIP_NAME.fullmatch(clip)):
        raise ValueError(f"its clip is {clip!r}, and a folder names published models: clip-micro or MODEL/TAG")


def _build(name: Any, network: Any) -> AnyPolicy:
    """A policy of random weights, by what a folder says."""
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}")
    if not isinstance(network, dict):
        raise ValueError("it does not say how the policy is built ('network')")
    arguments = dict(network["arguments"])
    extractor = arguments.pop("features_extractor_kwargs", {})
    for argument, value in {**arguments, **extractor}.items():
        known = argument in EXTRACTOR_ARGUMENTS if argument in extractor else argument == "judge"
        if not known or not isinstance(value, int) or not 0 <= value <= MOST:
            raise ValueError(f"a policy is not built with {argument}={value!r}")
    observation_space, action_space = _space(network["observation_space"]), _space(network["action_space"])
    made: Any = POLICIES[name]
    return made(observation_space, action_space, lambda _: 0.0, features_extractor_kwargs=extractor, **arguments)


# ------------------------------------------------------------------------------------------------------------ spaces


def _space_json(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {name: _space_json(part) for name, part in space.spaces.items()}}
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return {"type": "Discrete", "n": int(space.n)}
    if isinstance(space, spaces.Box) and len(np.unique(space.low)) == len(np.unique(space.high)) == 1:
        low, high = str(space.low.flat[0]), str(space.high.flat[0])  # as text: JSON has no infinity
        return {"type": "Box", "low": low, "high": high, "shape": list(space.shape), "dtype": str(space.dtype)}
    raise ValueError(f"a folder cannot describe the space {space}")


def _space(stored: Any) -> spaces.Space:
    kind = stored["type"]
    if kind == "Dict":
        return spaces.Dict({str(name): _box(part) for name, part in stored["spaces"].items()})
    if kind == "Discrete":
        return spaces.Discrete(_count(stored["n"], 2**16))
    return _box(stored)


def _box(stored: Any) -> spaces.Box:
    shape = tuple(_count(size, 4096) for size in stored["shape"])
    if stored["type"] != "Box" or stored["dtype"] not in ("uint8", "float32") or math.prod(shape) > 2**22:
        raise ValueError(f"no agent observes or acts in {str(stored)[:100]}")
    dtype: Any = np.dtype(stored["dtype"]).type
    return spaces.Box(dtype(float(stored["low"])), dtype(float(stored["high"])), shape, dtype)


def _count(value: Any, most: int) -> int:
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{value!r} is no size from 1 to {most}")
    return value
