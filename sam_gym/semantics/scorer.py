"""Region-text scores: how well a CLIP model thinks that a text names a masked region.

`RegionScorer.score` is what the reward `clip` is made of. It sees images, masks and texts, never ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.devices import resolve_device
from sam_gym.semantics.models import MICRO, ClipModel, load_clip
from sam_gym.semantics.views import MARGIN, check_regions, check_view, region_views

DEFAULT_VIEW = "masked"


class RegionScorer:
    """Compares masked regions with texts.

    What is kept between calls: the embedding of every text. Nothing is kept of images: what goes into the image tower
    depends on the mask in every view, and masks change with every prompt. (`similarity_map` keeps its image side.)

    Args:
        clip: The model.
        view: One of `sam_gym.semantics.views.VIEWS`.
        margin: Share of the longer side of a mask's rectangle that is shown around it on each side.

    Raises:
        ValueError: Another view.
    """

    def __init__(self, clip: ClipModel, view: str = DEFAULT_VIEW, margin: float = MARGIN) -> None:
        check_view(view)
        self.clip, self.view, self.margin = clip, view, margin

    @property
    def text_dim(self) -> int:
        """Length of a text's embedding."""
        return self.clip.text_dim

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed K texts: (K, text_dim) float32 of unit length; see `ClipModel.embed_texts`."""
        return self.clip.embed_texts(texts)

    def score(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[NDArray[np.bool_]],
        targets: Sequence[str],
        distractors: Sequence[Sequence[str]],
    ) -> NDArray[np.float64]:
        """Probability of each region's target among the target and its distractors.

        It is the softmax over these texts of the model's logit scale times the cosine between the view's embedding and
        the text's (Radford et al. 2021, "Learning transferable visual models from natural language supervision",
        section 3.1.2). A region that the model can make nothing of is near 1 / (1 + number of distractors).

        Args:
            images: N RGB images uint8 (H, W, 3), of one size or of several.
            masks: N masks bool (H, W), each of its image's size.
            targets: N texts.
            distractors: N sequences of at least one other text each, of any length.

        Returns:
            (N,) float64 in [0, 1]; 0 for an empty mask.

        Raises:
            ValueError: A text is empty; no distractors, or the target is among them; unequal numbers; an image or a
                mask of another shape or dtype; no image.
        """
        check_regions(images, masks, allow_empty=True)
        if not len(images) == len(targets) == len(distractors):
            raise ValueError(
                f"{len(images)} images, {len(targets)} targets and {len(distractors)} sequences of distractors: unequal"
            )
        choices = [_choices(target, others) for target, others in zip(targets, distractors, strict=True)]
        texts = sorted({text for choice in choices for text in choice})
        embedded = dict(zip(texts, self.embed_texts(texts).double().cpu().numpy(), strict=True))
        scores = np.zeros(len(images))
        filled = [index for index, mask in enumerate(masks) if mask.any()]
        if not filled:
            return scores
        shown = ([images[index] for index in filled], [masks[index] for index in filled])
        regions = self.clip.embed_images(region_views(*shown, self.clip, self.view, margin=self.margin))
        for index, region in zip(filled, regions.double().cpu().numpy(), strict=True):
            cosines = (np.stack([embedded[text] for text in choices[index]]) * region).sum(axis=1)
            odds = np.exp(self.clip.logit_scale * (cosines - cosines.max()))
            scores[index] = odds[0] / odds.sum()
        return scores


def _choices(target: str, distractors: Sequence[str]) -> tuple[str, ...]:
    """The target and its distractors."""
    if isinstance(distractors, str) or not len(distractors):
        raise ValueError(f"target {target!r} needs a sequence of distractors to be told from, got {distractors!r}")
    if target in distractors:
        raise ValueError(f"target {target!r} is among its own distractors {tuple(distractors)!r}")
    return (target, *distractors)


@lru_cache(maxsize=8)
def _shared_scorer(model: str, device: str, view: str) -> RegionScorer:
    return RegionScorer(load_clip(model, device), view)


def get_scorer(model: str = MICRO, device: str = "auto", view: str = DEFAULT_VIEW) -> RegionScorer:
    """The process's shared scorer for a model, device and view, loaded at the first call.

    Args:
        model: As for `load_clip`.
        device: As for `load_clip`.
        view: One of `sam_gym.semantics.views.VIEWS`.

    Raises:
        ClipError: The model cannot be had.
        ValueError: The device is not there, or another view.
    """
    return _shared_scorer(model, str(resolve_device(device)), view)
