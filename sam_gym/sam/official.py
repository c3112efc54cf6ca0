"""The stock way to decode: `segment_anything`'s prompt encoder and mask decoder as they are, one mask after the other.

It is what `sam_gym.sam.decoder` is measured against, behind the same interface; `precision="official"` selects it.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sam_gym.sam.decoder import Each
from sam_gym.sam.prompts import ABSENT


class OfficialDecoder:
    """Decodes N masks by N calls of the stock modules, in float32.

    Args:
        sam: A `segment_anything` model; its modules are used as they are, not copied.
    """

    def __init__(self, sam: Sam) -> None:
        self.encoder, self.decoder = sam.prompt_encoder, sam.mask_decoder

    def __call__(
        self,
        features: Tensor,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_logits: Tensor | None,
        has_mask: Tensor,
        *,
        multimask: bool = False,
        each: Each = map,
    ) -> tuple[Tensor, Tensor]:
        """As `BatchedDecoder.__call__`; the stock decoder takes an image in one piece, whatever `each` is."""
        results = []
        for row in range(len(features)):
            present = labels[row] != ABSENT
            clicks = (points[row, present][None], labels[row, present][None]) if present.any() else None
            box = None if boxes[row].isnan().any() else boxes[row][None]
            mask = mask_logits[row][None, None] if mask_logits is not None and has_mask[row] else None
            sparse, dense = self.encoder(points=clicks, boxes=box, masks=mask)
            results.append(
                self.decoder(
                    image_embeddings=features[row : row + 1],
                    image_pe=self.encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=multimask,
                )
            )
        return torch.cat([logits for logits, _ in results]), torch.cat([quality for _, quality in results])
