"""Training: a run and its stages, recipes, reports; what `sam-gym train` and agents/train_ppo.py call.

Hands names on, and loads torch only for those that need it. Training needs the extra `sb3`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_gym.training.arguments import Arguments, train
    from sam_gym.training.recipe import evaluation_kwargs, read_recipe, recipe_names, train_kwargs
    from sam_gym.training.report import write_report
    from sam_gym.training.run import Training

_HOMES = {
    "Arguments": "arguments",
    "Training": "run",
    "evaluation_kwargs": "recipe",
    "read_recipe": "recipe",
    "recipe_names": "recipe",
    "train": "arguments",
    "train_kwargs": "recipe",
    "write_report": "report",
}
"""Name -> the module that it is written in."""

__all__ = [
    "Arguments",
    "Training",
    "evaluation_kwargs",
    "read_recipe",
    "recipe_names",
    "train",
    "train_kwargs",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
