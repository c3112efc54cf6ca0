"""Readers of what a folder of one's own may hold, one a kind, all behind `Source` and `Images`. Hands names on."""

from sam_gym.data.formats.opening import VOLUME_SUFFIXES, find_pictures, open_images
from sam_gym.data.formats.source import Images, Source

__all__ = ["VOLUME_SUFFIXES", "Images", "Source", "find_pictures", "open_images"]
