"""`Sam2Backend`: a frozen SAM 2.1 (or MedSAM2, which has its architecture) behind the interface of all backends.

Model, preprocessing and decoder are those of Hugging Face's transformers (extra "sam2"), as they are. What is written
for SAM 1 alone, windows and tuned decoders among it, is refused. Videos, and so SAM 2's memory, are not used.

Source: Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos"; Ma et al. 2025, "MedSAM2".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.devices import resolve_device, resolve_precision
from sam_gym._utils.naming import first_line
from sam_gym.sam import sam2_files
from sam_gym.sam.decoder import Each
from sam_gym.sam.disk_cache import DiskCache, namespace_of, weights_id
from sam_gym.sam.interface import CACHE_BYTES, Backend, ImageEmbedding
from sam_gym.sam.masks import Masks
from sam_gym.sam.prompts import ABSENT
from sam_gym.sam.weights_files import CheckpointError


class Sam2Backend(Backend):
    """Encodes images and decodes prompts with a frozen SAM 2, in float32.

    An image is stretched to the model's square, whatever its shape, and low-resolution logits are interpolated to the
    image in one go: both as transformers' `Sam2Processor` does it. Its finer features are kept beside the embedding, so
    that an image takes four times the memory of SAM 1 (16 MiB at 1024 pixels).

    Args:
        checkpoint: As for `sam_gym.sam.sam2_files.folder_of`.
        device: "auto" (CUDA if there is one, else CPU), "cpu", "cuda", "cuda:1" ...
        precision: "exact", which "auto" is too.
        cache_bytes: Memory for embeddings.
        micro_batch: Masks decoded together at most; default 1 on a CPU, 64 on a GPU. Among them, only prompts with the
            same number of points, and with or without a box and a mask alike, are decoded in one go: SAM 2's attention
            has no place for a mask of padding tokens, and padding changes masks.
        disk_cache: As for `SamBackend`.

    Raises:
        CheckpointError: The weights cannot be had or read.
        ValueError: The device is not there, another precision is asked for, or `disk_cache` is a file.
        ImportError: transformers is not installed.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str = "auto",
        precision: str = "exact",
        *,
        cache_bytes: int = CACHE_BYTES,
        micro_batch: int | None = None,
        disk_cache: Path | None = None,
    ) -> None:
        resolved = resolve_device(device)
        if precision != "auto" and resolve_precision(precision, resolved) != "exact":
            raise ValueError(
                f"{checkpoint!r} is a SAM 2, whose decoder here is transformers' own in float32: precision "
                f"{precision!r} is written for SAM 1 alone. Take precision='exact'"
            )
        super().__init__(checkpoint, resolved, "exact", cache_bytes, micro_batch, disk_cache)
        folder = sam2_files.folder_of(checkpoint)
        self.model = _load(folder).to(self.device)
        self._side: int = self.model.prompt_encoder.input_image_size
        self._processor = _processor(folder, self._side)
        if disk_cache is not None:
            self.disk_cache = DiskCache(disk_cache, self.encoder)

    @cached_property
    def encoder(self) -> str:
        """See `Backend.encoder`."""
        model, config = self.model, self.model.config.vision_config.to_dict()
        about = json.dumps([config, self._processor.to_dict()], sort_keys=True, default=str)
        parts = {"vision": model.vision_encoder, "s0": model.mask_decoder.conv_s0, "s1": model.mask_decoder.conv_s1}
        tensors = {f"{part}.{name}": one for part, of in parts.items() for name, one in of.state_dict().items()}
        return namespace_of(weights_id(about, tensors | {"no_memory": model.no_memory_embedding}), torch.float32)

    @property
    def embedding_channels(self) -> int:
        """C of `ImageEmbedding.features`."""
        return self.model.prompt_encoder.hidden_size

    @property
    def mask_size(self) -> tuple[int, int]:
        """(4h, 4w) of low-resolution logits."""
        return self.model.prompt_encoder.mask_input_size

    @property
    def _logits_side(self) -> int:
        return self.mask_size[0]  # interpolated once

    def _inside(self, embedding: ImageEmbedding) -> tuple[int, int]:
        return self.mask_size

    def _input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return self._side, self._side

    def _run_encoder(self, image: NDArray[np.uint8]) -> Tensor:
        pixels = self._processor(images=image.copy(), return_tensors="pt")["pixel_values"]
        finest, fine, features = self.model.get_image_embeddings(pixels.to(self.device))
        return torch.cat([features, F.pixel_unshuffle(finest, 4), F.pixel_unshuffle(fine, 2)], dim=1)

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
        """As `Backend` says; transformers' decoder takes an image in one piece, whatever `each` is."""
        present = labels != ABSENT
        has_box = ~boxes.isnan().any(dim=1)
        groups: dict[tuple[int, bool, bool], list[int]] = {}
        kinds = zip(present.sum(dim=1).tolist(), has_box.tolist(), has_mask.tolist(), strict=True)
        for row, kind in enumerate(kinds):
            groups.setdefault(kind, []).append(row)
        made = []
        for (count, boxed, masked), rows in groups.items():
            there = present[rows]
            outputs = self._decode_alike(
                [embeddings[row] for row in rows],
                points[rows][there].view(len(rows), 1, count, 2) if count else None,
                labels[rows][there].view(len(rows), 1, count).long() if count else None,
                boxes[rows][:, None] if boxed else None,
                mask_logits[rows][:, None] if masked and mask_logits is not None else None,
                multimask,
            )
            made.append((outputs.pred_masks[:, 0], outputs.iou_scores[:, 0], outputs.object_score_logits.flatten()))
        order = torch.tensor([row for rows in groups.values() for row in rows], device=self.device).argsort()
        logits, quality, score = (torch.cat(parts)[order].float() for parts in zip(*made, strict=True))
        return Masks(logits, quality, object_score=score)

    def _decode_alike(
        self,
        embeddings: Sequence[ImageEmbedding],
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_logits: Tensor | None,
        multimask: bool,
    ) -> Any:
        """What transformers gives for N prompts of one kind, one on each image."""
        features = torch.stack([one.features for one in embeddings])
        finer = torch.stack([one.finer for one in embeddings if one.finer is not None])
        finest, fine = finer.split([2 * self.embedding_channels, self.embedding_channels], dim=1)
        return self.model(
            image_embeddings=[F.pixel_shuffle(finest, 4), F.pixel_shuffle(fine, 2), features],
            input_points=points,
            input_labels=labels,
            input_boxes=boxes,
            input_masks=mask_logits,
            multimask_output=multimask,
        )


def _load(folder: Path) -> Any:
    """The `Sam2Model` of a folder, frozen, float32, with every one of its weights from there."""
    try:
        from transformers import Sam2Model
    except ImportError as error:
        raise ImportError(f"{error}. SAM 2 needs the extra 'sam2': pip install 'sam_gym[sam2]'") from error
    try:
        loaded: Any = Sam2Model.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # transformers, safetensors and the file system each have their own
        raise CheckpointError(
            f"{folder} cannot be read as a SAM 2 of transformers: {type(error).__name__}: {first_line(error)}"
        ) from error
    model, found = loaded
    if lacking := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} of the weights of a SAM 2, or has them in another shape: "
            f"{', '.join(lacking[:3])}, ... It is not a whole SAM 2, or config.json is that of another size"
        )
    return model.eval().requires_grad_(False)


def _processor(folder: Path, side: int) -> Any:
    """The preprocessing that lies beside the weights, else SAM 2's own at the side that the model takes."""
    from transformers import Sam2ImageProcessor

    beside = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    processor = Sam2ImageProcessor.from_pretrained(folder) if beside else Sam2ImageProcessor()
    processor.size = {"height": side, "width": side}
    return processor
