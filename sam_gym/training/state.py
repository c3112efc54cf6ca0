"""What a run knows of itself: `state.json` as it begins, and as one that was interrupted left it."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_gym._utils.asking import env_settings
from sam_gym.training.recipe import read_recipe

if TYPE_CHECKING:
    from sam_gym.training.arguments import Arguments

USUAL = {"eval_objects": 81, "evaluations": 3, "test_objects": None}
"""What is taken where an argument is not given."""

QUICK = {"eval_objects": 27, "evaluations": 1, "test_objects": 60}
"""The same with --quick."""

QUICK_STEPS = {"clone_steps": 640, "ppo_steps": 320}
"""Steps with --quick, where the recipe has no fewer."""

KEPT = ("env", "seed", "data", "checkpoint", "device", "precision", "attention", "reward", "clip", "wandb")
"""Arguments that a run goes on with."""


def begin(arguments: Arguments) -> tuple[Path, dict[str, Any]]:
    """Folder and state of a new run.

    Raises:
        ValueError: There is no such recipe, the folder holds a run already, or a number of objects is below 1.
    """
    counts = {}
    for name, usual in (QUICK if arguments.quick else USUAL).items():
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        counts[name] = usual if value is None else value
    asked = env_settings(arguments.env, arguments.root, arguments.set)
    config = read_recipe(arguments.config, arguments.env)
    if asked:
        config["env_kwargs"] = {**config.get("env_kwargs", {}), **asked}
    stages = (config["clone"], "total_timesteps", "clone_steps"), (config, "n_timesteps", "ppo_steps")
    for section, entry, name in stages:
        if (steps := getattr(arguments, name)) is not None:
            section[entry] = steps
        elif arguments.quick:
            section[entry] = min(section[entry], QUICK_STEPS[name])
    quick = "-quick" if arguments.quick else ""
    name = f"{arguments.env}{quick}-seed{arguments.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = arguments.run_dir or Path("runs") / name
    if (folder / "state.json").exists():
        raise ValueError(f"{folder} holds a run already: take it up with --resume {folder}, or name another folder")
    return folder, {
        "quick": arguments.quick, "arguments": {name: getattr(arguments, name) for name in KEPT} | counts,
        "config": config, "stage": "clone", "points": [], "best": None,
        "seconds": {"clone": 0.0, "ppo": 0.0, "report": 0.0}, "timing": {},
    }  # fmt: skip


def resume(arguments: Arguments) -> tuple[Path, dict[str, Any]]:
    """Folder and state of the run in `arguments.resume`; those of older versions are completed.

    Raises:
        ValueError: There is none, or something else is asked for as well.
    """
    folder = arguments.resume
    assert folder is not None, "the caller asks for it"
    others = [f.name for f in fields(arguments) if f.name != "resume" and getattr(arguments, f.name) != f.default]
    if others:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"--resume goes on with the run's own arguments; leave out {given}")
    file = folder / "state.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no state.json")
    state = json.loads(file.read_text())
    older = {"quick": False, "timing": {}}
    state["arguments"] = {
        "attention": "full",
        "clip": "clip-micro",
        "reward": None,
        "wandb": False,
        **state["arguments"],
    }
    return folder, {**older, **state}
