"""What a region is called: region-text scores and similarity maps of open_clip models. They need the extra `clip`."""

from sam_gym.semantics.models import ClipError, ClipModel, load_clip
from sam_gym.semantics.scorer import RegionScorer, get_scorer
from sam_gym.semantics.similarity import similarity_map

__all__ = ["ClipError", "ClipModel", "RegionScorer", "get_scorer", "load_clip", "similarity_map"]
