"""Reports about images: facts, the language that they are written in, and scores of what is written. Hands names on."""

from sam_gym.reports.facts import Fact, Region, Statement, describe, regions_of
from sam_gym.reports.language import Reading, ReportError, parse, write
from sam_gym.reports.scores import Score, judge

__all__ = [
    "Fact",
    "Reading",
    "Region",
    "ReportError",
    "Score",
    "Statement",
    "describe",
    "judge",
    "parse",
    "regions_of",
    "write",
]
