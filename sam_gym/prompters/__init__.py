"""Scripted prompters: what an agent is compared with, sorted by what they look at. Hands names on."""

from sam_gym.prompters.blind import RandomPrompter, box_only, centre
from sam_gym.prompters.choice import offered_iou, oracle_choice, own_estimate
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
from sam_gym.prompters.regions import grid, oracle_regions, region_scores
from sam_gym.prompters.search import SearchPrompter, candidate_clicks, tried_iou
from sam_gym.prompters.table import PROMPTERS, baselines

__all__ = [
    "PROMPTERS",
    "IterativeBox",
    "Prompter",
    "RandomPrompter",
    "SearchPrompter",
    "baselines",
    "box_only",
    "candidate_clicks",
    "centre",
    "change_rate",
    "click_scores",
    "depths",
    "grid",
    "labelled_scores",
    "offered_iou",
    "oracle_box",
    "oracle_cells",
    "oracle_choice",
    "oracle_clicks",
    "oracle_regions",
    "own_estimate",
    "region_scores",
    "tight_boxes",
    "tried_iou",
    "uncertainty",
]
