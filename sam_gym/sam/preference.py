"""Preference optimisation of SAM's mask decoder: somebody says which of several masks is better, and nobody draws one.

Konwer et al., "Enhancing SAM with Efficient Prompting and Preference Optimization" (CVPR 2025), on SAM's own decoder.
For an object and a box the decoder as it was (the *reference*) makes candidate masks; a judge rates them
(`sam_gym.sam.judges`); the loss raises the odds of the better ones against those of the worse ones, relative to the
reference (Rafailov et al. 2023, "Direct preference optimization").

With a mask's pixels as independent choices, the log-odds of candidates is linear in the logits and lives on the pixels
in which they differ, since their weights sum to zero. It is divided by the number of those pixels, without which a
few hundred of 65,536 pixels would not be heard. No code was published; what was not published is chosen here and said
so.

Each object is rated once, before anything is learned: four masks of one box, as an annotator would. It stands on
`sam_gym.sam.tuning`, which is stage 1: drawing, schedule, state and file are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.boxes import Floats, noisy_box
from sam_gym._utils.naming import unknown
from sam_gym._utils.progress import progress_bar
from sam_gym.data import SegmentationData
from sam_gym.sam.checkpoints import load_sam
from sam_gym.sam.choices import Comparison
from sam_gym.sam.decoder import BatchedDecoder
from sam_gym.sam.interface import Backend, ImageEmbedding
from sam_gym.sam.judges import Candidates, ChoiceJudge, Judge
from sam_gym.sam.tuning import Tuner, TuningSettings

WEIGHTS = {2: (1.0, -1.0), 4: (1.0, 0.5, -0.5, -1.0)}
"""Weights of candidates from the best to the worst, as published for four."""

THRESHOLDS = {2: (0.3, 0.6), 4: (0.3, 0.4, 0.5, 0.6)}
"""Probabilities at which the reference's mask is cut, as two sources have it."""

SOURCES = ("thresholds", "three", "boxes")
"""Where candidates come from: the mask cut at `THRESHOLDS`, as published; SAM's three masks, and its single one; or the
masks of boxes beside the one drawn."""

BOX_NOISE = 0.15
"""Relative error of the sides of those boxes."""


class NothingPreferredError(ValueError):
    """No comparison says that one candidate is better than another."""


@dataclass(frozen=True)
class PreferenceSettings(TuningSettings):
    """How to tune by preferences.

    The rate is low, and rises slowly: with stage 1's the first steps lose more of the old decoder than ratings give.
    Chosen on ISBI's validation split.

    Attributes:
        candidates: One of `SOURCES`.
        count: How many: 2 or 4.
        beta: Factor of the margin.
        smoothing: Share of ratings that is taken for wrong (label smoothing; conservative DPO, Mitchell 2023).
        anchor: Weight of a fall of the best candidate's log-odds below the reference's (DPO-positive, Pal et al. 2024).
        keep: Weight of the divergence from the reference where the candidates agree: its mean over the image, and its
            sum over the area of the reference's mask.
        supervised: Weight of stage 1's loss on as many labelled objects, where there are any.
    """

    method: str = "decoder"
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 2e-5
    warm_up: float = 0.3
    candidates: str = "boxes"
    count: int = 4
    beta: float = 3.0
    smoothing: float = 0.0
    anchor: float = 1.0
    keep: float = 1.0
    supervised: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates not in SOURCES:
            raise ValueError(unknown("source of candidates", self.candidates, SOURCES))
        if self.count not in WEIGHTS:
            raise ValueError(f"count={self.count}: 2 or 4 candidates are compared")
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing={self.smoothing} must be at least 0 and below one half")


def rank_weights(ratings: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K,) weights of rated candidates, K = 2 or 4: those of `WEIGHTS` by rank; equal ratings share theirs.

    Example:
        >>> import numpy as np
        >>> rank_weights(np.array([1.0, 4.0, 3.0, 3.0]))
        array([-1.,  1.,  0.,  0.])
    """
    order = np.argsort(-ratings, kind="stable")
    weights = np.empty(len(ratings))
    weights[order] = WEIGHTS[len(ratings)]
    return np.array([weights[ratings == rating].mean() for rating in ratings])


@dataclass(frozen=True)
class Rating:
    """A comparison that was rated, as far as a step needs it: D are the n pixels in which the candidates differ.

    Attributes:
        row: Of the object.
        box: (4,) the prompt, in pixels of the image.
        differing: (h, w) bool, D.
        reference: (h, w) logits of the decoder as it was.
        masks: (K, n) the candidates in D, 1 or 0.
        weights: (K,) that sum to zero (`rank_weights`).
    """

    row: int
    box: Floats
    differing: Tensor
    reference: Tensor
    masks: Tensor
    weights: NDArray[np.float64]


def rating_of(row: int, box: Floats, reference: Tensor, masks: Tensor, weights: NDArray[np.float64]) -> Rating | None:
    """A rating from whole logits (h, w) and masks (K, h, w) bool; None where nothing is preferred.

    That is so where the candidates, or their ratings, are all equal.
    """
    differing = masks.any(dim=0) & ~masks.all(dim=0)
    if not differing.any() or not weights.any():
        return None
    return Rating(row, box, differing, reference, masks[:, differing].to(reference.dtype), weights)


def preference_loss(logits: Tensor, rating: Rating, settings: PreferenceSettings) -> Tensor:
    """Loss of one object: -log sigmoid(beta m), m = sum_k w_k <Y_k, z - z_ref> / |D|, the anchor, and what is kept.

    Preferences say nothing of pixels outside of D. Without `keep` whatever moves those costs nothing, and whole masks
    are lost for a few pixels that were preferred.

    Args:
        logits: (h, w) z, of the decoder that learns.
        rating: z_ref, candidates Y and weights w.
        settings: `beta`, `smoothing`, `anchor` and `keep` count.

    Returns:
        A scalar.
    """
    now, before, drawn = logits[rating.differing], rating.reference[rating.differing], rating.masks
    weights = drawn.new_tensor(rating.weights.tolist())
    margin = settings.beta * (weights @ drawn @ (now - before)) / len(now)
    loss = -(1 - settings.smoothing) * F.logsigmoid(margin) - settings.smoothing * F.logsigmoid(-margin)
    if settings.anchor:
        odds = [drawn[int(weights.argmax())] * one - F.softplus(one) for one in (before, now)]
        loss = loss + settings.anchor * F.relu((odds[0] - odds[1]).mean())
    if settings.keep:
        chance = rating.reference.sigmoid()
        divergence = F.binary_cross_entropy_with_logits(logits, chance, reduction="none")
        divergence = divergence - F.binary_cross_entropy_with_logits(rating.reference, chance, reduction="none")
        divergence = divergence.masked_fill(rating.differing, 0)
        loss = loss + settings.keep * (divergence.mean() + divergence.sum() / (chance > 0.5).sum().clamp(min=1))
    return loss


class PreferenceTuner(Tuner):
    """Stage 2: a decoder learns from ratings of its masks.

    Args:
        checkpoint: The decoder of stage 1, or any other; it is also the reference.
        data: Rated objects. Their truths reach the judge, the boxes drawn around them, and nothing else.
        settings: See `PreferenceSettings`.
        backend: As for `Tuner`.
        judge: Rates the candidates. Those that a `ChoiceJudge` has choices of are all that is learned from; their boxes
            are the candidates' then, whatever `settings` say.
        labelled: Objects whose masks are known, for stage 1's loss beside; None for none.
        state: As for `Tuner`.

    Attributes:
        skipped: Objects whose candidates, or ratings, are all equal, so that nothing is learned from them; known once
            it runs.
    """

    settings: PreferenceSettings

    def __init__(
        self,
        checkpoint: str,
        data: SegmentationData,
        settings: PreferenceSettings,
        backend: Backend,
        judge: Judge,
        labelled: SegmentationData | None = None,
        state: Path | None = None,
    ) -> None:
        self._judge, self._labelled, self.skipped = judge, labelled, 0
        self._compared = [_found(one, data) for one in judge.comparisons] if isinstance(judge, ChoiceJudge) else []
        self._ratings: list[Rating] = []
        self._reference = BatchedDecoder(load_sam(checkpoint).to(backend.device))
        super().__init__(checkpoint, data, settings, backend, state)

    def run(self, after_step: Callable[[Tuner, float], None]) -> None:
        """Rate the objects, then as `Tuner.run`.

        Raises:
            NothingPreferredError: In no comparison is anything preferred.
        """
        if self.steps_done < self.settings.steps:
            self._rate()
        super().run(after_step)

    def _rate(self) -> None:
        """Rate each object once, or each comparison that there is a choice of; as many as the steps will use."""
        n = len(self._compared) or len(self.data.objects)
        most = min(n, self.settings.steps * self.settings.batch_size)
        with progress_bar("rating", most, "object") as bar:
            for k in self._order(0, n)[:most]:
                row, box, compared = self._prompt(int(k))
                embedding = self._embeddings(self.data, np.array([row]))[0]
                rating = rating_of(row, box, *self._rated(row, embedding, box, compared))
                if rating is None:
                    self.skipped += 1
                else:
                    self._ratings.append(rating)
                bar.update()
        if not self._ratings:
            raise NothingPreferredError(
                f"nothing can be learned from {most} comparisons: the candidates of each, or their ratings, are equal. "
                "Take another source of candidates, or a judge who tells them apart"
            )

    def _prompt(self, k: int) -> tuple[int, Floats, Comparison | None]:
        """Object, box and choice, if there are choices, of comparison `k`."""
        if self._compared:
            row, compared = self._compared[k]
            return row, np.array(compared.box, np.float32), compared
        rng = np.random.default_rng([self.settings.seed, 3, k])
        return k, self._box(self.data, k, rng), None

    @property
    def _identity(self) -> dict[str, Any]:
        labelled = None if self._labelled is None else self._labelled.hash()
        return {**super()._identity, "judge": self._judge.identity, "labelled": labelled}

    def _loss(self) -> Tensor:
        some = [self._ratings[k] for k in self._turn(len(self._ratings))]
        embeddings = self._embeddings(self.data, np.array([one.row for one in some]))
        logits, _ = self._decoded(self._decoder, embeddings, [one.box for one in some])
        losses = []
        for i, one in enumerate(some):
            h, w = one.differing.shape
            losses.append(preference_loss(logits[i, 0, :h, :w].float(), one, self.settings))
        total = torch.stack(losses).mean()
        if self._labelled is not None and self.settings.supervised:
            total = total + self.settings.supervised * self._mask_loss(self._labelled)
        return total

    @torch.no_grad()
    def _rated(
        self, row: int, embedding: ImageEmbedding, box: Floats, compared: Comparison | None = None
    ) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
        """Logits of the reference for a box (h, w), candidate masks (K, h, w), and the judge's weights of them."""
        objects, settings = self.data.objects, self.settings
        image, object_id = int(objects.image_index[row]), int(objects.object_id[row])
        single, estimate = self._decoded(self._reference, [embedding], [box])
        cuts, beside = [0.0] * settings.count, np.zeros((0, 4), np.float32)
        if compared is None and settings.candidates == "thresholds":
            cuts = [math.log(share / (1 - share)) for share in THRESHOLDS[settings.count]]
            made, estimates = single.repeat(1, len(cuts), 1, 1)[0], estimate.repeat(1, len(cuts))[0]
        elif compared is None and settings.candidates == "three":
            three, known = self._decoded(self._reference, [embedding], [box], multimask=True)
            made, estimates = torch.cat([single, three], dim=1)[0], torch.cat([estimate, known], dim=1)[0]
            chosen = [0, int(known.argmax()) + 1] if settings.count == 2 else range(4)
            made, estimates = made[list(chosen)], estimates[list(chosen)]
        else:
            beside = self._boxes_beside(row, box) if compared is None else np.array(compared.candidates, np.float32)
            cuts = [0.0] * len(beside)
            several, known = self._decoded(self._reference, [embedding] * len(beside), list(beside))
            made, estimates = several[:, 0], known[:, 0]
        full = torch.stack(
            [self.backend.upscale(one[None], embedding)[0] > cut for one, cut in zip(made, cuts, strict=True)]
        )
        key = Comparison.of(self.data.image_ids[image], object_id, box, beside).key
        candidates = Candidates(key, self.data, image, object_id, full.cpu().numpy(), estimates.cpu().numpy())
        weights = rank_weights(np.asarray(self._judge.rate(candidates), np.float64))
        h, w = self._low_size(embedding)
        small = torch.stack([one[:h, :w] > cut for one, cut in zip(made, cuts, strict=True)])
        return single[0, 0, :h, :w].float(), small, weights

    def _boxes_beside(self, row: int, box: Floats) -> NDArray[np.float32]:
        """(K, 4) boxes of candidates, drawn around the one of the prompt."""
        size = self.data.image(int(self.data.objects.image_index[row])).shape[:2]
        rng = np.random.default_rng([self.settings.seed, 2, row, *np.asarray(box, np.float32).view(np.uint32).tolist()])
        return np.stack([noisy_box(box, BOX_NOISE, (size[0], size[1]), rng) for _ in range(self.settings.count)])


def _found(comparison: Comparison, data: SegmentationData) -> tuple[int, Comparison]:
    """The row of a comparison's object, and the comparison; ValueError if there is no such object."""
    if len(comparison.candidates) not in WEIGHTS:
        raise ValueError(f"choices are between 2 or 4 candidates here, not {len(comparison.candidates)}")
    return data.find(comparison.image, comparison.object_id), comparison
