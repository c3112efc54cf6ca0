"""Masks for images of your own: boxes in, label images out, with SAM alone or with an agent. Hands names on."""

from sam_gym.annotate.contact_sheet import Tile, contact_sheet
from sam_gym.annotate.cue_boxes import CueBox, read_cue_boxes
from sam_gym.annotate.segment_folder import BoxRow, SegmentFolder
from sam_gym.annotate.segmenting import Segment, Segmenter, label_image

__all__ = [
    "BoxRow",
    "CueBox",
    "Segment",
    "SegmentFolder",
    "Segmenter",
    "Tile",
    "contact_sheet",
    "label_image",
    "read_cue_boxes",
]
