"""`SamBackend`: a frozen SAM as a service. Images go in once and become embeddings; prompts become masks.

It knows nothing of episodes, rewards or ground truth. One backend serves all environments of a process that ask for
the same checkpoint and device (`get_backend`), so images are encoded once however many environments look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam_gym._utils.devices import resolve_device, resolve_precision
from sam_gym._utils.fetching import embeddings_dir
from sam_gym.sam.cache import EmbeddingCache, content_key
from sam_gym.sam.checkpoints import load_sam
from sam_gym.sam.decoder import BatchedDecoder, Each
from sam_gym.sam.disk_cache import DiskCache, namespace_of
from sam_gym.sam.fovea import Fovea, Window, examine_windows
from sam_gym.sam.masks import Masks, WindowMasks, examine, join, upscale
from sam_gym.sam.official import OfficialDecoder
from sam_gym.sam.prompts import PromptBatch
from sam_gym.sam.workers import in_parallel

GPU_MICRO_BATCH = 64
"""Masks decoded together on a GPU. On a CPU each mask is decoded by itself, which is quicker there and makes its
result independent, to the last bit, of what else was in the call."""

WINDOW_BATCH = 8
"""Windows, of any sides, whose tokens are worked on together on a CPU: one thread's share of sixteen."""

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
    """

    key: str
    features: Tensor
    image_size: tuple[int, int]
    input_size: tuple[int, int]


class SamBackend:
    """Encodes images and decodes prompts with a frozen SAM.

    Args:
        checkpoint: Name in `sam_gym.sam.CHECKPOINTS` or path of a weights file.
        device: "auto" (CUDA if there is one, else CPU), "cpu", "cuda", "cuda:1" ...
        precision: "exact" decodes in float32; "fast" in bfloat16, quicker where the hardware has it; "auto" is "fast"
            there and "exact" elsewhere; "official" is segment_anything's own decoder, mask by mask, to compare with.
            The encoder is always float32; "fast" keeps what it says as float16.
        cache_bytes: Memory for embeddings (MobileSAM: 4 MiB an image, 2 MiB in "fast").
        micro_batch: Masks decoded together; default 1 on a CPU, 64 on a GPU.
        disk_cache: Folder in which embeddings are kept for other processes and later runs, below those in memory; None
            for none. `get_backend`, and so every environment, takes `sam_gym._utils.fetching.embeddings_dir()`.

    Attributes:
        disk_cache: The `DiskCache` of this backend's encoder and precision, or None.
        encoder_calls: Images that went through the encoder so far.
        decoder_calls: Calls of `decode` so far.
        masks_decoded: Prompts that went through it in all those calls.

    Raises:
        CheckpointError: The checkpoint cannot be had or read.
        ValueError: The device is not there, or `disk_cache` is a file.
    """

    def __init__(
        self,
        checkpoint: str = "mobile_sam",
        device: str = "auto",
        precision: str = "exact",
        *,
        cache_bytes: int = CACHE_BYTES,
        micro_batch: int | None = None,
        disk_cache: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.sam = load_sam(checkpoint).to(self.device)
        self._settings = (checkpoint, str(self.device), self.precision, cache_bytes, micro_batch, disk_cache)
        self.micro_batch = micro_batch or (1 if self.device.type == "cpu" else GPU_MICRO_BATCH)
        self.encoder_calls = 0
        self.decoder_calls = 0
        self.masks_decoded = 0
        self._decoder: BatchedDecoder | OfficialDecoder
        self._fovea: Fovea | None = None
        if self.precision == "official":
            self._decoder = OfficialDecoder(self.sam)
        else:
            self._decoder = BatchedDecoder(self.sam, torch.bfloat16 if self.precision == "fast" else torch.float32)
            self._fovea = Fovea(self._decoder, self._side)
        self._features_dtype = torch.float16 if self.precision == "fast" else torch.float32
        self._cache = EmbeddingCache(cache_bytes)
        self.disk_cache: DiskCache | None = None
        if disk_cache is not None:
            self.disk_cache = DiskCache(disk_cache, self.encoder)
        self._resize = ResizeLongestSide(self.sam.image_encoder.img_size)

    def __reduce__(self) -> tuple:
        # Weights do not travel: another process asks for its own shared backend of the same settings.
        return _shared_backend, self._settings

    @cached_property
    def encoder(self) -> str:
        """What names the encoder and the dtype of embeddings: equal where embeddings are, in any process."""
        return namespace_of(self.sam, self._features_dtype)

    @property
    def embedding_channels(self) -> int:
        """C of `ImageEmbedding.features`."""
        return self.sam.prompt_encoder.embed_dim

    @property
    def mask_size(self) -> tuple[int, int]:
        """(4h, 4w) of low-resolution logits."""
        return self.sam.prompt_encoder.mask_input_size

    @property
    def _side(self) -> int:
        return self.sam.image_encoder.img_size

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
        input_size = self._resize.get_preprocess_shape(*size, self._resize.target_length)
        features = self._cache.get(key)
        if features is None:
            features = self._load_or_run_encoder(key, image)
            self._cache.put(key, features)
        return ImageEmbedding(key, features, size, input_size)

    def _load_or_run_encoder(self, key: str, image: NDArray[np.uint8]) -> Tensor:
        if self.disk_cache is not None and (stored := self.disk_cache.get(key)) is not None:
            return stored.to(self.device)
        resized = torch.as_tensor(self._resize.apply_image(image), device=self.device)
        batch = self.sam.preprocess(resized.permute(2, 0, 1)[None].contiguous())
        # Rounded here, so that nothing depends on whether an embedding was computed or read.
        encoded = self.sam.image_encoder(batch).to(self._features_dtype)
        features = encoded.contiguous(memory_format=torch.channels_last)[0]
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
            Low-resolution logits and predicted IoU, equal to `SamPredictor.predict_torch` image by image; and what else
            was asked for. All of it stays on the device.

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
            features = batch_features([e.features for e in embeddings[rows]])
            masks = None if prompts.mask_logits is None else prompts.mask_logits[rows]
            logits, quality = self._decoder(
                features, points[rows], labels[rows], boxes[rows], masks, has_mask[rows], multimask=multimask, each=each
            )
            if not statistics and truths is None and not full:
                return Masks(logits, quality)
            sizes = [(e.input_size, e.image_size) for e in embeddings[rows]]
            here = None if truths is None else truths[rows]
            measured, kept = examine(logits, self._side, sizes, here, boxes=statistics, keep=full)
            return Masks(logits, quality, measured, kept or None)

        return join(in_parallel(self.device, part, range(0, len(prompts), self.micro_batch)))

    @torch.no_grad()
    def window(self, embedding: ImageEmbedding, view: ArrayLike) -> Window:
        """The part of an image that an episode looks at, for `decode_windows`.

        Args:
            embedding: Of the image.
            view: left, top, side of a square in pixels of the original image; it may leave the image.

        Returns:
            The smallest window that holds the view; of the whole image if none does.

        Raises:
            ValueError: The precision is "official", whose decoder knows no windows.
        """
        if self._fovea is None:
            raise ValueError(
                "precision='official' is segment_anything's own decoder, which looks at whole images: choose 'exact' "
                "or 'fast' for windows"
            )
        return self._fovea.window(embedding, view)

    @torch.no_grad()
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
        """Masks for N prompts, each looked for in a window only: nearly those of `decode`, many times quicker.

        On a CPU eight are decoded together, by one thread. So a mask does not depend on the number of threads; on its
        company it may depend in the last bits.

        Args:
            windows: One per prompt row, of `window`.
            prompts: N prompts, coordinates in pixels of each original image, inside or outside the windows; mask
                prompts are in `previous`, as windows differ in size.
            previous: Per row the logits of an earlier decode in the same window, or None.
            multimask: Three masks for ambiguous prompts instead of the single one.
            statistics: Measure area and tight box of each mask at its image's full size, on the device.
            truths: Per row a bool tensor (H, W) on the device, of its image's size, to measure area, IoU and Dice with;
                what of it lies outside the window counts as missed.
            full: Hand out the masks at full size as well, empty outside the window.

        Returns:
            Logits in the windows and predicted IoU, and what else was asked for. All of it stays on the device.

        Raises:
            ValueError: The numbers of windows, prompts and truths differ, or there are none, or mask prompts or truths
                have another size, or `prompts` has mask prompts of its own.
        """
        fovea = self._fovea
        assert fovea is not None, "windows come from it"
        embeddings = [window.embedding for window in windows]
        masks: list[Tensor | None] = [None] * len(windows) if previous is None else list(previous)
        self._check(embeddings, prompts, truths)
        self._check_previous(windows, prompts, masks)
        self.decoder_calls += 1
        self.masks_decoded += len(prompts)
        points, boxes = self._to_input_frame(embeddings, prompts)
        labels = torch.as_tensor(prompts.labels, device=self.device)

        @torch.no_grad()
        def part(rows: list[int], each: Each = map) -> WindowMasks:  # one thread for all of it, whatever `each` is
            here = [windows[row] for row in rows]
            given = [masks[row] for row in rows]
            logits, quality = fovea(here, points[rows], labels[rows], boxes[rows], given, multimask=multimask)
            if not statistics and truths is None and not full:
                return WindowMasks(logits, quality)
            some = None if truths is None else [truths[row] for row in rows]
            measured, kept = examine_windows(here, logits, some, boxes=statistics, keep=full)
            return WindowMasks(logits, quality, measured, kept or None)

        # The largest windows are dealt first, so that all batches have about as much to do
        order = sorted(range(len(windows)), key=lambda row: -len(windows[row].cells))
        batches = -(-len(order) // (WINDOW_BATCH if self.device.type == "cpu" else self.micro_batch))
        jobs = [order[batch::batches] for batch in range(batches)]
        made = in_parallel(self.device, part, jobs)
        return WindowMasks.join(made, [row for job in jobs for row in job])

    def _check_previous(
        self, windows: Sequence[Window], prompts: PromptBatch, previous: Sequence[Tensor | None]
    ) -> None:
        if prompts.has_mask.any():
            raise ValueError("windows differ in size: give their mask prompts as previous=[...], not in the prompts")
        if len(previous) != len(windows):
            raise ValueError(f"{len(previous)} mask prompts for {len(windows)} windows; each row needs one, or None")
        for i, (window, mask) in enumerate(zip(windows, previous, strict=True)):
            if mask is not None and mask.shape != window.mask_size:
                raise ValueError(f"mask prompt {i} has shape {tuple(mask.shape)}, its window {window.mask_size}")

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
        """Low-resolution logits (..., 4h, 4w) of one image to its full size (..., H, W), as SAM does it."""
        flat = logits.reshape(1, -1, *logits.shape[-2:])
        full = upscale(flat, self._side, embedding.input_size, embedding.image_size)
        return full.reshape(*logits.shape[:-2], *embedding.image_size)


def batch_features(features: list[Tensor]) -> Tensor:
    """N embeddings (C, h, w) as one (N, C, h, w) that is channels last like them; torch.stack would transpose them."""
    if len(features) == 1:
        return features[0][None]
    return torch.stack([one.permute(1, 2, 0) for one in features]).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _shared_backend(
    checkpoint: str, device: str, precision: str, cache_bytes: int, micro_batch: int | None, disk_cache: Path | None
) -> SamBackend:
    return SamBackend(
        checkpoint, device, precision, cache_bytes=cache_bytes, micro_batch=micro_batch, disk_cache=disk_cache
    )


def get_backend(checkpoint: str = "mobile_sam", device: str = "auto", precision: str = "exact") -> SamBackend:
    """The process's shared backend for a checkpoint, device and precision, loaded at the first call.

    Its embeddings are kept in the folder `sam_gym._utils.fetching.embeddings_dir()`, if there is one.
    """
    resolved = resolve_device(device)
    precision = resolve_precision(precision, resolved)
    return _shared_backend(str(checkpoint), str(resolved), precision, CACHE_BYTES, None, embeddings_dir())
