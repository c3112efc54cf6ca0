"""Recipes: hyper-parameters in rl-zoo form, a YAML file with one section per environment id.

Those in `recipes/` go by their names; "ppo" is the one that everything is trained by unless another is asked for.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import yaml
from sb3_contrib import MaskablePPO
from stable_baselines3.common.utils import LinearSchedule

from sam_gym._utils.naming import unknown
from sam_gym.sb3 import ALGORITHMS, CloneSettings
from sam_gym.sb3.judging import JudgeSettings
from sam_gym.sb3.recalibrating import RecalibratingSettings
from sam_gym.sb3.sketching import SketchSettings

RESERVED = ("n_envs", "n_timesteps", "policy", "reward_scale", "clone")
"""Entries of a config section that are not arguments of the algorithm."""

OPTIONAL = ("env_kwargs", "eval_env_kwargs", "recalibration", "anchored", "sketch", "judge")
"""More of them, that a section may do without."""


RECIPES = Path(__file__).resolve().parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.yml"))


def recipe_file(recipe: str | Path) -> Path:
    """The file of a recipe.

    Args:
        recipe: A YAML file, or the name of a packaged recipe.

    Raises:
        ValueError: There is neither.
    """
    if str(recipe) in recipe_names():
        return RECIPES / f"{recipe}.yml"
    file = Path(recipe).expanduser()
    if file.is_file():
        return file
    if file.suffix in (".yml", ".yaml") or len(file.parts) > 1:
        raise ValueError(f"there is no config {file}; packaged recipes go by name: {', '.join(recipe_names())}")
    raise ValueError(unknown("recipe", str(recipe), recipe_names()))


def read_recipe(recipe: str | Path, env: str) -> dict[str, Any]:
    """The section of a recipe for an environment, its entries checked.

    Args:
        recipe: A YAML file, or the name of a packaged recipe.
        env: Environment id.

    Raises:
        ValueError: There is no such recipe or section, or an entry of it is unknown or missing.
    """
    file = recipe_file(recipe)
    shown = f"recipe {file.stem}" if file.parent == RECIPES else str(file)
    try:
        sections = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{shown} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(sections, dict) or env not in sections:
        known = [name for name in sections if name in gymnasium.registry] if isinstance(sections, dict) else []
        raise ValueError(f"{shown} has no section for {env!r}; it has {', '.join(known) or 'none'}")
    section, where = sections[env], f"{shown}, section {env}"
    policy = section.get("policy") if isinstance(section, dict) else None
    if policy is not None and policy not in ALGORITHMS:
        raise ValueError(f"{where}: {unknown('policy', policy, ALGORITHMS)}")
    algorithm = MaskablePPO if policy is None else ALGORITHMS[policy][0]
    _check_entries(section, [*inspect.signature(algorithm).parameters, *RESERVED, *OPTIONAL], where)
    _check_entries(
        section.get("recalibration", {}), [f.name for f in fields(RecalibratingSettings)], f"{where}, recalibration"
    )
    _check_entries(section.get("sketch", {}), [f.name for f in fields(SketchSettings)], f"{where}, sketch")
    _check_entries(section.get("judge", {}), [f.name for f in fields(JudgeSettings)], f"{where}, judge")
    _check_entries(section["clone"], [f.name for f in fields(CloneSettings)], f"{where}, clone")
    return section


def _check_entries(section: Any, known: list[str], where: str) -> None:
    """Raise ValueError unless `section` is a mapping of `known` names that has those which are needed."""
    if not isinstance(section, dict):
        raise ValueError(f"{where}: names and values are needed, got {section!r}")
    for name in section:
        if name not in known:
            raise ValueError(f"{where}: {unknown('entry', name, known)}")
    for name in (*RESERVED, "gamma"):
        if name in known and name not in section:
            raise ValueError(f"{where}: {name!r} is missing")


def model_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the algorithm."""
    arguments = {name: _schedule(value) for name, value in config.items() if name not in (*RESERVED, *OPTIONAL)}
    return {**arguments, "policy_kwargs": {"judge": True}} if "judge" in config else arguments


def _schedule(value: Any) -> Any:
    """rl-zoo's "lin_0.001": falls linearly to zero."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value


def module_of(model: Path) -> Path:
    """The file of the recalibration module that belongs to a saved model."""
    return model.with_suffix(".safetensors")


def train_kwargs(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a recipe's training environment."""
    return {**config.get("env_kwargs", {}), **({"labeler": "untrained"} if "recalibration" in config else {})}


def evaluation_kwargs(config: dict[str, Any], model: Path | None = None) -> dict[str, Any]:
    """Arguments of the environment that a recipe's model is evaluated in; without a file its module is yet to come."""
    kwargs = {**train_kwargs(config), **config.get("eval_env_kwargs", {})}
    return {**kwargs, "labeler": str(module_of(model))} if model is not None and "labeler" in kwargs else kwargs
