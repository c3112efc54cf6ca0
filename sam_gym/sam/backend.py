"""`SamBackend`: a frozen SAM as a service. Images go in once and become embeddings; prompts become masks.

It knows nothing of episodes, rewards or ground truth. One backend serves all environments of a process that ask for
the same checkpoint and device (`get_backend`), so images are encoded once however many environments look at them.
What it shares with other models is in `sam_gym.sam.interface`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam_gym._utils.devices import resolve_device, resolve_precision
from sam_gym._utils.fetching import embeddings_dir
from sam_gym.sam import sam2_files
from sam_gym.sam.checkpoints import load_sam
from sam_gym.sam.decoder import BatchedDecoder, Each
from sam_gym.sam.disk_cache import DiskCache, namespace_of
from sam_gym.sam.fovea import Fovea, Window, examine_windows
from sam_gym.sam.interface import CACHE_BYTES, Backend, ImageEmbedding
from sam_gym.sam.masks import Masks, WindowMasks
from sam_gym.sam.official import OfficialDecoder
from sam_gym.sam.prompts import PromptBatch
from sam_gym.sam.workers import in_parallel

WINDOW_BATCH = 8
"""Windows, of any sides, whose tokens are worked on together on a CPU: one thread's share of sixteen."""


class SamBackend(Backend):
    """Encodes images and decodes prompts with a frozen SAM, those of Kirillov et al. 2023 and its like.

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
        resolved = resolve_device(device)
        precision = resolve_precision(precision, resolved)
        super().__init__(checkpoint, resolved, precision, cache_bytes, micro_batch, disk_cache)
        self.sam = load_sam(checkpoint).to(self.device)
        self._decoder: BatchedDecoder | OfficialDecoder
        self._fovea: Fovea | None = None
        if self.precision == "official":
            self._decoder = OfficialDecoder(self.sam)
        else:
            self._decoder = BatchedDecoder(self.sam, torch.bfloat16 if self.precision == "fast" else torch.float32)
            self._fovea = Fovea(self._decoder, self._side)
        self._features_dtype = torch.float16 if self.precision == "fast" else torch.float32
        if disk_cache is not None:
            self.disk_cache = DiskCache(disk_cache, self.encoder)
        self._resize = ResizeLongestSide(self.sam.image_encoder.img_size)

    @property
    def has_windows(self) -> bool:
        """Whether there are windows: segment_anything's own decoder knows none."""
        return self._fovea is not None

    @cached_property
    def encoder(self) -> str:
        """See `Backend.encoder`."""
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

    @property
    def _logits_side(self) -> int:
        return self._side

    def _inside(self, embedding: ImageEmbedding) -> tuple[int, int]:
        return embedding.input_size

    def _input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return self._resize.get_preprocess_shape(*image_size, self._resize.target_length)

    def _run_encoder(self, image: NDArray[np.uint8]) -> Tensor:
        resized = torch.as_tensor(self._resize.apply_image(image), device=self.device)
        batch = self.sam.preprocess(resized.permute(2, 0, 1)[None].contiguous())
        # Rounded here, so that nothing depends on whether an embedding was computed or read.
        return self.sam.image_encoder(batch).to(self._features_dtype)

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
        features = batch_features([e.features for e in embeddings])
        return Masks(
            *self._decoder(features, points, labels, boxes, mask_logits, has_mask, multimask=multimask, each=each)
        )

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


def batch_features(features: list[Tensor]) -> Tensor:
    """N embeddings (C, h, w) as one (N, C, h, w) that is channels last like them; torch.stack would transpose them."""
    if len(features) == 1:
        return features[0][None]
    return torch.stack([one.permute(1, 2, 0) for one in features]).permute(0, 3, 1, 2)


def make_backend(
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: str = "exact",
    *,
    cache_bytes: int = CACHE_BYTES,
    micro_batch: int | None = None,
    disk_cache: Path | None = None,
) -> Backend:
    """A backend of one's own for a checkpoint: `SamBackend`, or `Sam2Backend` where it is a SAM 2.

    Args:
        checkpoint: As for `SamBackend`, or of SAM 2 as for `sam_gym.sam.sam2_files.folder_of`.
        device: As for `SamBackend`.
        precision: As for `SamBackend`; SAM 2 has "exact", which "auto" is too.
        cache_bytes: As for `SamBackend`.
        micro_batch: As for `SamBackend`.
        disk_cache: As for `SamBackend`.

    Raises:
        CheckpointError, ValueError: As `SamBackend`; or SAM 2 is asked for another precision.
        ImportError: SAM 2 needs the extra "sam2".
    """
    if sam2_files.is_sam2(checkpoint):
        from sam_gym.sam.sam2 import Sam2Backend

        kind: type[SamBackend] | type[Sam2Backend] = Sam2Backend
    else:
        kind = SamBackend
    return kind(checkpoint, device, precision, cache_bytes=cache_bytes, micro_batch=micro_batch, disk_cache=disk_cache)


@lru_cache(maxsize=8)
def _shared_backend(
    checkpoint: str, device: str, precision: str, cache_bytes: int, micro_batch: int | None, disk_cache: Path | None
) -> Backend:
    return make_backend(
        checkpoint, device, precision, cache_bytes=cache_bytes, micro_batch=micro_batch, disk_cache=disk_cache
    )


def get_backend(checkpoint: str = "mobile_sam", device: str = "auto", precision: str = "exact") -> Backend:
    """The process's shared backend for a checkpoint, device and precision, loaded at the first call.

    Its embeddings are kept in the folder `sam_gym._utils.fetching.embeddings_dir()`, if there is one. What it takes and
    raises is that of `make_backend`.
    """
    resolved = resolve_device(device)
    precision = "exact" if sam2_files.is_sam2(checkpoint) and precision == "auto" else precision
    precision = resolve_precision(precision, resolved)
    return _shared_backend(str(checkpoint), str(resolved), precision, CACHE_BYTES, None, embeddings_dir())
