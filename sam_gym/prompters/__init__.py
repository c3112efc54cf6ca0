"""Scripted prompters: what an agent is compared with, sorted by what they look at. Hands names on."""

from sam_gym.prompters.blind import RandomPrompter, box_only, centre
from sam_gym.prompters.mask import IterativeBox, change_rate, uncertainty
from sam_gym.prompters.oracle import (
    click_scores,
    depths,
    labelled_scores,
    oracle_box,
    oracle_cells,
    oracle_clicks,
    tight_boxes,
)
from sam_gym.prompters.prompter import Prompter
from sam_gym.prompters.table import PROMPTERS, baselines

__all__ = [
    "PROMPTERS",
    "IterativeBox",
    "Prompter",
    "RandomPrompter",
    "baselines",
    "box_only",
    "centre",
    "change_rate",
    "click_scores",
    "depths",
    "labelled_scores",
    "oracle_box",
    "oracle_cells",
    "oracle_clicks",
    "tight_boxes",
    "uncertainty",
]
