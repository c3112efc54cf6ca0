"""The frozen Segment Anything Model as a service: checkpoints, prompts, and one decode call for many images."""

from sam_gym.sam.backend import ImageEmbedding, Masks, SamBackend, get_backend
from sam_gym.sam.checkpoints import CHECKPOINTS, CheckpointError, checkpoint_id, load_sam
from sam_gym.sam.prompts import PromptBatch

__all__ = [
    "CHECKPOINTS",
    "CheckpointError",
    "ImageEmbedding",
    "Masks",
    "PromptBatch",
    "SamBackend",
    "checkpoint_id",
    "get_backend",
    "load_sam",
]
