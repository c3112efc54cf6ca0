"""Which scripted prompters there are for which kind of action."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sam_gym.envs.labelling import LabelledCells
from sam_gym.prompters.blind import RandomPrompter, box_only, centre
from sam_gym.prompters.choice import oracle_choice, own_estimate
from sam_gym.prompters.mask import IterativeBox, uncertainty
from sam_gym.prompters.oracle import oracle_box, oracle_cells, oracle_clicks
from sam_gym.prompters.prompter import Prompter
from sam_gym.prompters.regions import grid, oracle_regions
from sam_gym.prompters.search import SearchPrompter

if TYPE_CHECKING:
    from sam_gym.envs.settings import Settings


_ANY: dict[str, Callable[[int], Prompter]] = {"box only": lambda seed: box_only, "random": RandomPrompter}
PROMPTERS: dict[str, dict[str, Callable[[int], Prompter]]] = {
    "grid": {
        **_ANY,
        "centre": lambda seed: centre,
        "uncertainty": lambda seed: uncertainty,
        "oracle search": SearchPrompter,
        "oracle clicks": lambda seed: oracle_clicks,
    },
    "cells": {**_ANY, "oracle cells": lambda seed: oracle_cells},
    "continuous": {**_ANY, "oracle box": lambda seed: oracle_box},
    "choice": {
        "random": RandomPrompter,
        "own estimate": lambda seed: own_estimate,
        "oracle choice": lambda seed: oracle_choice,
    },
    "regions": {**_ANY, "grid": lambda seed: grid, "oracle regions": lambda seed: oracle_regions},
    "discrete": {**_ANY, "iterative box": lambda seed: IterativeBox(), "oracle box": lambda seed: oracle_box},
}
"""Scripted prompters by action mode ("cells": "grid" with a labeler) and name: seed -> prompter."""

SLOW = ("oracle search",)
"""These take minutes where others take seconds, and so stand in a table only where they are asked for by name."""


def baselines(settings: Settings, seed: int = 0, *, slow: bool = False) -> dict[str, Prompter]:
    """What an agent in an environment of these settings is compared with, by name; the oracle comes last.

    With `slow`, those of `SLOW` are among them.
    """
    actions = settings.actions()
    mode = "cells" if isinstance(actions, LabelledCells) else settings.action_mode
    without = [*(() if slow else SLOW), *(() if actions.stop is not None else ("box only",))]
    makers = {name: make for name, make in PROMPTERS[mode].items() if name not in without}
    return {settings.unprompted if name == "box only" else name: make(seed) for name, make in makers.items()}
