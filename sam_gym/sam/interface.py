"""What every backend is: `Backend`, and the handles of its images. Images go in once, prompts become masks.

A further model behind the same interface says how one image is encoded and how prompts are decoded, in eight short
pieces; what is common to all of them, such as caches, checks, threads and measuring, is here. Nothing outside
`sam_gym.sam` needs to know which model it is. `sam_gym.sam.backend` has SAM's, `sam_gym.sam.sam2` SAM 2's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sam_gym.sam.cache import EmbeddingCache, content_key
from sam_gym.sam.decoder import Each
from sam_gym.sam.disk_cache import DiskCache
from sam_gym.sam.fovea import Window
from sam_gym.sam.masks import Masks, WindowMasks, examine, join, upscale
from sam_gym.sam.prompts import PromptBatch
from sam_gym.sam.workers import in_parallel

GPU_MICRO_BATCH = 64
"""Masks decoded together on a GPU. On a CPU each mask is decoded by itself, which is quicker there and makes its
result independent, to the last bit, of what else was in the call."""

CACHE_BYTES = 2**30
"""Memory for embeddings where nothing else is asked for."""


@dataclass(frozen=True)
class ImageEmbedding:
    """What SAM's encoder says of one image; the handle that `SamBackend.decode` takes.

    Attributes:
        key: Content hash of the image.
        features: (C, h, w) on the backend's device, float32 in precision "exact" and float16 in "fast". Shared: never
            write into it.
        image_size: (H, W) of the original image in pixels.
        input_size: (H, W) of the image inside the model's square input frame, before padding.
        finer: (C', h, w) more of the same encoder, for decoders that read finer cells (SAM 2's): those of each cell of
            `features` side by side, as `torch.nn.functional.pixel_unshuffle` packs them. None where there is none.
    """

    key: str
    features: Tensor
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    finer: Tensor | None = None


class Backend(ABC):
    """A frozen model that encodes images and decodes prompts; see `sam_gym.sam.get_backend`, which gives one.

    Args:
        checkpoint: Its name or path.
        device: Where it computes.
        precision: As `SamBackend` has it.
        cache_bytes: Memory for embeddings.
        micro_batch: Masks decoded together; None for 1 on a CPU, 64 on a GPU.
        disk_folder: Folder of the disk tier; None for none.

    Attributes:
        checkpoint, device, precision, micro_batch: As given.
        disk_cache: The `DiskCache` of this backend's encoder and precision, or None; subclasses set it.
        encoder_calls: Images that went through the encoder so far.
        decoder_calls: Calls of `decode` so far.
        masks_decoded: Prompts that went through it in all those calls.
    """

    def __init__(
        self,
        checkpoint: str,
        device: torch.device,
        precision: str,
        cache_bytes: int,
        micro_batch: int | None,
        disk_folder: Path | None,
    ) -> None:
        self.checkpoint, self.device, self.precision = checkpoint, device, precision
        self._settings = (checkpoint, str(device), precision, cache_bytes, micro_batch, disk_folder)
        self.micro_batch = micro_batch or (1 if device.type == "cpu" else GPU_MICRO_BATCH)
        self.encoder_calls = 0
        self.decoder_calls = 0
        self.masks_decoded = 0
        self._cache: EmbeddingCache = EmbeddingCache(cache_bytes)
        self.disk_cache: DiskCache | None = None

    def __reduce__(self) -> tuple:
        # Weights do not travel: another process asks for its own shared backend of the same settings.
        from sam_gym.sam.backend import _shared_backend

        return _shared_backend, self._settings

    # ------------------------------------------------------------------ what a model says of itself

    @property
    def has_windows(self) -> bool:
        """Whether `window` and `decode_windows` work."""
        return False

    @property
    @abstractmethod
    def encoder(self) -> str:
        """What names the encoder and the dtype of embeddings: equal where embeddings are, in any process."""

    @property
    @abstractmethod
    def embedding_channels(self) -> int:
        """C of `ImageEmbedding.features`."""

    @property
    @abstractmethod
    def mask_size(self) -> tuple[int, int]:
        """(4h, 4w) of low-resolution logits, and of mask prompts."""

    @property
    @abstractmethod
    def _logits_side(self) -> int:
        """Side of the square in pixels that low-resolution logits are interpolated to before they are cut."""

    @abstractmethod
    def _inside(self, embedding: ImageEmbedding) -> tuple[int, int]:
        """(H, W) of the image inside that square."""

    @abstractmethod
    def _input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of an image inside the model's input frame, in whose pixels prompts are given to the decoder."""

    @abstractmethod
    def _run_encoder(self, image: NDArray[np.uint8]) -> Tensor:
        """(1, C + C', h, w) of an image (H, W, 3), in the dtype that is kept; C' are those of `finer`, if any."""

    @abstractmethod
    def _run_decoder(
        self,
        embeddings: Sequence[ImageEmbedding],
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_logits: Tensor | None,
        has_mask: Tensor,
        multimask: bool,
        each: Each,
    ) -> Masks:
        """Logits and predicted IoU of a few prompts; arguments as those of `BatchedDecoder.__call__`."""

    # ------------------------------------------------------------------ what all have in common

    @torch.no_grad()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Embed images, running the encoder only for those whose pixels are neither in memory nor on disk.

        Args:
            images: Arrays (H, W, 3) uint8 RGB; sizes may differ.

        Returns:
            One handle per image, in order.

        Raises:
            ValueError: An image has another shape or dtype (`sam_gym.data.to_rgb_uint8` converts).

        Warns:
            UserWarning: An embedding on disk is damaged, or none can be written; the result is right all the same.
        """
        return [self._encode_one(i, image) for i, image in enumerate(images)]

    def _encode_one(self, index: int, image: NDArray[np.uint8]) -> ImageEmbedding:
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(
                f"image {index} has shape {image.shape} and dtype {image.dtype}; expected (height, width, 3) uint8. "
                "sam_gym.data.to_rgb_uint8 converts grey, RGBA, 16-bit and float images"
            )
        key = content_key(image)
        size = (image.shape[0], image.shape[1])
        features = self._cache.get(key)
        if features is None:
            features = self._load_or_run_encoder(key, image)
            self._cache.put(key, features)
        own, finer = self.embedding_channels, None
        if len(features) > own:
            features, finer = features[:own], features[own:]
        return ImageEmbedding(key, features, size, self._input_size(size), finer)

    def _load_or_run_encoder(self, key: str, image: NDArray[np.uint8]) -> Tensor:
        if self.disk_cache is not None and (stored := self.disk_cache.get(key)) is not None:
            return stored.to(self.device)
        features = self._run_encoder(image).contiguous(memory_format=torch.channels_last)[0]
        self.encoder_calls += 1
        if self.disk_cache is not None:
            self.disk_cache.put(key, features, (image.shape[0], image.shape[1]))
        return features

    @torch.no_grad()
    def decode(
        self,
        embeddings: Sequence[ImageEmbedding],
        prompts: PromptBatch,
        *,
        multimask: bool = False,
        statistics: bool = False,
        truths: Sequence[Tensor] | None = None,
        full: bool = False,
    ) -> Masks:
        """Masks for N prompts on N images in one call.

        Args:
            embeddings: One handle per prompt row; the same one may stand in several places.
            prompts: N prompts, coordinates in pixels of each original image.
            multimask: Three masks for ambiguous prompts instead of the single one.
            statistics: Measure area and tight box of each mask at its image's full size, on the device.
            truths: Per row a bool tensor (H, W) on the device, of its image's size, to measure area, IoU and Dice with.
            full: Hand out the masks at full size as well.

        Returns:
            Low-resolution logits and predicted IoU, equal to what the model's authors' code predicts image by image;
            and what else was asked for. All of it stays on the device.

        Raises:
            ValueError: The numbers of embeddings, prompts and truths differ, or there are none, or mask prompts or
                truths have another size.
        """
        self._check(embeddings, prompts, truths)
        self.decoder_calls += 1
        self.masks_decoded += len(prompts)
        points, boxes = self._to_input_frame(embeddings, prompts)
        labels, has_mask = (torch.as_tensor(a, device=self.device) for a in (prompts.labels, prompts.has_mask))

        @torch.no_grad()  # gradients are switched off per thread
        def part(start: int, each: Each = map) -> Masks:
            rows = slice(start, start + self.micro_batch)
            masks = None if prompts.mask_logits is None else prompts.mask_logits[rows]
            made = self._run_decoder(
                embeddings[rows], points[rows], labels[rows], boxes[rows], masks, has_mask[rows], multimask, each
            )
            if not statistics and truths is None and not full:
                return made
            sizes = [(self._inside(e), e.image_size) for e in embeddings[rows]]
            here = None if truths is None else truths[rows]
            measured, kept = examine(made.logits, self._logits_side, sizes, here, boxes=statistics, keep=full)
            return replace(made, statistics=measured, full=kept or None)

        return join(in_parallel(self.device, part, range(0, len(prompts), self.micro_batch)))

    def window(self, embedding: ImageEmbedding, view: ArrayLike) -> Window:
        """The part of an image that an episode looks at, for `decode_windows`.

        Raises:
            ValueError: This backend has no windows.
        """
        raise ValueError(self._no_windows())

    def decode_windows(
        self,
        windows: Sequence[Window],
        prompts: PromptBatch,
        previous: Sequence[Tensor | None] | None = None,
        *,
        multimask: bool = False,
        statistics: bool = False,
        truths: Sequence[Tensor] | None = None,
        full: bool = False,
    ) -> WindowMasks:
        """Masks for N prompts, each looked for in a window only.

        Raises:
            ValueError: This backend has no windows.
        """
        raise ValueError(self._no_windows())

    def _no_windows(self) -> str:
        return (
            f"{self.checkpoint!r} is decoded on whole images only: windows and attention='foveated' are written for "
            "SAM 1 alone. Take attention='full' (`--attention full`), or a checkpoint of SAM 1"
        )

    def _check(
        self, embeddings: Sequence[ImageEmbedding], prompts: PromptBatch, truths: Sequence[Tensor] | None
    ) -> None:
        if len(embeddings) != len(prompts) or not embeddings:
            raise ValueError(f"{len(embeddings)} embeddings for {len(prompts)} prompts; both need one entry per mask")
        given = prompts.mask_logits
        if given is not None and prompts.has_mask.any() and given.shape[1:] != self.mask_size:
            raise ValueError(f"mask prompts have shape {tuple(given.shape[1:])}, expected {self.mask_size}")
        if truths is None:
            return
        if len(truths) != len(embeddings):
            raise ValueError(f"{len(truths)} truths for {len(embeddings)} masks; each mask needs one")
        for i, (truth, embedding) in enumerate(zip(truths, embeddings, strict=True)):
            if truth.shape != embedding.image_size or truth.dtype != torch.bool:
                raise ValueError(
                    f"truth {i} is {truth.dtype} of shape {tuple(truth.shape)}; expected torch.bool of its image's "
                    f"shape {embedding.image_size}"
                )

    def _to_input_frame(self, embeddings: Sequence[ImageEmbedding], prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Points (N, P, 2) and boxes (N, 4) scaled from each image's pixels to the model's input frame."""
        scale = np.array(
            [(e.input_size[1] / e.image_size[1], e.input_size[0] / e.image_size[0]) for e in embeddings]
        )  # (N, 2) for x, y, in float64 as ResizeLongestSide has it
        points = torch.as_tensor(prompts.points * scale[:, None], dtype=torch.float32, device=self.device)
        boxes = torch.as_tensor(prompts.boxes * np.tile(scale, 2), dtype=torch.float32, device=self.device)
        return points, boxes

    def upscale(self, logits: Tensor, embedding: ImageEmbedding) -> Tensor:
        """Low-resolution logits (..., 4h, 4w) of one image to its full size (..., H, W), as its authors do it."""
        flat = logits.reshape(1, -1, *logits.shape[-2:])
        full = upscale(flat, self._logits_side, self._inside(embedding), embedding.image_size)
        return full.reshape(*logits.shape[:-2], *embedding.image_size)
