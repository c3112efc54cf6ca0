"""`observation="reference"`: the small form of observations, and how a policy makes the full one of it (`resolve`).

Image, cue and SAM's embedding stay the same within an episode. With `observation="reference"` an environment says which
image, view and cue they are, and `resolve` makes maps and embedding of that where the policy needs them. An image's
number follows from its pixels and SAM's encoder, so it is the same in every process. A process that has no environment
of its own, as a learner on another machine, is told of the images once (`know`); their embeddings come from the disk
cache.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.envs import observations
from sam_gym.envs.observations import MAP_SIZE, STATE
from sam_gym.envs.shown_prompts import LARGEST, SHOWN_PROMPTS, ShownPrompts
from sam_gym.sam.cache import EmbeddingCache, content_key
from sam_gym.sam.interface import Backend

if TYPE_CHECKING:
    from sam_gym.envs.interface import EpisodeInterface

REFERENCE = ("image", "view_left", "view_top", "view_side", "cue_x0", "cue_y0", "cue_x1", "cue_y1")
"""Entries of `reference`, in order; all but the first in pixels of the image."""

SCENE_BYTES = 2**28
"""Memory for scenes that were resolved; a scene of MobileSAM takes 272 KiB."""


class _Image(NamedTuple):
    backend: Backend
    pixels: NDArray[np.uint8]
    name: str


_images: dict[float, _Image] = {}
_maps, _embeddings = EmbeddingCache(SCENE_BYTES // 16), EmbeddingCache(SCENE_BYTES)


def observation_space(shown: ShownPrompts, clicks: int, text_dim: int = 0) -> spaces.Dict:
    """The Dict space of one environment with `observation="reference"`.

    Args:
        shown: How the task's prompts are shown.
        clicks: How many an episode may hold.
        text_dim: Length of the text embedding; 0 for tasks without one.
    """
    return spaces.Dict(
        {
            "mask": spaces.Box(0, 255, (1, MAP_SIZE, MAP_SIZE), np.uint8),
            shown.name: shown.space(clicks),
            "reference": spaces.Box(-LARGEST, LARGEST, (len(REFERENCE),), np.float32),
            "state": spaces.Box(0.0, 1.0, (len(STATE) + len(shown.numbers),), np.float32),
            **observations.text_space(text_dim),
        }
    )


def register(backend: Backend, pixels: NDArray[np.uint8], key: str) -> float:
    """The number of an image, which `resolve` knows from now on in this process.

    Args:
        backend: Which embeds it.
        pixels: (H, W, 3) uint8; kept, not copied.
        key: Its content hash.

    Raises:
        ValueError: By chance another image has the same number. Of a thousand images, one pair in 4,000 such sets has.
    """
    name = f"{backend.encoder} {key}"
    number = _number(name)
    known = _images.setdefault(number, _Image(backend, pixels, name))
    if known.name != name:
        raise ValueError(
            f"two images have the same reference, {number}, by chance; make the environment with observation='full'"
        )
    return number


def _number(name: str) -> float:
    """A float32 of 31 bits of a hash: sign, 7 bits of the exponent (normal numbers below 4), fraction."""
    bits = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    sign, exponent, fraction = bits >> 31, 1 + (bits >> 23) % 128, bits % 2**23
    return float(np.uint32(sign << 31 | exponent << 23 | fraction).view(np.float32))


def know(env: EpisodeInterface) -> None:
    """Let `resolve` know all images of an environment's split, whether an episode of this process was on them or not.

    For processes that train a policy on observations of other processes: make there an environment of the same
    settings, which need not be stepped. Nothing is encoded before it is needed.
    """
    for index in range(len(env.data.image_ids)):
        pixels = env.data.image(index)
        register(env.backend, pixels, content_key(pixels))


def resolve(seen: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """Observations as `observation="full"` gives them, made of those by reference.

    Args:
        seen: A batch as SB3 hands it to a features extractor: `mask` (N, 1, 64, 64) float in [0, 1]; `clicks` or
            `box`, `reference` and `state` as they are, and `text` where there is one.
        grid: G of the action grid.

    Returns:
        `maps` (N, 7 or 6, 64, 64) float in [0, 1], `embedding` (N, C, G, G) float32, `state`, and `text` where there is
        one, on the device of `mask`.

    Raises:
        ValueError: A reference is to an image that this process does not know.
    """
    device = seen["mask"].device
    shown = next(shown for shown in SHOWN_PROMPTS if shown.name in seen)
    rows, prompts = seen["reference"].cpu().numpy(), seen[shown.name].cpu().numpy()
    scenes = [_scene(row, grid) for row in rows]
    drawn = np.stack([shown.maps(one, row[1:4], grid) for one, row in zip(prompts, rows, strict=True)])
    fixed = torch.stack([maps for maps, _ in scenes]).to(device).float() / 255
    prompted = torch.as_tensor(drawn, device=device).float() / 255
    return {
        "maps": torch.cat([fixed[:, :3], seen["mask"], fixed[:, 3:], prompted], dim=1),
        "embedding": torch.stack([embedding for _, embedding in scenes]).to(device),
        **{name: seen[name] for name in ("state", "text") if name in seen},
    }


def _scene(reference: NDArray[np.float32], grid: int) -> tuple[Tensor, Tensor]:
    """(4, 64, 64) uint8 maps of image and cue, and (C, G, G) float32 embedding, remembered for a while."""
    key = f"{grid}:{reference.tobytes().hex()}"
    maps, embedding = _maps.get(key), _embeddings.get(key)
    if maps is None or embedding is None:
        number, view, cue = float(reference[0]), reference[1:4], reference[4:8]
        if number not in _images:
            raise ValueError(
                f"reference to image {number:g}, which no environment of this process has seen: where the policy lives "
                "in another process than the environment, make one of the same settings there and call "
                'sam_gym.envs.references.know(env); or use observation="full"'
            )
        image = _images[number]
        image_map, cue_map = observations.scene_maps(image.pixels, view, cue)
        maps = torch.as_tensor(np.concatenate([image_map, cue_map[None]]))
        embedding = observations.embedding_map(image.backend.encode([image.pixels])[0], view, grid)
        _maps.put(key, maps)
        _embeddings.put(key, embedding)
    return maps, embedding
