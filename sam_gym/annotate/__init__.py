"""Masks for images of your own: boxes in, label images out, with SAM alone or with an agent. Hands names on."""

from sam_gym.annotate.contact_sheet import Tile, contact_sheet
from sam_gym.annotate.cue_boxes import CueBox, read_cue_boxes
from sam_gym.annotate.history import Click, Object
from sam_gym.annotate.segment_folder import BoxRow, SegmentFolder
from sam_gym.annotate.segmenting import Segment, Segmenter, label_image
from sam_gym.annotate.session import Export, Session

__all__ = [
    "BoxRow",
    "Click",
    "CueBox",
    "Export",
    "Object",
    "Segment",
    "SegmentFolder",
    "Segmenter",
    "Session",
    "Tile",
    "contact_sheet",
    "label_image",
    "read_cue_boxes",
]
