"""The frozen Segment Anything Model as a service: checkpoints, prompts, and one decode call for many images."""

from sam_gym.sam.backend import SamBackend, get_backend
from sam_gym.sam.checkpoints import checkpoint_id, load_sam, save_decoder
from sam_gym.sam.interface import Backend, ImageEmbedding
from sam_gym.sam.masks import Masks, Statistics
from sam_gym.sam.prompts import PromptBatch
from sam_gym.sam.sources import CHECKPOINTS
from sam_gym.sam.weights_files import CheckpointError

__all__ = [
    "CHECKPOINTS",
    "Backend",
    "CheckpointError",
    "ImageEmbedding",
    "Masks",
    "PromptBatch",
    "SamBackend",
    "Statistics",
    "checkpoint_id",
    "get_backend",
    "load_sam",
    "save_decoder",
]
