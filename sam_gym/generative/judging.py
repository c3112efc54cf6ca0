"""What samples are worth: judged by a classifier that gave no reward, and against real pictures.

Four figures: how often the class asked for is seen; the Frechet distance to real pictures; how much samples of a class
differ among themselves; how near they are to pictures that the model learned from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.generative.classifier import Classifier
from sam_gym.generative.model import to_samples
from sam_gym.generative.sources import Pictures

CHUNK = 256


@dataclass(frozen=True)
class Judged:
    """Figures about samples.

    Attributes:
        accuracy: Share of them in which the judge sees the class asked for.
        by_class: The same for each class.
        frechet: Frechet distance (Heusel et al. 2017, arXiv 1706.08500) between them and real pictures, in the judge's
            features, which are not Inception's: compare it only with others of the same judge.
        diversity: Mean distance between two samples of a class in the judge's features, over that of real pictures.
        nearest: Mean distance of a sample to the nearest training picture, over that of real pictures that nobody
            trained on, in pixels; far below 1 means that training pictures were learned by heart.
    """

    accuracy: float
    by_class: dict[str, float]
    frechet: float
    diversity: float
    nearest: float


@torch.no_grad()
def judge_samples(samples: Tensor, labels: Tensor, judge: Classifier, train: Pictures, test: Pictures) -> Judged:
    """Judge samples.

    Args:
        samples: (N, 3, 32, 32) in about [-1, 1].
        labels: (N,) classes asked for, as many of each.
        judge: A classifier that gave no reward.
        train: Pictures that the model learned from.
        test: Pictures that nobody trained on.

    Raises:
        ValueError: Fewer than two samples of a class.
    """
    classes, asked = len(judge.classes), labels.cpu().numpy()
    counts = np.bincount(asked, minlength=classes)
    if counts.min() < 2:
        short = judge.classes[int(counts.argmin())]
        raise ValueError(f"there are {counts.min()} samples of {short!r}: two of each class are needed to judge them")
    samples = samples.cpu()
    right = torch.cat([judge(part).argmax(1) for part in samples.split(CHUNK)]).numpy() == asked
    real = to_samples(test.images)
    drawn_features, real_features = _features(judge, samples), _features(judge, real)
    # As many real pictures of each class as of the one that has the fewest, since classes are asked for equally often.
    each = min(test.counts.values())
    balanced = np.concatenate([np.flatnonzero(test.labels == k)[:each] for k in range(classes)])
    known = to_samples(train.images)
    return Judged(
        accuracy=float(right.mean()),
        by_class={name: float(right[asked == k].mean()) for k, name in enumerate(judge.classes)},
        frechet=frechet_distance(drawn_features, real_features[balanced]),
        diversity=_spread(drawn_features, asked) / _spread(real_features, test.labels),
        nearest=float(nearest(samples, known).mean() / nearest(real, known).mean()),
    )


def frechet_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Squared Frechet distance between normal distributions fitted to features (N, D) and (M, D)."""
    from scipy.linalg import sqrtm

    covariances = [np.cov(features, rowvar=False) for features in (one, other)]
    middle = np.real(sqrtm(covariances[0] @ covariances[1]))
    between = ((one.mean(0) - other.mean(0)) ** 2).sum()
    return float(between + np.trace(covariances[0] + covariances[1] - 2 * middle))


def nearest(samples: Tensor, pictures: Tensor) -> Tensor:
    """(N,) root-mean-square distance of samples (N, 3, H, W) to the nearest picture of (M, 3, H, W), any way up."""
    best = torch.full((len(samples),), torch.inf)
    flat = pictures.flatten(1)
    for quarter in range(4):
        for mirrored in (False, True):
            turned = torch.rot90(samples, quarter, (2, 3))
            turned = (turned.flip(3) if mirrored else turned).flatten(1)
            for start in range(0, len(samples), CHUNK):
                part = torch.cdist(turned[start : start + CHUNK], flat).amin(1)
                best[start : start + CHUNK] = torch.minimum(best[start : start + CHUNK], part)
    return best / flat.shape[1] ** 0.5


def _features(judge: Classifier, samples: Tensor) -> NDArray[np.float64]:
    return torch.cat([judge.features(part) for part in samples.split(CHUNK)]).double().numpy()


def _spread(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean distance between two of one class, the mean over classes."""
    each = []
    for k in np.unique(labels):
        mine = torch.as_tensor(features[labels == k])
        each.append(float(torch.pdist(mine).mean()))
    return float(np.mean(each))
