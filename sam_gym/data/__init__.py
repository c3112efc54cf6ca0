"""Images with labelled objects: the dataset table, the loaders, the generator. Hands names on, nothing else."""

from sam_gym.data.datasets import DATASETS, load_data
from sam_gym.data.images import read_image, to_rgb_uint8
from sam_gym.data.segmentation import ObjectTable, SegmentationData
from sam_gym.data.sources import DataUnavailableError
from sam_gym.data.spec import DatasetSpec
from sam_gym.data.unlabelled import UnlabelledData
from sam_gym.data.whole_class import load_whole_class

__all__ = [
    "DATASETS",
    "DataUnavailableError",
    "DatasetSpec",
    "ObjectTable",
    "SegmentationData",
    "UnlabelledData",
    "load_data",
    "load_whole_class",
    "read_image",
    "to_rgb_uint8",
]
